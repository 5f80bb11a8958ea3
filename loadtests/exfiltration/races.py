"""Thefts that look for a moment in which nobody counts: racing for the last bit, many tenants, leaving early, silence."""

import asyncio
from math import log2

from loadtests.exfiltration import honest
from loadtests.exfiltration.answer import text_of
from loadtests.exfiltration.backend import Ask, Wire
from loadtests.exfiltration.channel import STREAM, Channel, Loot, Question, Residual, Scene
from loadtests.exfiltration.client import Exit, exchange
from loadtests.exfiltration.gateway import TENANTS, key_of, tenant_name
from loadtests.exfiltration.information import prefix_length
from loadtests.exfiltration.response import Response

RACERS = 200
RACE_TEXT_DIGITS = 64
NIBBLE_DIGITS = 16
BITS_PER_DIGIT = 4
RETRIES_MAX = 60
RETRY_LEAVE_BYTES = 1500
RETRY_DIGITS = 4096
SILENT_BLOCK = 4096  # requests, one of which is answered
SILENT_BLOCKS = 2
SILENT_AT_ONCE = 48
SILENT_PATIENCE_S = 0.1


def digits(scene: Scene, count: int) -> str:
    """Random hex digits, four bits each."""
    return f"{scene.rng.getrandbits(BITS_PER_DIGIT * count):0{count}x}"


def say(texts: list[str], scene: Scene) -> None:
    """The backend streams the text of each request's number."""

    async def act(ask: Ask, wire: Wire) -> None:
        await wire.send(honest.stream(honest.events(texts[ask.number])))

    scene.backend.act = act


def loot_of(texts: list[str], answers: list[Response], *, note: str = "") -> Loot:
    """Digits that came through, up to the first that did not."""
    found = sum(prefix_length(text, text_of(answer)) for text, answer in zip(texts, answers, strict=True))
    sent = sum(map(len, texts))
    return Loot(sent_bits=BITS_PER_DIGIT * sent, decoded_bits=BITS_PER_DIGIT * found, responses=len(answers), note=note)


async def _race(scene: Scene) -> Loot:
    texts = [digits(scene, RACE_TEXT_DIGITS) for _ in range(RACERS)]
    say(texts, scene)
    question = Question(model="last", fields={"stream": True, "max_tokens": 64})
    async with asyncio.TaskGroup() as tasks:
        asked = [
            tasks.create_task(exchange(scene.exit, question.request(scene.exit, number))) for number in range(RACERS)
        ]
    answers = [task.result() for task in asked]
    return loot_of(texts, answers, note=f"{sum(answer.status == 200 for answer in answers)} of {RACERS} answered")


async def _crowd(scene: Scene) -> Loot:
    texts = [digits(scene, NIBBLE_DIGITS) for _ in range(2 * TENANTS)]
    say(texts, scene)
    question = Question(model="crowd", fields={"stream": True, "max_tokens": 16})
    answers = []
    for number in range(len(texts)):
        tenant = Exit(port=scene.exit.port, key=key_of(tenant_name(number % TENANTS)))
        answers.append(await exchange(tenant, question.request(tenant, number)))
    return loot_of(texts, answers, note=f"{sum(answer.status == 200 for answer in answers)} of {len(texts)} answered")


async def _leave_and_retry(scene: Scene) -> Loot:
    """Read a little, hang up, ask for what comes after it."""
    secret = digits(scene, RETRY_DIGITS)

    async def act(ask: Ask, wire: Wire) -> None:
        pieces = [secret[at : at + 16] for at in range(ask.number, len(secret), 16)]
        await wire.send(honest.STREAM_HEAD)
        for piece in pieces:
            await wire.send(honest.chunk(honest.event({"content": piece})))
            await asyncio.sleep(0.01)
        await wire.send(b"".join(map(honest.chunk, honest.closing())) + honest.LAST_CHUNK)

    scene.backend.act = act
    got = ""
    for _ in range(RETRIES_MAX):
        request = STREAM.request(scene.exit, len(got))
        got += text_of(await exchange(scene.exit, request, leave_after_bytes=RETRY_LEAVE_BYTES))
    found = prefix_length(secret, got)
    return Loot(sent_bits=BITS_PER_DIGIT * len(got), decoded_bits=BITS_PER_DIGIT * found, responses=RETRIES_MAX)


async def _silence(scene: Scene) -> Loot:
    """Which one of many requests is answered at all. The others hear nothing and hang up: does nothing cost anything?"""
    block = SILENT_BLOCK // 4 if scene.quick else SILENT_BLOCK
    spoken = [scene.rng.randrange(block) for _ in range(SILENT_BLOCKS)]
    heard: list[list[int]] = [[] for _ in spoken]

    async def act(ask: Ask, wire: Wire) -> None:
        which, at = divmod(ask.number, block)
        if spoken[which] == at:
            await wire.send(honest.stream(honest.closing()))
        else:
            await wire.gone()

    scene.backend.act = act
    numbers = iter(range(block * SILENT_BLOCKS))

    async def listen() -> None:
        for number in numbers:
            request = STREAM.request(scene.exit, number)
            answer = await exchange(scene.exit, request, limit_s=SILENT_PATIENCE_S)
            if answer.head:
                heard[number // block].append(number % block)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(SILENT_AT_ONCE):
            tasks.create_task(listen())
    right = sum(got == [position] for got, position in zip(heard, spoken, strict=True))
    return Loot(
        sent_bits=SILENT_BLOCKS * log2(block),
        decoded_bits=right * log2(block),
        responses=block * SILENT_BLOCKS,
        note=f"{SILENT_BLOCKS} answers in {block * SILENT_BLOCKS} requests, the others abandoned",
    )


CHANNELS = (
    Channel(name="race-for-the-last-bit", what="200 clients at once", residual=Residual.PRICED, steal=_race),
    Channel(name="many-tenants", what="20 tenants, a few bits each", residual=Residual.PRICED, steal=_crowd),
    Channel(
        name="abort-and-retry",
        what="hang up after a few pieces, ask for the rest",
        residual=Residual.PRICED,
        steal=_leave_and_retry,
    ),
    Channel(
        name="silence",
        what="which one of thousands of abandoned requests is answered",
        residual=Residual.PRICED,
        steal=_silence,
        slow=True,
    ),
)
