"""What a head can hide: names, case, order, values, reason phrases, trailers, interim responses. All of it must vanish."""

from email.utils import formatdate, parsedate_to_datetime

from loadtests.exfiltration import honest
from loadtests.exfiltration.channel import STREAM, Channel, Decode, Reply, Residual, by_symbol
from loadtests.exfiltration.hiding import cased, from_cased, from_hexadecimal, from_order, hexadecimal, order
from loadtests.exfiltration.response import Response

WORD_BITS = 32
EPOCH_S = 1_790_000_000
ORDERED = (b"x-a", b"x-b", b"x-c", b"x-d")


def word(symbol: int) -> bytes:
    """A symbol of 32 bits as text."""
    return hexadecimal(symbol, WORD_BITS).encode()


def in_header(line: bytes) -> Reply:
    """An answer with one more header; %s stands for the symbol."""
    return lambda symbol: honest.whole(headers=[line % word(symbol)])


def header_value(name: bytes, *, prefix: bytes = b"") -> Decode:
    """The decoder of a header's value."""

    def decode(response: Response) -> int | None:
        value = response.header(name)
        return from_hexadecimal(value.rpartition(prefix)[2] if value is not None and prefix else value)

    return decode


def _value(name: str, what: str, line: bytes, header: bytes, prefix: bytes = b"") -> Channel:
    steal = by_symbol(bits=WORD_BITS, reply=in_header(line), decode=header_value(header, prefix=prefix))
    return Channel(name=name, what=what, residual=Residual.NOTHING, steal=steal)


def _head(name: str, what: str, bits: int, reply: Reply, decode: Decode) -> Channel:
    steal = by_symbol(bits=bits, reply=reply, decode=decode)
    return Channel(name=name, what=what, residual=Residual.NOTHING, steal=steal)


def _name(response: Response) -> int | None:
    names = (name for name, _ in response.headers if name.startswith(b"x-hidden-"))
    return from_hexadecimal(next(names, b"").removeprefix(b"x-hidden-"))


def _case(response: Response) -> int:
    name = next((name for name, _ in response.headers if name.lower() == b"content-type"), b"")
    return from_cased(name.decode().replace("-", "")) & 0xFF


def _cased_reply(symbol: int) -> bytes:
    name = cased(symbol, "contentt")
    return honest.whole(type_=f"{name[:7]}-{name[7:]}ype: application/json".encode())


def _ordered(response: Response) -> int | None:
    return from_order([name for name, _ in response.headers if name in ORDERED], ORDERED)


def _date(response: Response) -> int | None:
    value = response.header(b"date")
    return None if value is None else int(parsedate_to_datetime(value.decode()).timestamp()) - EPOCH_S


def _dated(symbol: int) -> bytes:
    return honest.whole(headers=[b"Date: " + formatdate(EPOCH_S + symbol, usegmt=True).encode()])


def _trailed(symbol: int) -> bytes:
    return honest.stream(honest.events()).removesuffix(b"\r\n") + b"X-Hidden: " + word(symbol) + b"\r\n\r\n"


def _interim(symbol: int) -> bytes:
    hint = b"HTTP/1.1 103 Early Hints\r\nLink: </%s>; rel=preload\r\n\r\n" % word(symbol)
    return hint + honest.whole()


def _continued(symbol: int) -> bytes:
    return b"HTTP/1.1 100 Continue\r\n\r\n" * symbol + honest.whole()


def _repeated(symbol: int) -> bytes:
    return honest.whole(headers=[b"X-Hidden: 1"] * symbol)


def _version(symbol: int) -> bytes:
    return honest.whole(status=b"HTTP/1.0 200 OK" if symbol else b"HTTP/1.1 200 OK")


CHANNELS = (
    _head(
        "header-names",
        "the name of one more header",
        WORD_BITS,
        lambda symbol: honest.whole(headers=[b"x-hidden-%s: 1" % word(symbol)]),
        _name,
    ),
    _head("header-case", "upper and lower case in Content-Type's name", 8, _cased_reply, _case),
    _head(
        "header-order",
        "which of 16 orders four headers stand in",
        4,
        lambda symbol: honest.whole(headers=[name + b": 1" for name in order(symbol, ORDERED)]),
        _ordered,
    ),
    _head(
        "header-repeats",
        "how often a header is repeated",
        4,
        _repeated,
        lambda response: sum(name == b"X-Hidden" for name, _ in response.headers),
    ),
    _value("header-values", "the value of an unknown header", b"X-Hidden: %s", b"x-hidden"),
    _value("cookies", "a cookie", b"Set-Cookie: s=%s", b"set-cookie", b"="),
    _value("etag", "an entity tag", b"ETag: %s", b"etag"),
    _value("server-timing", "a Server-Timing metric", b"Server-Timing: db;dur=%s", b"server-timing", b"="),
    _value("request-id", "an X-Request-Id", b"X-Request-Id: %s", b"x-request-id"),
    _value("traceparent", "a trace id", b"traceparent: 00-%s", b"traceparent", b"-"),
    Channel(
        name="content-type-parameter",
        what="a parameter of Content-Type",
        residual=Residual.NOTHING,
        steal=by_symbol(
            bits=WORD_BITS,
            reply=lambda symbol: honest.whole(type_=honest.JSON_TYPE + b"; x=" + word(symbol)),
            decode=header_value(b"content-type", prefix=b"x="),
        ),
    ),
    _head("date", "the second that the backend claims", 16, _dated, _date),
    _head(
        "reason-phrase",
        "the words after the status code",
        WORD_BITS,
        lambda symbol: honest.whole(status=b"HTTP/1.1 200 " + word(symbol)),
        lambda response: from_hexadecimal(response.status_line[13:]),
    ),
    _head("http-version", "1.0 or 1.1", 1, _version, lambda response: int(response.head.startswith(b"HTTP/1.0"))),
    _head(
        "interim-103",
        "a header of a 103 response before the answer",
        WORD_BITS,
        _interim,
        lambda response: from_hexadecimal(b"".join(response.interim).partition(b"</")[2][:8]),
    ),
    _head("interim-100", "how many 100 responses come first", 4, _continued, lambda response: len(response.interim)),
    Channel(
        name="trailers",
        what="a trailer after the last chunk",
        residual=Residual.NOTHING,
        steal=by_symbol(
            bits=WORD_BITS,
            reply=_trailed,
            decode=lambda response: from_hexadecimal(response.trailer.partition(b": ")[2]),
            question=STREAM,
        ),
    ),
)
