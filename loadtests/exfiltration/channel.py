"""A channel: one way to carry bits out. A new one is a function and a line in a table (docs/attacks.md)."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from loadtests.exfiltration.backend import Ask, Backend, Wire
from loadtests.exfiltration.client import Exit, exchange
from loadtests.exfiltration.information import information_bits
from loadtests.exfiltration.response import Response

RESPONSES = 256  # so that a decoder which is right in 3 of 4 guesses is told from luck
STREAMS_AT_ONCE = 16
CHAT = "/v1/chat/completions"


class Residual(Enum):
    """What ATTACKS.md leaves to a channel."""

    NOTHING = "0"  # must decode nothing at all
    PRICED = "priced"  # decoded <= charged
    TICKS = "ticks"  # decoded <= charged for everything but text, and hardly anything above it per second
    BOUNDED = "bounded"  # carries no bits: must not cost memory, and ends in a clear error


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Where a theft takes place."""

    exit: Exit
    backend: Backend
    rng: random.Random  # the secret's bits come from here; the decoder never sees it
    quick: bool
    directory: Path
    through_gateway: bool
    gateway_pid: int | None = None  # to read its memory


@dataclass(frozen=True, kw_only=True)
class Loot:
    """What a theft carried off."""

    sent_bits: float
    decoded_bits: float
    answers: Sequence[tuple[int, Response]] = ()  # of a channel of symbols, for the trained decoder
    symbol_bits: int = 0
    responses: int = 0
    charged_bits: int | None = None  # where the theft had gateways of its own
    note: str = ""
    fault: str = ""  # a promise other than bits that was broken


Steal = Callable[[Scene], Awaitable[Loot]]


@dataclass(frozen=True, kw_only=True)
class Channel:
    """One row of the table."""

    name: str
    what: str
    residual: Residual
    steal: Steal
    slow: bool = False  # left out of --quick unless it is named


@dataclass(frozen=True, kw_only=True)
class Question:
    """What the decoder asks for, again and again."""

    path: str = CHAT
    fields: dict[str, Any] = field(default_factory=dict)
    model: str = "target"
    method: str = "POST"
    limit_s: float = 10.0
    linger_s: float = 0.0

    def request(self, exit_: Exit, number: int) -> bytes:
        """The bytes of request `number`."""
        if self.method == "GET":
            return exit_.get(self.path)
        messages = [{"role": "user", "content": str(number)}]
        return exit_.post(self.path, {"model": self.model, "messages": messages, "max_tokens": 1000} | self.fields)


WHOLE = Question()
STREAM = Question(fields={"stream": True})
STREAM_USAGE = Question(fields={"stream": True, "stream_options": {"include_usage": True}})

Reply = Callable[[int], bytes]
Play = Callable[[int, Wire], Awaitable[None]]
Decode = Callable[[Response], int | None]


def by_symbol(
    *,
    bits: int,
    decode: Decode,
    reply: Reply | None = None,
    play: Play | None = None,
    question: Question = WHOLE,
    responses: int = RESPONSES,
    at_once: int = STREAMS_AT_ONCE,
) -> Steal:
    """A theft of one symbol of `bits` bits in each answer. `reply` makes the answer's bytes; `play` acts it out."""

    async def steal(scene: Scene) -> Loot:
        symbols = [scene.rng.getrandbits(bits) for _ in range(responses)]

        async def act(ask: Ask, wire: Wire) -> None:
            symbol = symbols[ask.number] if ask.body else symbols[numbers[0]]
            if play is not None:
                await play(symbol, wire)
            else:
                assert reply is not None
                await wire.send(reply(symbol))

        scene.backend.act = act
        numbers = [0]  # of the question under way, where a GET cannot say it
        answers = await ask_all(scene, question, responses, at_once=at_once, asked=numbers)
        pairs = [(symbol, masked(decode(answer), bits)) for symbol, answer in zip(symbols, answers, strict=True)]
        return Loot(
            sent_bits=bits * responses,
            decoded_bits=information_bits(pairs, bits=bits),
            answers=list(zip(symbols, answers, strict=True)),
            symbol_bits=bits,
            responses=responses,
        )

    return steal


async def ask_all(
    scene: Scene, question: Question, responses: int, *, at_once: int, asked: list[int] | None = None
) -> list[Response]:
    """The answers to so many questions, by number."""
    waiting = list(range(responses - 1, -1, -1))
    answers: dict[int, Response] = {}

    async def worker() -> None:
        while waiting:
            number = waiting.pop()
            if asked is not None:
                asked[0] = number
            request = question.request(scene.exit, number)
            answers[number] = await exchange(scene.exit, request, limit_s=question.limit_s, linger_s=question.linger_s)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(1 if question.method == "GET" else at_once):
            tasks.create_task(worker())
    return [answers[number] for number in range(responses)]


def masked(guess: int | None, bits: int) -> int | None:
    """A guess within the symbol's range; one outside is no guess."""
    return guess if guess is not None and 0 <= guess < 1 << bits else None
