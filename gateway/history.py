"""What the status page remembers: how full budgets were since the start, and when refusals were seen. In memory, bounded.

Curves begin fine and grow coarser with age of the process: whenever they are full, every second point goes and the distance
doubles, up to a day and a half. From then on the oldest point goes. A restart forgets; Prometheus does not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from policy.limits import HISTORY_CURVES_MAX, HISTORY_DISTANCE_S, HISTORY_POINTS_MAX, HISTORY_REFUSALS_MAX

DISTANCE_S_MAX = HISTORY_DISTANCE_S * 32


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusalsSeen:
    """So many refusals for one reason, between two looks."""

    at_s: float
    reason: str
    count: int


class History:
    """Fed by whoever looks now and then; asked by the page."""

    def __init__(self) -> None:
        self.distance_s = HISTORY_DISTANCE_S
        self._points: deque[tuple[float, Mapping[str, float]]] = deque()
        self._refusals: deque[RefusalsSeen] = deque(maxlen=HISTORY_REFUSALS_MAX)
        self._counted: dict[str, int] | None = None

    def see(self, at_s: float, shares: Mapping[str, float]) -> None:
        """How full each budget is, from 0 to 1. Looks that come too soon after the last point are not kept."""
        if self._points and 0 <= at_s - self._points[-1][0] < self.distance_s * 0.9:
            return
        self._points.append((at_s, dict(list(shares.items())[:HISTORY_CURVES_MAX])))
        if len(self._points) <= HISTORY_POINTS_MAX:
            return
        if self.distance_s < DISTANCE_S_MAX:
            self.distance_s *= 2
            self._points = deque(list(self._points)[::2])
        else:
            self._points.popleft()

    def refusals(self, at_s: float, counts: Mapping[str, int]) -> None:
        """Refusals since the start, by reason. What had been counted before the first look has no moment."""
        if self._counted is not None:
            for reason, count in counts.items():
                if (more := count - self._counted.get(reason, 0)) > 0:
                    self._refusals.append(RefusalsSeen(at_s=at_s, reason=reason, count=more))
        self._counted = dict(counts)

    def curve(self, budget: str) -> Sequence[tuple[float, float | None]]:
        """When, and how full; None where the budget did not exist, or nobody could say."""
        return [(at_s, shares.get(budget)) for at_s, shares in self._points]

    @property
    def last_refusals(self) -> Sequence[RefusalsSeen]:
        """The newest first."""
        return list(reversed(self._refusals))
