"""Answers meant to exhaust the gateway: endless heads, events, bodies, and compressed nothing. Bounded, with a clear error."""

import asyncio
import gzip
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from loadtests.exfiltration import honest
from loadtests.exfiltration.answer import error_of, finish_of, text_of
from loadtests.exfiltration.backend import Ask, Wire, be_honest
from loadtests.exfiltration.channel import STREAM, WHOLE, Channel, Loot, Question, Residual, Scene
from loadtests.exfiltration.client import exchange
from loadtests.exfiltration.outcome import HASTY, HASTY_STREAM
from loadtests.exfiltration.response import Response

MIB = 1 << 20
GROWTH_MIB_MAX = 48  # an unstreamed answer may have 8 MiB, and joining and decoding it takes copies
FLOOD_BYTES_MAX = 96 * MIB
BLOCK_BYTES = 64 << 10
SLOW_S = 0.05
PATIENCE_S = 20.0
PLAIN_PATIENCE_S = 4.0  # beyond the two seconds that the gateway gives these answers

Bomb = Callable[[Wire], Awaitable[None]]


async def flood(wire: Wire, begin: bytes, block: bytes) -> None:
    """Repeat a block until nobody takes it any more."""
    await wire.send(begin)
    for _ in range(FLOOD_BYTES_MAX // len(block)):
        await wire.send(block)
    await wire.close()


def flooding(begin: bytes, unit: bytes) -> Bomb:
    """An endless answer."""
    block = unit * max(BLOCK_BYTES // len(unit), 1)
    return lambda wire: flood(wire, begin, block)


def chunked(begin: bytes, unit: bytes) -> Bomb:
    """An endless chunked answer."""
    return flooding(begin, honest.chunk(unit * max(BLOCK_BYTES // len(unit), 1)))


async def _compressed(wire: Wire) -> None:
    body = gzip.compress(b"\0" * (64 * MIB), 6)
    await wire.send(honest.whole(body, headers=[b"Content-Encoding: gzip"]))


async def _nested(wire: Wire) -> None:
    body = honest.compact(honest.chat())[:-1] + b',"x":' + b"[" * MIB + b"]" * MIB + b"}"
    await wire.send(honest.whole(body))


async def _slow_events(wire: Wire) -> None:
    await wire.send(honest.STREAM_HEAD)
    for _ in range(int(PATIENCE_S / SLOW_S)):
        await wire.send(honest.chunk(b": still here\n\n"))
        await asyncio.sleep(SLOW_S)


async def _slow_body(wire: Wire) -> None:
    answer = honest.whole()
    for at in range(len(answer)):
        await wire.send(answer[at : at + 1])
        await asyncio.sleep(SLOW_S)


async def _slow_interim(wire: Wire) -> None:
    for _ in range(int(PATIENCE_S / SLOW_S)):
        await wire.send(b"HTTP/1.1 102 Processing\r\n\r\n")
        await asyncio.sleep(SLOW_S)


WHOLE_HEAD = b"HTTP/1.1 200 OK\r\n" + honest.JSON_TYPE + b"\r\nTransfer-Encoding: chunked\r\n\r\n"
TOKEN_BLOCK = honest.data({"choices": [{"index": 0, "delta": {}, "token_ids": [999] * 8000}]})
TEXT_BLOCK = honest.event({"content": "all work and no play " * 40})


def exploding(bomb: Bomb, question: Question) -> Callable[[Scene], Awaitable[Loot]]:
    """Set one bomb off; watch the gateway's memory, what the client is told, and whether the next answer is honest."""

    async def steal(scene: Scene) -> Loot:
        before_mib = memory_mib(scene.gateway_pid, "VmRSS")
        forget_peak(scene.gateway_pid)

        async def act(_: Ask, wire: Wire) -> None:
            await bomb(wire)

        scene.backend.act = act
        answer = await exchange(
            scene.exit,
            question.request(scene.exit, 0),
            limit_s=PATIENCE_S if scene.through_gateway else PLAIN_PATIENCE_S,
        )
        growth_mib = memory_mib(scene.gateway_pid, "VmHWM") - before_mib
        scene.backend.act = be_honest
        after = await exchange(scene.exit, WHOLE.request(scene.exit, 0))
        seconds = answer.last_s - answer.began_s
        if not scene.through_gateway:
            received = sum(len(chunk.data) for chunk in answer.chunks) + len(answer.head)
            note = f"{max(received, answer.unread_bytes) / MIB:.1f} MiB in {seconds:.1f} s, {answer.end}"
            return Loot(sent_bits=0, decoded_bits=0, responses=1, note=note)
        faults = []
        if growth_mib > GROWTH_MIB_MAX:
            faults.append(f"{growth_mib:.0f} MiB more memory")
        if not clear_end(answer):
            faults.append(f"no clear error: {answer.status} {answer.end}")
        if text_of(after) != honest.TEXT:
            faults.append("the next answer fails")
        note = f"{answer.status} {said(answer)}, +{growth_mib:.1f} MiB, {seconds:.1f} s"
        return Loot(sent_bits=0, decoded_bits=0, responses=1, note=note, fault="; ".join(faults))

    return steal


def clear_end(answer: Response) -> bool:
    """An honest finish, or an error in the shape that clients know."""
    return finish_of(answer) is not None or bool(error_of(answer))


def said(answer: Response) -> str:
    """How the answer ended, in a word."""
    return finish_of(answer) or str(error_of(answer).get("code")) or answer.end


def memory_mib(pid: int | None, name: str) -> float:
    """A figure of /proc/<pid>/status."""
    if pid is None:
        return 0.0
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def forget_peak(pid: int | None) -> None:
    """Start VmHWM again (proc(5): 5 to clear_refs). Without the right to, older peaks count too."""
    if pid is not None:
        with suppress(OSError):
            Path(f"/proc/{pid}/clear_refs").write_text("5")


def _channel(name: str, what: str, bomb: Bomb, question: Question = STREAM) -> Channel:
    return Channel(name=name, what=what, residual=Residual.BOUNDED, steal=exploding(bomb, question))


CHANNELS = (
    _channel("gzip-bomb", "64 MiB of zeros in 64 KiB of gzip", _compressed, WHOLE),
    _channel(
        "endless-headers",
        "header lines without end",
        flooding(b"HTTP/1.1 200 OK\r\n", b"X-Pad: " + b"a" * 1000 + b"\r\n"),
    ),
    _channel("endless-header", "one header without end", flooding(b"HTTP/1.1 200 OK\r\nX-Pad: ", b"a" * 1024)),
    _channel("endless-status", "a reason phrase without end", flooding(b"HTTP/1.1 200 ", b"a" * 1024)),
    _channel("endless-events", "comments without end", chunked(honest.STREAM_HEAD, b": " + b"a" * 1000 + b"\n\n")),
    _channel("endless-event", "one event without end", chunked(honest.STREAM_HEAD, b"a" * 1024)),
    _channel("endless-text", "text without end", chunked(honest.STREAM_HEAD, TEXT_BLOCK)),
    _channel(
        "endless-token-ids", "token ids that nobody asked for, without end", chunked(honest.STREAM_HEAD, TOKEN_BLOCK)
    ),
    _channel("endless-body", "a JSON body without end", chunked(WHOLE_HEAD, b'{"x":"' + b"a" * 1024), WHOLE),
    _channel(
        "endless-chunk-extension",
        "a chunk's extension without end",
        flooding(honest.STREAM_HEAD + b"5;x=", b"a" * 1024),
    ),
    _channel(
        "endless-trailer",
        "trailers without end",
        flooding(honest.STREAM_HEAD + b"0\r\n", b"X-Pad: " + b"a" * 1000 + b"\r\n"),
    ),
    _channel("deep-nesting", "a million brackets in an unknown field", _nested, WHOLE),
    _channel("slow-events", "a comment every 50 ms, for ever", _slow_events, HASTY_STREAM),
    _channel("slow-body", "a byte every 50 ms", _slow_body, HASTY),
    _channel("slow-interim", "a 102 response every 50 ms, for ever", _slow_interim, HASTY),
)
