"""What the report of a steered answer can hide: doses, counters, layer sets, gates."""

from typing import Any

from loadtests.exfiltration import honest
from loadtests.exfiltration.answer import first
from loadtests.exfiltration.channel import (
    WHOLE,
    Channel,
    Decode,
    Question,
    Reply,
    Residual,
    by_symbol,
)
from loadtests.exfiltration.response import Response

LOW_BITS = 20
LAYERS = 64
GATES = 8
STEERED = Question(fields={"steering": {"vectors": [{"id": "v"}]}})
GATED = Question(fields={"steering": {"vectors": [{"id": "v", "when": {"id": "g", "layer": 1, "above": 0}}] * GATES}})


def report(
    *,
    prompt: int = 4,
    generated: int = 20,
    layers: list[int] | None = None,
    dose: float = 0.5,
    gates: list[bool] | None = None,
) -> bytes:
    """An answer with a steering report."""
    applied = {"prompt_tokens": prompt, "generated_tokens": generated, "layers": layers or [3]}
    steering: dict[str, Any] = {"fingerprint": "0" * 16, "applied": applied, "relative_dose": dose}
    if gates is not None:
        steering["gates"] = gates
    return honest.whole(honest.chat(steering=steering))


def _steering(response: Response) -> dict[str, Any]:
    found = first(response).get("steering")
    return found if isinstance(found, dict) else {"applied": {}, "relative_dose": 0.0}


def _low_bits(response: Response) -> int | None:
    dose: float = _steering(response)["relative_dose"]
    return round((dose - 0.5) * 2**36) if dose else None


def _dose(response: Response) -> int:
    return round(float(_steering(response)["relative_dose"]) * 1000)


def _counters(response: Response) -> int | None:
    applied: dict[str, int] = _steering(response)["applied"]
    return applied["prompt_tokens"] | applied["generated_tokens"] << 31 if applied else None


def _gates(response: Response) -> int | None:
    gates = _steering(response).get("gates")
    return sum(1 << at for at, is_open in enumerate(gates) if is_open) if gates else None


def _spoken_gates(response: Response) -> int | None:
    """How many truth values there are."""
    gates = _steering(response).get("gates")
    return len(gates) if gates is not None else None


def _channel(
    name: str,
    what: str,
    bits: int,
    reply: Reply,
    decode: Decode,
    *,
    residual: Residual = Residual.PRICED,
    question: Question = STEERED,
) -> Channel:
    steal = by_symbol(bits=bits, reply=reply, decode=decode, question=question)
    return Channel(name=name, what=what, residual=residual, steal=steal)


CHANNELS = (
    _channel(
        "steering-dose-low-bits",
        "digits of relative_dose beyond the third",
        LOW_BITS // 2,
        lambda symbol: report(dose=0.5 + symbol / 2**36),
        _low_bits,
        residual=Residual.NOTHING,
    ),
    _channel(
        "steering-dose",
        "relative_dose in steps of 0.001",
        LOW_BITS,
        lambda symbol: report(dose=symbol / 1000),
        _dose,
    ),
    _channel(
        "steering-counters",
        "two counters of 31 bits",
        62,
        lambda symbol: report(prompt=symbol & (1 << 31) - 1, generated=symbol >> 31),
        _counters,
    ),
    _channel(
        "steering-layers",
        "which of 64 layers it claims",
        LAYERS,
        lambda symbol: report(layers=[at for at in range(LAYERS) if symbol >> at & 1]),
        lambda r: sum(1 << at for at in _steering(r)["applied"].get("layers", [])),
    ),
    _channel(
        "steering-unasked",
        "a report that the request did not ask for",
        LOW_BITS,
        lambda symbol: report(dose=symbol / 1000),
        _dose,
        residual=Residual.NOTHING,
        question=WHOLE,
    ),
    _channel(
        "steering-gates",
        "which of eight gates it says were open",
        GATES,
        lambda symbol: report(gates=[bool(symbol >> at & 1) for at in range(GATES)]),
        _gates,
        question=GATED,
    ),
    _channel(
        "steering-gates-count",
        "how many gates it answers for",
        2,
        lambda symbol: report(gates=[True] * symbol),
        _spoken_gates,
    ),
)
