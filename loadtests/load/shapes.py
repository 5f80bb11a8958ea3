"""How many users there are at a moment of a run. Pure."""

from math import ceil, pi, sin

SHAPES = {
    "steady": "all from the start",
    "ramp": "one after the other, all of them at the end",
    "spike": "a third; all of them in the middle fifth",
    "waves": "between a fifth and all, three times up and down",
}


def users_at(shape: str, at_s: float, *, seconds: float, users: int) -> int:
    """Between 1 and `users`. Raises KeyError for a shape that is not in SHAPES."""
    part = min(max(at_s / seconds, 0.0), 1.0)
    of_all = {
        "steady": 1.0,
        "ramp": part,
        "spike": 1.0 if 0.4 <= part < 0.6 else 1 / 3,
        "waves": 0.6 - 0.4 * sin(2 * pi * (3 * part + 0.25)),
    }[shape]
    return min(max(ceil(users * of_all), 1), users)
