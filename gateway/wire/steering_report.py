"""A backend's proof that steering fired, as numbers: tokens, layers and dose in fixed point, and a bit for each gate."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

from gateway.wire.fixed_point import Count, Fixed, Record, Subset
from policy.canonical import Malformed, Numbers
from policy.limits import STEERING_LAYER_MAX, STEERING_VECTORS_MAX, TOKENS_REPORTED_MAX

_DOSE_MAX = 1e9  # where our own server cuts it off; a projection of 1e6 on a small hidden state is beyond 1e6
DOSE = Fixed(most=_DOSE_MAX, per_unit=1000)  # a relative dose is released in steps of 0.001

_TOKENS = Count(most=TOKENS_REPORTED_MAX)
_LAYOUT = Record(
    {
        "applied": Record(
            {"prompt_tokens": _TOKENS, "generated_tokens": _TOKENS, "layers": Subset(below=STEERING_LAYER_MAX + 1)}
        ),
        "relative_dose": DOSE,
    }
)


class SteeringReport(Struct):
    """What is read of it. Its fingerprint is not: the gateway makes its own."""

    applied: dict[str, Any]
    relative_dose: Any
    gates: Annotated[list[bool], Meta(max_length=STEERING_VECTORS_MAX)] = []


def steering_numbers(report: SteeringReport, *, gates: int) -> Numbers:
    """Prompt tokens, generated tokens, the set of layers as a bit mask, the dose; and a flag for each of the spec's gates.

    Raises `Malformed`, also for more gates or fewer than the spec has.
    """
    if len(report.gates) != gates:
        raise Malformed("not one truth value for each gate")
    values = {"applied": report.applied, "relative_dose": report.relative_dose}
    return Numbers(tuple(_LAYOUT.pack(values)), tuple(report.gates))


def steering_body(numbers: tuple[int, ...], *, flags: tuple[bool, ...] = (), fingerprint: str) -> dict[str, Any]:
    """The released form of `steering_numbers`, with the gateway's fingerprint of the spec it sent."""
    body = {"fingerprint": fingerprint, **_LAYOUT.unpack(iter(numbers))}
    return body | {"gates": list(flags)} if flags else body
