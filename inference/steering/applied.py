"""What steering really did to one sequence: tokens touched and doses, booked by the tables of its steps."""

from __future__ import annotations

import dataclasses

from inference.steering.points import Site


@dataclasses.dataclass(kw_only=True)
class Tally:
    """One site: tokens that an operation was applied to, and the sum of their relative doses."""

    prompt_tokens: int = 0
    generated_tokens: int = 0
    dose_sum: float = 0.0

    @property
    def dose_mean(self) -> float:
        tokens = self.prompt_tokens + self.generated_tokens
        return self.dose_sum / tokens if tokens else 0.0


@dataclasses.dataclass(kw_only=True)
class Applied:
    """prompt_tokens, generated_tokens: distinct tokens that an operation was applied to at one site at least.

    gates: what was decided of them, once the request is over.
    """

    prompt_tokens: int = 0
    generated_tokens: int = 0
    sites: dict[Site, Tally] = dataclasses.field(default_factory=dict)
    gates: tuple[bool, ...] = ()

    def layers(self) -> list[int]:
        """Blocks in which anything was applied."""
        return sorted({site.layer for site in self.sites})

    def relative_dose(self) -> float:
        """Mean ‖h′ − h‖ / ‖h‖ over the tokens treated, at the site where it is largest; 0.0 if there were none."""
        return max((tally.dose_mean for tally in self.sites.values()), default=0.0)

    def copy(self) -> Applied:
        """As it stands: kept with a cached prefix, it says what was done to the tokens that need not be run again."""
        sites = {site: dataclasses.replace(tally) for site, tally in self.sites.items()}
        return dataclasses.replace(self, sites=sites)
