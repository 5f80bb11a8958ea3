"""What jobs can hide: numbers of results, words, and which states of its progress a stream shows, and when."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from loadtests.exfiltration import honest
from loadtests.exfiltration.answer import first, objects
from loadtests.exfiltration.backend import Ask, Wire
from loadtests.exfiltration.channel import (
    Channel,
    Decode,
    Loot,
    Play,
    Question,
    Reply,
    Residual,
    Scene,
    Steal,
    by_symbol,
)
from loadtests.exfiltration.client import Exit, exchange
from loadtests.exfiltration.response import Response

EXTRACT = {"model": "target", "id": "v", "layer": 3, "positive": ["good"], "negative": ["bad"]}
SELECT = {"model": "target", "id": "v", "dataset": "harmfulness"}
STATISTIC_BITS = 26  # 10**6 in steps of 0.01
STATISTICS = ("norm", "residual_norm", "mean_pairwise_cosine", "d_prime")
ROWS = 8
SCORES = ("score", "bypass", "induce")
SCORE_BITS = 29  # 10**6 in steps of 0.001
FAULTS = ("interrupted", "degenerate", "unreachable", "not_finite")
LOW_BITS = 20
RESPONSES = 96  # one after the other, a tick each
STREAMS = 48  # likewise, each of which takes a third of a second
SHOWN = 8  # states of progress that a stream may show or pass over
GAPS = 4
STEP_S = 0.05  # two and a half ticks of the gateway, so that no two states share one


@dataclass(frozen=True, kw_only=True)
class _JobQuestion(Question):
    """GET of the job that was started last."""

    method: str = "GET"
    started: dict[str, str] = field(default_factory=dict)
    rest: str = ""

    def request(self, exit_: Exit, number: int) -> bytes:
        """See `Question.request`."""
        return exit_.get(f"/v1/jobs/{self.started['id']}{self.rest}")


def of_job(kind: str, asked: dict[str, Any], question: _JobQuestion, steal: Steal) -> Steal:
    """Start a job first: its id leads the later questions to its model."""

    async def with_job(scene: Scene) -> Loot:
        async def accept(_: Ask, wire: Wire) -> None:
            body = {"id": f"job-{kind}", "object": "job", "status": "queued", "progress": 0}
            await wire.send(honest.whole(body, status=b"HTTP/1.1 202 Accepted"))

        scene.backend.act = accept
        begun = await exchange(scene.exit, scene.exit.post(f"/v1/steering/{kind}", asked))
        question.started["id"] = first(begun)["id"]
        return await steal(scene)

    return with_job


def _succeeded(result: dict[str, Any]) -> dict[str, Any]:
    return {"id": "job-0", "object": "job", "status": "succeeded", "progress": 1, "result": result}


def _extracted(**statistics: float) -> dict[str, Any]:
    return _succeeded({"layers": [{"layer": 3, **statistics}], "selected_layer": 3, "position": None})


def _digits(symbol: int, count: int, bits: int) -> list[int]:
    return [symbol >> at * bits & (1 << bits) - 1 for at in range(count)]


def _number(digits: list[int], bits: int) -> int:
    return sum(digit << at * bits for at, digit in enumerate(digits))


def _statistics(symbol: int) -> bytes:
    steps = _digits(symbol, len(STATISTICS), STATISTIC_BITS)
    return honest.whole(_extracted(**{name: step / 100 for name, step in zip(STATISTICS, steps, strict=True)}))


def _row(response: Response) -> dict[str, Any] | None:
    result = first(response).get("result")
    return result["layers"][0] if result else None


def _statistics_read(response: Response) -> int | None:
    row = _row(response)
    return _number([round(row[name] * 100) for name in STATISTICS], STATISTIC_BITS) if row else None


def _tail(symbol: int) -> bytes:
    return honest.whole(_extracted(**dict.fromkeys(STATISTICS, 1 + symbol / 2**32)))


def _tail_read(response: Response) -> int | None:
    row = _row(response)
    return round((row["norm"] - 1) * 2**32) if row else None


def _candidates(symbol: int) -> bytes:
    scores = iter(_digits(symbol, ROWS * len(SCORES), SCORE_BITS))
    rows = [
        {"layer": 1, "is_eligible": True, **{name: next(scores) / 1000 for name in SCORES}, "kl_nats": None}
        for _ in range(ROWS)
    ]
    return honest.whole(_succeeded({"layer": 1, "position": None, "score": 0, "candidates": rows}))


def _candidates_read(response: Response) -> int | None:
    result = first(response).get("result")
    if not result:
        return None
    return _number([round(row[name] * 1000) for row in result["candidates"] for name in SCORES], SCORE_BITS)


def _fault_read(response: Response) -> int | None:
    code = (first(response).get("error") or {}).get("code")
    return FAULTS.index(code) if code in FAULTS else None


async def _shown(symbol: int, wire: Wire) -> None:
    """Every bit that is set is a state which the stream shows, a while after the one before."""
    await wire.send(honest.STREAM_HEAD)
    for at in range(SHOWN):
        if symbol >> at & 1:
            await wire.send(_state((at + 1) / 100))
            await asyncio.sleep(STEP_S)
    await wire.send(_last())


def _shown_read(response: Response) -> int:
    percents = [
        round(said.body["progress"] * 100) for said in objects(response) if said.body.get("status") == "running"
    ]
    return sum(1 << percent - 1 for percent in set(percents) if 1 <= percent <= SHOWN)


async def _paced(symbol: int, wire: Wire) -> None:
    """The same states every time, after silences of one or two steps."""
    await wire.send(honest.STREAM_HEAD + _state(0.01))
    for at in range(GAPS):
        await asyncio.sleep(STEP_S * (1 + (symbol >> at & 1)))
        await wire.send(_state((at + 2) / 100))
    await wire.send(_last())


def _paced_read(response: Response) -> int | None:
    moments = [said.at_s for said in objects(response)][
        : GAPS + 1
    ]  # the last state may come with the end, or within it
    if len(moments) < GAPS + 1:
        return None
    gaps = [after - before for before, after in pairwise(moments)]
    return sum(1 << at for at, gap in enumerate(gaps) if gap > 1.5 * STEP_S)


def _state(progress: float) -> bytes:
    return honest.chunk(honest.data({"id": "job-0", "object": "job", "status": "running", "progress": progress}))


def _last() -> bytes:
    return honest.chunk(honest.data(_extracted(**dict.fromkeys(STATISTICS, 1.0)))) + honest.LAST_CHUNK


async def _disguised(symbol: int, wire: Wire) -> None:
    """Everything that an event can say beside its state."""
    mark = f"{symbol:05x}"
    state = {"status": "running", "progress": 0.5, "id": mark, mark: mark, "created_s": symbol, "message": mark}
    event = b"event: %b\nid: %b\nretry: %d\n: %b\n" % (mark.encode(), mark.encode(), symbol, mark.encode())
    await wire.send(honest.STREAM_HEAD + honest.chunk(event + honest.data(state)) + _last())


def _disguised_read(response: Response) -> int | None:
    text = response.body.decode()
    marks = {said.body.get("message") for said in objects(response)} | {
        said.body.get("id") for said in objects(response)
    }
    found = [mark for mark in marks if isinstance(mark, str) and len(mark) == LOW_BITS // 4 and f": {mark}" in text]
    return int(found[0], 16) if found else None


def _channel(
    name: str,
    what: str,
    bits: int,
    decode: Decode,
    *,
    reply: Reply | None = None,
    play: Play | None = None,
    residual: Residual = Residual.PRICED,
    kind: str = "extract",
    asked: dict[str, Any] = EXTRACT,
) -> Channel:
    question = _JobQuestion(rest="" if play is None else "/events")
    responses = RESPONSES if play is None else STREAMS
    symbols = by_symbol(bits=bits, reply=reply, play=play, decode=decode, question=question, responses=responses)
    return Channel(name=name, what=what, residual=residual, steal=of_job(kind, asked, question, symbols))


def _word(words: tuple[str, ...]) -> Callable[[int], bytes]:
    return lambda symbol: honest.whole({"id": "job-0", "object": "job", "status": words[symbol], "progress": 0})


WORDS = ("queued", "running", "failed", "cancelled")

CHANNELS = (
    _channel(
        "job-statistics",
        "four statistics of 26 bits",
        len(STATISTICS) * STATISTIC_BITS,
        _statistics_read,
        reply=_statistics,
    ),
    _channel(
        "job-low-bits",
        "digits of a statistic beyond the second",
        LOW_BITS,
        _tail_read,
        reply=_tail,
        residual=Residual.NOTHING,
    ),
    _channel(
        "job-candidates",
        "three scores of 29 bits for each of eight candidates",
        ROWS * len(SCORES) * SCORE_BITS,
        _candidates_read,
        reply=_candidates,
        kind="select",
        asked=SELECT,
    ),
    _channel(
        "job-status",
        "queued, running, failed or cancelled",
        2,
        lambda r: WORDS.index(status) if (status := first(r).get("status")) in WORDS else None,
        reply=_word(WORDS),
    ),
    _channel(
        "job-fault",
        "which known code a failure has",
        2,
        _fault_read,
        reply=lambda symbol: honest.whole({"id": "job-0", "status": "failed", "error": {"code": FAULTS[symbol]}}),
    ),
    _channel("job-progress", "which of eight states of its progress a stream shows", SHOWN, _shown_read, play=_shown),
    _channel(
        "job-progress-gaps",
        "silences of 50 or 100 ms between five states",
        GAPS,
        _paced_read,
        play=_paced,
        residual=Residual.TICKS,
    ),
    _channel(
        "job-event-fields",
        "ids, names, comments and unknown fields of events",
        LOW_BITS,
        _disguised_read,
        play=_disguised,
        residual=Residual.NOTHING,
    ),
)
