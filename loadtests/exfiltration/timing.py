"""When things leave: time to first byte, gaps, duration, order. Ticks are priced; what is finer than a tick must vanish."""

import asyncio
from collections.abc import Callable
from itertools import pairwise
from math import factorial, log2

from loadtests.exfiltration import honest
from loadtests.exfiltration.answer import texts
from loadtests.exfiltration.backend import Ask, Wire
from loadtests.exfiltration.channel import (
    STREAM,
    Channel,
    Loot,
    Play,
    Question,
    Residual,
    Scene,
    Steal,
    ask_all,
    by_symbol,
)
from loadtests.exfiltration.information import information_bits
from loadtests.exfiltration.response import Response

TICK_S = 0.02  # the gateway's; the thief knows it
STEP_S = 2 * TICK_S  # whole answers: twice the clock, so that nothing falls between two symbols
DELAY_BITS = 4
DELAYED = 128  # responses; each takes 0.3 s
PIECE = "sixteen letters!"  # one quantum
GAPS = 24  # in each stream
GAP_STREAMS = 16
GAP_STREAMS_AT_ONCE = 3  # more would blur each other's milliseconds
ORDERED_STREAMS = 32
ORDER_ROUNDS = 3
RANK_BITS = 5


async def _late(symbol: int, wire: Wire) -> None:
    await asyncio.sleep(symbol * STEP_S)
    await wire.send(honest.whole())


async def _long(symbol: int, wire: Wire) -> None:
    *before, _ = events = honest.events()
    await wire.send(honest.STREAM_HEAD + b"".join(map(honest.chunk, before[:1])))
    await asyncio.sleep(symbol * STEP_S)
    await wire.send(b"".join(map(honest.chunk, events[1:])) + honest.LAST_CHUNK)


def _first_byte(response: Response) -> int | None:
    return int((response.first_s - response.began_s) / STEP_S) if response.first_s is not None else None


def _duration(response: Response) -> int:
    return int((response.last_s - response.began_s) / STEP_S)


def _delay(name: str, what: str, play: Play, decode: Callable[[Response], int | None], question: Question) -> Channel:
    steal = by_symbol(bits=DELAY_BITS, play=play, decode=decode, question=question, at_once=12, responses=DELAYED)
    return Channel(name=name, what=what, residual=Residual.TICKS, steal=steal)


def by_gaps(*, first_s: float, step_s: float, bits: int) -> Steal:
    """Bits in the silences between pieces of one quantum each."""

    async def steal(scene: Scene) -> Loot:
        secret = [[scene.rng.getrandbits(bits) for _ in range(GAPS)] for _ in range(GAP_STREAMS)]

        async def act(ask: Ask, wire: Wire) -> None:
            loop = asyncio.get_running_loop()
            piece = honest.chunk(honest.event({"content": PIECE}))
            await wire.send(honest.STREAM_HEAD + piece)
            due_s = loop.time()
            for symbol in secret[ask.number]:
                due_s += first_s + symbol * step_s  # to a schedule: a late piece does not delay those after it
                await asyncio.sleep(due_s - loop.time())
                await wire.send(piece)
            await wire.send(b"".join(map(honest.chunk, honest.closing())) + honest.LAST_CHUNK)

        scene.backend.act = act
        answers = await ask_all(scene, STREAM, GAP_STREAMS, at_once=GAP_STREAMS_AT_ONCE)
        pairs: list[tuple[int, int | None]] = []
        for symbols, answer in zip(secret, answers, strict=True):
            guesses = [round((gap - first_s) / step_s) for gap in gaps_of(answer)]
            guesses += [0] * (GAPS - len(guesses))
            pairs += [
                (symbol, min(max(guess, 0), (1 << bits) - 1)) for symbol, guess in zip(symbols, guesses, strict=False)
            ]
        return Loot(
            sent_bits=bits * GAPS * GAP_STREAMS,
            decoded_bits=information_bits(pairs, bits=bits),
            responses=GAP_STREAMS,
        )

    return steal


def gaps_of(response: Response) -> list[float]:
    """Seconds between the arrivals of consecutive pieces, also of those that came together."""
    moments = [at_s for text, at_s in texts(response) for _ in range(len(text) // len(PIECE))]
    return [after - before for before, after in pairwise(moments)]


def by_order(*, apart_s: float) -> Steal:
    """Which of 32 open streams ends first, second, and so on."""

    async def steal(scene: Scene) -> Loot:
        sent_bits = decoded_bits = 0.0
        for _ in range(ORDER_ROUNDS):
            ranks = scene.rng.sample(range(ORDERED_STREAMS), ORDERED_STREAMS)
            decoded_bits += log2(factorial(ORDERED_STREAMS)) * await _ordered_share(scene, ranks, apart_s)
            sent_bits += log2(factorial(ORDERED_STREAMS))
        return Loot(sent_bits=sent_bits, decoded_bits=decoded_bits, responses=ORDERED_STREAMS * ORDER_ROUNDS)

    return steal


async def _ordered_share(scene: Scene, ranks: list[int], apart_s: float) -> float:
    all_here = asyncio.Barrier(ORDERED_STREAMS)

    async def act(ask: Ask, wire: Wire) -> None:
        await all_here.wait()
        await asyncio.sleep(ranks[ask.number] * apart_s)
        await wire.send(honest.stream(honest.events()))

    scene.backend.act = act
    answers = await ask_all(scene, STREAM, ORDERED_STREAMS, at_once=ORDERED_STREAMS)
    arrived = sorted(range(ORDERED_STREAMS), key=lambda number: answers[number].first_s or 0.0)
    pairs = [(ranks[number], rank) for rank, number in enumerate(arrived)]
    # The bits of a rank are not independent: their information serves as a share of log2 32! only.
    return information_bits(pairs, bits=RANK_BITS) / (RANK_BITS * ORDERED_STREAMS)


CHANNELS = (
    _delay("first-byte-time", "one of 16 delays before the answer, 40 ms apart", _late, _first_byte, Question()),
    _delay("duration", "one of 16 delays before the end, 40 ms apart", _long, _duration, STREAM),
    Channel(
        name="gaps",
        what="one of 4 silences between pieces, one tick apart",
        residual=Residual.TICKS,
        steal=by_gaps(first_s=TICK_S, step_s=TICK_S, bits=2),
    ),
    Channel(
        name="gaps-below-a-tick",
        what="silences of 4 ms or 14 ms between pieces",
        residual=Residual.TICKS,
        steal=by_gaps(first_s=0.004, step_s=0.010, bits=1),
    ),
    Channel(
        name="completion-order",
        what="the order in which 32 streams end, 25 ms apart",
        residual=Residual.TICKS,
        steal=by_order(apart_s=0.025),
    ),
    Channel(
        name="completion-order-fast",
        what="the same, 1 ms apart: within a tick or two",
        residual=Residual.TICKS,
        steal=by_order(apart_s=0.001),
    ),
)
