"""What an event stream can hide beside its data: comments, names, ids, empty deltas, and where the text is cut."""

from collections.abc import Callable

from loadtests.exfiltration import honest
from loadtests.exfiltration.answer import objects
from loadtests.exfiltration.channel import STREAM, Channel, Decode, Residual, by_symbol
from loadtests.exfiltration.headers import WORD_BITS, word
from loadtests.exfiltration.hiding import from_hexadecimal
from loadtests.exfiltration.response import Response

CUTS = 16  # between the first letters of the text
EMPTIES: tuple[dict[str, str | None], ...] = ({}, {"content": ""}, {"role": "assistant"}, {"content": None})


def _line(name: str, what: str, line: bytes) -> Channel:
    """A 32-bit word in a line of the event that is not data; %s stands for it."""
    before = line.partition(b"%s")[0]

    def decode(response: Response) -> int | None:
        return from_hexadecimal(response.body.partition(before)[2][:8])

    return _channel(name, what, WORD_BITS, lambda symbol: [line % word(symbol), *honest.events()], decode)


def _channel(name: str, what: str, bits: int, payloads: Callable[[int], list[bytes]], decode: Decode) -> Channel:
    steal = by_symbol(
        bits=bits,
        reply=lambda symbol: honest.stream([b"".join(payloads(symbol))]),
        decode=decode,
        question=STREAM,
    )
    return Channel(name=name, what=what, residual=Residual.NOTHING, steal=steal)


def _empties(symbol: int) -> list[bytes]:
    return [honest.event(dict(EMPTIES[0]))] * symbol + honest.events()


def _empty_count(response: Response) -> int:
    return len(objects(response)) - len(honest.events()) + 1


def _kinds(symbol: int) -> list[bytes]:
    return [honest.event(dict(EMPTIES[symbol])), *honest.events()]


def _kind(response: Response) -> int | None:
    deltas = [said.body["choices"][0]["delta"] for said in objects(response) if said.body.get("choices")]
    return EMPTIES.index(deltas[0]) if deltas and deltas[0] in EMPTIES else None


def _cut(symbol: int) -> list[bytes]:
    pieces, start = [], 0
    for at in range(CUTS):
        if symbol >> at & 1:
            pieces.append(honest.TEXT[start : at + 1])
            start = at + 1
    pieces.append(honest.TEXT[start:])
    return [*(honest.event({"content": piece}) for piece in pieces), *honest.closing()]


def _cuts(response: Response) -> int | None:
    symbol, at = 0, 0
    for said in objects(response):
        for choice in said.body.get("choices") or ():
            at += len((choice.get("delta") or {}).get("content") or "")
            symbol |= 1 << at - 1 if 0 < at <= CUTS else 0
    return symbol


def _endings(symbol: int) -> list[bytes]:
    return [b"".join(honest.events()).replace(b"\n", (b"\n", b"\r\n", b"\r", b"\n")[symbol])]


def _ending(response: Response) -> int:
    return 1 if b"\r\n" in response.body else 2 if b"\r" in response.body else 0


def _split(symbol: int) -> list[bytes]:
    event = honest.event({"content": honest.TEXT})
    return [event.replace(b',"object"', b',\ndata:"object"').replace(b'{"object"', b'{\ndata: "object"')] + (
        honest.closing() if symbol else [b"data: {}\n\n", *honest.closing()]
    )


CHANNELS = (
    _line("sse-comments", "a comment", b": %s\n\n"),
    _line("sse-names", "an event's name", b"event: %s\ndata: {}\n\n"),
    _line("sse-ids", "an event's id", b"id: %s\ndata: {}\n\n"),
    _line("sse-retry", "a retry hint", b"retry: %s\n\n"),
    _line("sse-fields", "a field of no standard", b"x: %s\n\n"),
    _channel("sse-empty-deltas", "how many empty deltas come first", 4, _empties, _empty_count),
    _channel("sse-delta-kinds", "which kind of empty delta comes first", 2, _kinds, _kind),
    _channel("delta-boundaries", "where the text is cut into deltas", CUTS, _cut, _cuts),
    _channel("sse-line-ends", "LF, CRLF or CR", 1, _endings, _ending),
    _channel("sse-data-lines", "empty objects between events", 1, _split, lambda r: int(b"data: {}\n" not in r.body)),
    _channel(
        "sse-data-space",
        "data: with a space or without",
        1,
        lambda symbol: [b"".join(honest.events()).replace(b"data: ", b"data:" if symbol else b"data: ")],
        lambda response: int(b"data:{" in response.body),
    ),
)
