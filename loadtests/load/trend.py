"""Whether a series of readings rises. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

WARM_UP_PART = 0.25  # of the readings: caches fill, pools grow to their size, three minutes of records come into memory


@dataclass(frozen=True, kw_only=True)
class Trend:
    """How a gauge moved after the warm-up. Flat: its rise over that time is below a bound."""

    unit: str
    level: float  # median
    rise: float  # slope times duration
    bound: float
    readings: int

    @property
    def flat(self) -> bool:
        """Whether it rose by less than is allowed. Falling is no fault."""
        return self.rise <= self.bound

    def text(self) -> str:
        """For a table."""
        return f"{self.level:.1f} {self.unit}, {self.rise:+.2f} {self.unit} over the run (bound {self.bound:.2f})"


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Theil and Sen's: the median of the slopes of all pairs. A third of the readings may be outliers and change nothing."""
    slopes = [
        (later - earlier) / (then - at)
        for index, (at, earlier) in enumerate(points)
        for then, later in points[index + 1 :]
        if then > at
    ]
    return median(slopes) if slopes else 0.0


def trend(points: Sequence[tuple[float, float]], *, unit: str, part: float, least: float) -> Trend:
    """Of readings (seconds, value), the warm-up left out. The bound is `part` of their level, or `least` if that is more."""
    settled = points[int(len(points) * WARM_UP_PART) :]
    level = median(value for _, value in settled)
    duration_s = settled[-1][0] - settled[0][0]
    return Trend(
        unit=unit,
        level=level,
        rise=slope(settled) * duration_s,
        bound=max(level * part, least),
        readings=len(settled),
    )
