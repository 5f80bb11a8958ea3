"""Bars and curves as inline SVG: no script, no style of their own, readable without colours by their labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gateway.edge.markup import Html, tag
from gateway.overview import Points

SHARE_WARNING, SHARE_ALARM = 0.7, 0.9  # as `weir status` has them
TOPS = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0)
WIDTH, HEIGHT = 360, 72  # of a curve, in its own units: one for each point that is remembered


def level(share: float) -> str:
    """A class for how bad it is."""
    return "alarm" if share > SHARE_ALARM else "warning" if share > SHARE_WARNING else "calm"


def bar(share: float) -> Html:
    """How full. What it says stands beside it as text."""
    width = round(100 * min(max(share, 0.0), 1.0), 2)
    return tag(
        "svg",
        tag("rect", class_="bed", width=100, height=8, rx=2),
        tag("rect", class_=level(share), width=width, height=8, rx=2),
        class_="bar",
        viewBox="0 0 100 8",
        preserveAspectRatio="none",
        aria_hidden="true",
    )


def top(points: Points) -> float:
    """The share at a curve's upper edge: a budget that is hardly used should still be seen to move."""
    most = max((share for _, share in points if share is not None), default=0.0)
    return next((top for top in TOPS if most <= top), 1.0)


def curve(points: Points, *, label: str) -> Html:
    """How full it was, from the first point to the last. Nothing is drawn where nobody could say."""
    most = top(points)
    first_s, last_s = points[0][0], points[-1][0]
    span_s = max(last_s - first_s, 1.0)

    def place(at_s: float, share: float) -> str:
        return f"{(at_s - first_s) / span_s * WIDTH:.1f} {(1 - min(max(share / most, 0.0), 1.0)) * HEIGHT:.1f}"

    lines = [tag("line", class_="grid", x1=0, x2=WIDTH, y1=y, y2=y) for y in (0, HEIGHT / 2, HEIGHT)]
    last = next((share for _, share in reversed(points) if share is not None), 0.0)
    for run in _runs(points):
        path = "M" + "L".join(place(*point) for point in run)
        ground = f"L{place(run[-1][0], 0)}L{place(run[0][0], 0)}Z"
        lines.append(tag("path", class_=f"area {level(last)}", d=path + ground))
        lines.append(tag("path", class_=f"line {level(last)}", d=path))
    return tag(
        "svg",
        tag("title", label),
        lines,
        class_="curve",
        viewBox=f"0 -2 {WIDTH} {HEIGHT + 4}",
        preserveAspectRatio="none",
        role="img",
    )


def _runs(points: Points) -> Iterator[Sequence[tuple[float, float]]]:
    """The parts of a curve between its gaps."""
    run: list[tuple[float, float]] = []
    for at_s, share in points:
        if share is not None:
            run.append((at_s, share))
        elif run:
            yield run
            run = []
    if run:
        yield run
