"""kill -9 in the middle of streams, again and again: the ledger must never say less than what clients received."""

import asyncio
import os
import signal
from contextlib import AbstractAsyncContextManager

from loadtests.bench.peer import PeerError
from loadtests.exfiltration import honest
from loadtests.exfiltration.answer import text_of
from loadtests.exfiltration.backend import Ask, Wire
from loadtests.exfiltration.channel import Channel, Loot, Question, Residual, Scene
from loadtests.exfiltration.client import Exit, exchange
from loadtests.exfiltration.gateway import Weir, running_weir
from loadtests.exfiltration.information import prefix_length
from loadtests.exfiltration.races import BITS_PER_DIGIT, digits

LIVES = 3
STREAMS = 8
STREAM_DIGITS = 4096
LIFE_S = 0.5
ASKING = Question(model="mortal", fields={"stream": True})


async def _steal(scene: Scene) -> Loot:
    texts = [digits(scene, STREAM_DIGITS) for _ in range(STREAMS * LIVES)]

    async def act(ask: Ask, wire: Wire) -> None:
        text = texts[ask.number]
        await wire.send(honest.STREAM_HEAD)
        for at in range(0, len(text), 64):
            await wire.send(honest.chunk(honest.event({"content": text[at : at + 64]})))
            await asyncio.sleep(0.01)
        await wire.send(b"".join(map(honest.chunk, honest.closing())) + honest.LAST_CHUNK)

    scene.backend.act = act
    if not scene.through_gateway:
        return _loot(texts, await _listen(scene.exit, range(len(texts))), charged_bits=None)
    try:
        got = [part for life in range(LIVES) for part in await _life(scene, life)]
        async with _mortal(scene) as weir:
            charges = await weir.charges()
    except PeerError as fault:
        return Loot(sent_bits=0, decoded_bits=0, responses=1, fault=str(fault).partition("\n")[0])
    return _loot(texts, got, charged_bits=charges.used_bits)


def _mortal(scene: Scene) -> AbstractAsyncContextManager[Weir]:
    return running_weir(directory=scene.directory / "crash", backend_port=scene.backend.port, name="mortal")


async def _life(scene: Scene, life: int) -> list[str]:
    """What clients got of the streams that were open when the gateway was killed."""
    got: list[str] = []
    try:
        async with _mortal(scene) as weir:
            exit_ = Exit(port=weir.port, key=scene.exit.key)
            asking = asyncio.create_task(_listen(exit_, range(life * STREAMS, (life + 1) * STREAMS)))
            await asyncio.sleep(LIFE_S)
            os.kill(weir.pid, signal.SIGKILL)
            got = await asking
    except PeerError:
        if not got:
            raise  # it did not even start; that it died later is the point
    return got


async def _listen(exit_: Exit, numbers: range) -> list[str]:
    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(exchange(exit_, ASKING.request(exit_, number))) for number in numbers]
    return [text_of(task.result()) for task in asked]


def _loot(texts: list[str], got: list[str], *, charged_bits: int | None) -> Loot:
    found = sum(prefix_length(text, part) for text, part in zip(texts, got, strict=True))
    sent = sum(map(len, texts))
    note = f"{LIVES} kills; the ledger says {charged_bits} bits" if charged_bits is not None else ""
    return Loot(
        sent_bits=BITS_PER_DIGIT * sent, decoded_bits=BITS_PER_DIGIT * found, responses=len(got),
        charged_bits=charged_bits, note=note,
    )  # fmt: skip


CHANNELS = (
    Channel(
        name="crash",
        what="kill -9 while streams are open, restart on the same ledger",
        residual=Residual.PRICED,
        steal=_steal,
        slow=True,
    ),
)
