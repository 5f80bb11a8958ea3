"""What steering statistics can hide: doses, counters, layer sets, and the numbers of a job."""

from typing import Any

from loadtests.exfiltration import honest
from loadtests.exfiltration.answer import first
from loadtests.exfiltration.backend import Ask, Wire
from loadtests.exfiltration.channel import (
    WHOLE,
    Channel,
    Decode,
    Loot,
    Question,
    Reply,
    Residual,
    Scene,
    Steal,
    by_symbol,
)
from loadtests.exfiltration.client import exchange
from loadtests.exfiltration.response import Response

EXTRACT = "/v1/steering/extract"
VECTOR = {"model": "target", "id": "v", "layer": 3, "positive": ["good"], "negative": ["bad"]}
STATISTIC_BITS = 26  # 10**6 in steps of 0.01
STATISTICS = ("norm", "residual_norm", "mean_pairwise_cosine", "d_prime")
LOW_BITS = 20
LAYERS = 64
JOB_RESPONSES = 96  # one after the other, a tick each


def report(*, prompt: int = 4, generated: int = 20, layers: list[int] | None = None, dose: float = 0.5) -> bytes:
    """An answer with a steering report."""
    applied = {"prompt_tokens": prompt, "generated_tokens": generated, "layers": layers or [3]}
    steering = {"fingerprint": "0" * 16, "applied": applied, "relative_dose": dose}
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


def of_job(steal: Steal) -> Steal:
    """Start a job first: its id leads the later questions to its model."""

    async def with_job(scene: Scene) -> Loot:
        async def accept(_: Ask, wire: Wire) -> None:
            body = {"id": "job-0", "object": "job", "status": "queued", "progress": 0}
            await wire.send(honest.whole(body, status=b"HTTP/1.1 202 Accepted"))

        scene.backend.act = accept
        started = await exchange(scene.exit, scene.exit.post(EXTRACT, VECTOR))
        JOB.fields["id"] = first(started)["id"]
        return await steal(scene)

    return with_job


class _JobQuestion(Question):
    """GET of the job that was started last."""

    def request(self, exit_: Any, number: int) -> bytes:
        return bytes(exit_.get(f"/v1/jobs/{self.fields['id']}"))


JOB = _JobQuestion(method="GET", fields={})


def _job(symbol: int) -> bytes:
    steps = [symbol >> at * STATISTIC_BITS & (1 << STATISTIC_BITS) - 1 for at in range(len(STATISTICS))]
    result = {"layer": 3} | {name: step / 100 for name, step in zip(STATISTICS, steps, strict=True)}
    return honest.whole({"id": "job-0", "object": "job", "status": "succeeded", "progress": 1, "result": result})


def _job_read(response: Response) -> int | None:
    result = first(response).get("result")
    if not result:
        return None
    steps = [round(float(result[name]) * 100) for name in STATISTICS]
    return sum(step << at * STATISTIC_BITS for at, step in enumerate(steps))


def _tail(symbol: int) -> bytes:
    result = {"layer": 3} | dict.fromkeys(STATISTICS, 1 + symbol / 2**32)
    return honest.whole({"id": "job-0", "object": "job", "status": "succeeded", "progress": 1, "result": result})


def _tail_read(response: Response) -> int | None:
    result = first(response).get("result")
    return round((result["norm"] - 1) * 2**32) if result else None


def _channel(
    name: str,
    what: str,
    bits: int,
    reply: Reply,
    decode: Decode,
    *,
    residual: Residual = Residual.PRICED,
    question: Question = WHOLE,
) -> Channel:
    if question is JOB:
        steal = of_job(by_symbol(bits=bits, reply=reply, decode=decode, question=JOB, responses=JOB_RESPONSES))
    else:
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
    _channel("job-statistics", "four statistics of 26 bits", 4 * STATISTIC_BITS, _job, _job_read, question=JOB),
    _channel(
        "job-low-bits",
        "digits of a statistic beyond the second",
        LOW_BITS,
        _tail,
        _tail_read,
        residual=Residual.NOTHING,
        question=JOB,
    ),
    _channel(
        "job-status",
        "queued, running, succeeded or failed",
        2,
        lambda symbol: honest.whole({"status": ("queued", "running", "succeeded", "failed")[symbol], "progress": 0}),
        lambda r: {"queued": 0, "running": 1, "succeeded": 2, "failed": 3}.get(first(r).get("status", "")),
        question=JOB,
    ),
)
