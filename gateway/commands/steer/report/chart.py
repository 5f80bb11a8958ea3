"""A line chart as SVG: numbers in, markup out. Looks come from the page's style sheet, by class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 480, 270
LEFT, RIGHT, TOP, BOTTOM = 76, 14, 14, 46
TICKS_WANTED = 5
X_TICKS_MAX = 11
SPAN_MIN = 1e-9  # numbers nearer to each other than this are one: float64 has 16 digits, and ticks are rounded to 12
POINT_RADIUS, HIT_RADIUS = 4, 11

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Series:
    """A line and its points, by x."""

    name: str
    points: Points


@dataclass(frozen=True, kw_only=True)
class Chart:
    """`band`: x, lower, upper. `references`: heights with a word for each. `has_zero`: y = 0 belongs into the picture.

    `x_ticks`: where the x axis is labelled; as many of them as there is room for.
    """

    label: str  # for those who cannot see it
    x_label: str
    y_label: str
    x_ticks: Sequence[float]
    series: Sequence[Series]
    band: Sequence[tuple[float, float, float]] = ()
    references: Sequence[tuple[float, str]] = ()
    has_zero: bool = True


def chart_svg(chart: Chart) -> str:
    """The chart; every series must have a point."""
    frame = _frame(chart)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(chart.label)}">',
        *_y_axis(chart, frame),
        *_x_axis(chart, frame),
        *_references(chart, frame),
        *_band(chart, frame),
        *(part for number, series in enumerate(chart.series, start=1) for part in _series(series, number, frame)),
        "</svg>",
    ]
    return "\n".join(parts)


def number_text(value: float | None) -> str:
    """Up to four digits that count, with a real minus sign; a dash for nothing."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    places = max(0, 3 - math.floor(math.log10(abs(value)))) if abs(value) < 1000 else 0
    text = f"{value:,.{min(places, 4)}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return ("0" if text in ("-0", "0") else text).replace("-", "−")


def fixed_text(value: float | None, places: int = 3) -> str:
    """The same number of digits for a whole column."""
    if value is None:
        return "–"
    text = f"{value:,.{places}f}"
    return (text.removeprefix("-") if float(text.replace(",", "")) == 0 else text).replace("-", "−")


def ticks(low: float, high: float) -> list[float]:
    """Round numbers, from at or below `low` to at or above `high`."""
    if high - low <= SPAN_MIN * max(1.0, abs(low), abs(high)):
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / TICKS_WANTED
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * number, 12) for number in range(first, last + 1)]


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """From numbers to places."""

    x_low: float
    x_high: float
    y_ticks: Sequence[float]

    def x(self, value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - self.x_low) / (self.x_high - self.x_low)

    def y(self, value: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)

    def place(self, x: float, y: float) -> str:
        return f"{self.x(x):.1f},{self.y(y):.1f}"


def _frame(chart: Chart) -> _Frame:
    xs = [x for series in chart.series for x, _ in series.points]
    ys = [y for series in chart.series for _, y in series.points]
    ys += [y for _, *pair in chart.band for y in pair]
    if chart.has_zero:
        ys.append(0.0)
    span = max(xs) - min(xs)
    room = 0.03 * span if span > SPAN_MIN else 0.5
    return _Frame(x_low=min(xs) - room, x_high=max(xs) + room, y_ticks=ticks(min(ys), max(ys)))


def _y_axis(chart: Chart, frame: _Frame) -> list[str]:
    parts = []
    for value in frame.y_ticks:
        y = frame.y(value)
        kind = "base" if value == 0 else "grid"
        parts.append(f'<line class="{kind}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick end" x="{LEFT - 8}" y="{y + 4:.1f}">{number_text(value)}</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    turned = f'transform="rotate(-90 14 {middle:.0f})"'
    parts.append(f'<text class="axis middle" x="14" y="{middle:.0f}" {turned}>{escape(chart.y_label)}</text>')
    return parts


def _x_axis(chart: Chart, frame: _Frame) -> list[str]:
    parts = []
    if frame.x_low < 0 < frame.x_high:
        x = frame.x(0)
        parts.append(f'<line class="plain" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    for value in _labelled(chart.x_ticks, frame):
        place = f'x="{frame.x(value):.1f}" y="{HEIGHT - BOTTOM + 18}"'
        parts.append(f'<text class="tick middle" {place}>{number_text(value)}</text>')
    place = f'x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 8}"'
    parts.append(f'<text class="axis middle" {place}>{escape(chart.x_label)}</text>')
    return parts


def _labelled(values: Sequence[float], frame: _Frame) -> list[float]:
    """Those that have room beside each other; zero first, since everything is compared with it."""
    room = (WIDTH - LEFT - RIGHT) / X_TICKS_MAX * 0.75
    kept: list[float] = []
    for value in sorted(values, key=lambda value: (value != 0, value)):
        if all(abs(frame.x(value) - frame.x(other)) >= room for other in kept):
            kept.append(value)
    return sorted(kept)


def _references(chart: Chart, frame: _Frame) -> list[str]:
    """Lines at heights that mean something, as far as the picture reaches."""
    parts = []
    for value, word in chart.references:
        if not frame.y_ticks[0] < value <= frame.y_ticks[-1]:
            continue
        y = frame.y(value)
        parts.append(f'<line class="reference" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        # In the middle, where curves over the scale are low.
        place = f'x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{y - 5:.1f}"'
        parts.append(f'<text class="tick middle" {place}>{escape(word)}</text>')
    return parts


def _band(chart: Chart, frame: _Frame) -> list[str]:
    if not chart.band:
        return []
    upper = [frame.place(x, high) for x, _, high in chart.band]
    lower = [frame.place(x, low) for x, low, _ in reversed(chart.band)]
    return [f'<polygon class="band" points="{" ".join([*upper, *lower])}"/>']


def _series(series: Series, number: int, frame: _Frame) -> list[str]:
    places = " ".join(frame.place(x, y) for x, y in series.points)
    parts = [f'<polyline class="line s{number}" points="{places}"/>']
    for x, y in series.points:
        at = f'cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}"'
        said = f"{series.name}: {number_text(y)} at {number_text(x)}"
        parts.append(f'<circle class="point s{number}" {at} r="{POINT_RADIUS}"/>')
        parts.append(f'<circle class="hit" {at} r="{HIT_RADIUS}"><title>{escape(said)}</title></circle>')
    return parts
