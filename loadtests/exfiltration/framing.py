"""What HTTP framing can hide: chunk sizes and extensions, transfer codings, whether the connection stays open."""

from loadtests.exfiltration import honest
from loadtests.exfiltration.backend import Wire
from loadtests.exfiltration.channel import STREAM, WHOLE, Channel, Decode, Question, Reply, Residual, by_symbol
from loadtests.exfiltration.headers import WORD_BITS, word
from loadtests.exfiltration.hiding import from_hexadecimal
from loadtests.exfiltration.response import Response

LINGERING = Question(linger_s=0.1)
SIZE_BASE_BYTES = 24


def _sized(symbol: int) -> bytes:
    body = b"".join(honest.events())
    cut = SIZE_BASE_BYTES + symbol
    return honest.stream([body[:cut], body[cut:]])


def _size(response: Response) -> int | None:
    return len(response.chunks[0].data) - SIZE_BASE_BYTES if response.chunks else None


def _extended(symbol: int) -> bytes:
    body = b"".join(honest.events())
    return honest.STREAM_HEAD + b"%x;x=%s\r\n%s\r\n" % (len(body), word(symbol), body) + honest.LAST_CHUNK


def _extension(response: Response) -> int | None:
    return from_hexadecimal(response.chunks[0].size_line.partition(b"x=")[2]) if response.chunks else None


def _padded(symbol: int) -> bytes:
    body = b"".join(honest.events())
    return honest.STREAM_HEAD + b"0" * symbol + honest.chunk(body) + honest.LAST_CHUNK


def _padding(response: Response) -> int | None:
    line = response.chunks[0].size_line if response.chunks else b""
    return len(line) - len(line.lstrip(b"0"))


def _coded(symbol: int) -> bytes:
    body = honest.compact(honest.chat())
    if not symbol:
        return honest.whole(body)
    head = b"HTTP/1.1 200 OK\r\n" + honest.JSON_TYPE + b"\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + honest.chunk(body) + honest.LAST_CHUNK


async def _keep_or_close(symbol: int, wire: Wire) -> None:
    await wire.send(honest.whole(headers=[b"Connection: close"] if symbol else []))
    if symbol:
        await wire.close()


async def _close_quietly(symbol: int, wire: Wire) -> None:
    await wire.send(honest.whole())
    if symbol:
        await wire.close()


async def _surplus(symbol: int, wire: Wire) -> None:
    await wire.send(honest.whole() + word(symbol))
    await wire.close()


def _closed(response: Response) -> int:
    return int(response.end == "closed" or response.header(b"connection") == b"close")


def _channel(name: str, what: str, bits: int, reply: Reply, decode: Decode, question: Question = STREAM) -> Channel:
    steal = by_symbol(bits=bits, reply=reply, decode=decode, question=question)
    return Channel(name=name, what=what, residual=Residual.NOTHING, steal=steal)


CHANNELS = (
    _channel("chunk-sizes", "where the body is cut into HTTP chunks", 5, _sized, _size),
    _channel("chunk-extensions", "an extension on a chunk's size line", WORD_BITS, _extended, _extension),
    _channel("chunk-size-zeros", "leading zeros of a chunk's size", 3, _padded, _padding),
    _channel(
        "transfer-coding",
        "Content-Length or chunked",
        1,
        _coded,
        lambda response: int(response.header(b"transfer-encoding") is not None),
        WHOLE,
    ),
    Channel(
        name="connection-header",
        what="Connection: close, or kept open",
        residual=Residual.NOTHING,
        steal=by_symbol(bits=1, play=_keep_or_close, decode=_closed, question=LINGERING),
    ),
    Channel(
        name="connection-end",
        what="a connection closed without a word after the answer",
        residual=Residual.NOTHING,
        steal=by_symbol(bits=1, play=_close_quietly, decode=_closed, question=LINGERING),
    ),
    Channel(
        name="bytes-after-the-answer",
        what="bytes after the declared length",
        residual=Residual.NOTHING,
        steal=by_symbol(
            bits=WORD_BITS,
            play=_surplus,
            decode=lambda response: from_hexadecimal(response.surplus),
            question=LINGERING,
        ),
    ),
)
