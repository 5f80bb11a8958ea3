"""What operators have thawed of sliding windows: debited to a series by hand, and to none of its steps. Pure.

A store counts a sliding window's grants in two places: in the step that they fall into, and in the series, which has the sum
of the steps that still count. A thaw debits the series alone, since nobody knows any more which step it was.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping

from gateway.ports import AccountState, LeaseState
from policy.quantity import window


def thawed_bits(states: Collection[AccountState], leases: Collection[LeaseState]) -> Mapping[str, int]:
    """By series. Never too much: where the store has moved on and granted nothing yet, a thaw is not seen until it has."""
    steps: dict[str, dict[int, int]] = defaultdict(dict)
    series_of = {}
    for state in states:
        if state.series is not None:
            steps[state.series][_number(state.account)] = state.debited_bits
            series_of[state.account] = state.series
    newest: dict[str, int] = {}
    by_hand: Counter[str] = Counter()
    for lease in leases:
        for account, bits in lease.bits.items():
            if account in series_of:
                series = series_of[account]
                newest[series] = max(newest.get(series, 0), _number(account))
            else:  # of a series, if it is one: only operators are granted bits of a whole window
                by_hand[account] += bits - lease.returned_bits.get(account, 0)
    thawed = {}
    for state in states:
        count = _steps(state.account) if state.account in steps else None
        if count is None:
            continue
        begin = newest.get(state.account, 0) - count
        counting_bits = sum(bits for number, bits in steps[state.account].items() if number > begin)
        bits = state.debited_bits - counting_bits - by_hand[state.account]
        if bits > 0:
            thawed[state.account] = bits
    return thawed


def _number(step: str) -> int:
    number = step.rpartition("/")[2]
    return int(number) if number.isascii() and number.isdigit() else 0


def _steps(series: str) -> int | None:
    """How many steps of it count together; None if its name is not that of a sliding window."""
    try:
        over = window(series.rpartition("/")[2])
    except ValueError:
        return None
    return over.steps if over.sliding else None
