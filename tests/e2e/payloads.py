"""Hostile bytes in both directions: hand-made ones by name, and seeded mutations of a good message. What two parsers say of them."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import h11
import httptools

from tests.e2e.backend import response, whole_body
from tests.e2e.processes import ALICE

SEED = 20_260_727
PATH = "/v1/chat/completions"
LINE = f"POST {PATH} HTTP/1.1"
HONEST, SECOND = "honest", "second"  # the prompts of the request itself, and of one that hides behind or inside it


@dataclass(frozen=True, kw_only=True)
class Payload:
    """Bytes as they are sent, a pause between the segments. `@@@@` stands for the payload's number wherever it is."""

    name: str
    segments: tuple[bytes, ...]

    def numbered(self, number: int) -> tuple[bytes, ...]:
        mark = b"%04d" % number
        return tuple(segment.replace(b"@@@@", mark) for segment in self.segments)


def asked(prompt: str) -> bytes:
    """The JSON of a good request; as long for every number."""
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": f"{prompt} @@@@"}]}).encode()


def head(*lines: str, line: str = LINE, host: bool = True) -> bytes:
    """A head with a key and whatever else is given."""
    given = [
        line,
        *(["Host: gateway"] if host else []),
        f"Authorization: Bearer {ALICE}",
        "Content-Type: application/json",
    ]
    return "\r\n".join([*given, *lines, "", ""]).encode("latin-1")


BODY = asked(HONEST)
SIZE = len(BODY)
SIZED = f"Content-Length: {SIZE}"
CHUNKED = "Transfer-Encoding: chunked"
GOOD = head(SIZED) + BODY
HIDDEN = head(f"Content-Length: {len(asked(SECOND))}") + asked(SECOND)
IN_CHUNKS = b"%x\r\n%s\r\n0\r\n\r\n" % (SIZE, BODY)
CHUNKED_HEAD = head(CHUNKED)


def chunks(size: str | bytes = b"", *, data: bytes = BODY, end: bytes = b"\r\n0\r\n\r\n") -> bytes:
    """A chunked request whose first size line is spelled so."""
    spelled = size.encode("latin-1") if isinstance(size, str) else size
    return CHUNKED_HEAD + (spelled or b"%x" % SIZE) + b"\r\n" + data + end


def framed(*lines: str, body: bytes = BODY, line: str = LINE, host: bool = True, tail: bytes = b"") -> bytes:
    return head(*lines, line=line, host=host) + body + tail


# Requests that are whole and unmistakable: served, each as often as it says.
SOUND: dict[str, bytes] = {
    "sized": GOOD,
    "chunked": chunks(),
    "two chunks": CHUNKED_HEAD + b"1\r\n{\r\n%x\r\n%s\r\n0\r\n\r\n" % (SIZE - 1, BODY[1:]),
    "http 1.0": framed(SIZED, line=f"POST {PATH} HTTP/1.0"),
    "lower-case names": GOOD.replace(b"Content-Length", b"content-length"),
    "empty lines first": b"\r\n\r\n" + GOOD,
    "continue": framed(SIZED, "Expect: 100-continue"),
    "trailer": chunks(end=b"\r\n0\r\nX-Trailer: 1\r\n\r\n"),
}

_RAW_CHUNKS = len(CHUNKED_HEAD)

REQUESTS: dict[str, bytes] = {
    # Content-Length
    "two lengths, alike": framed(SIZED, SIZED),
    "two lengths, shorter second": framed(SIZED, "Content-Length: 0", tail=HIDDEN),
    "two lengths, shorter first": framed("Content-Length: 0", SIZED),
    "two lengths, cases": framed(SIZED, f"content-length: {SIZE + 1}"),
    "length list, alike": framed(f"Content-Length: {SIZE}, {SIZE}"),
    "length list": framed(f"Content-Length: {SIZE}, 0"),
    "length plus": framed(f"Content-Length: +{SIZE}"),
    "length minus": framed(f"Content-Length: -{SIZE}"),
    "length minus zero": framed("Content-Length: -0", body=HIDDEN),
    "length hex": framed(f"Content-Length: {SIZE:#x}"),
    "length underscore": framed("Content-Length: 1_0"),
    "length decimal": framed(f"Content-Length: {SIZE}.0"),
    "length exponent": framed("Content-Length: 1e2"),
    "length with a space inside": framed("Content-Length: 1 0"),
    "length with a tab inside": framed("Content-Length: 1\t0"),
    "length empty": framed("Content-Length:"),
    "length blank": framed("Content-Length:  "),
    "length word": framed("Content-Length: banana"),
    "length quoted": framed(f'Content-Length: "{SIZE}"'),
    "length superscript": framed("Content-Length: \xb2"),
    "length overflow": framed(f"Content-Length: {2**64 + SIZE}"),
    "length overflow far": framed("Content-Length: " + "9" * 400),
    "length semicolon": framed(f"Content-Length: {SIZE};x=1"),
    "length NUL": framed(f"Content-Length: {SIZE}\0"),
    "length vertical tab": framed(f"Content-Length: \x0b{SIZE}"),
    "length space before colon": framed(f"Content-Length : {SIZE}"),
    "length tab before colon": framed(f"Content-Length\t: {SIZE}"),
    "length space before name": framed("X: 1", f" Content-Length: {SIZE}"),
    "length NUL in name": framed(f"Content-Length\0: {SIZE}"),
    "length CR in name": framed(f"Content-Length\r: {SIZE}"),
    "length underscore name": framed(f"Content_Length: {SIZE}"),
    "length underscore name beside": framed("Content_Length: 0", SIZED, tail=HIDDEN),
    "length non-ASCII name": framed(f"Content\xadLength: {SIZE}"),
    "length without colon": framed(f"Content-Length {SIZE}"),
    "length behind bare LF": framed(f"X: 1\nContent-Length: {SIZE}"),
    "length behind bare CR": framed(f"X: 1\rContent-Length: {SIZE}"),
    "no length": framed(),
    "length too long": framed(f"Content-Length: {SIZE + 10}"),
    "length on GET": framed(SIZED, line=f"GET {PATH} HTTP/1.1"),
    "length on HEAD": framed(SIZED, line=f"HEAD {PATH} HTTP/1.1"),
    "hidden behind a GET's body": framed(f"Content-Length: {len(HIDDEN)}", body=HIDDEN, line="GET /v1/models HTTP/1.1"),
    # Transfer-Encoding
    "length and chunked": framed(SIZED, CHUNKED, body=IN_CHUNKS),
    "chunked and length": framed(CHUNKED, SIZED, body=IN_CHUNKS),
    "CL.TE": framed("Content-Length: 6", CHUNKED, body=b"0\r\n\r\n", tail=HIDDEN),
    "TE.CL": framed("Content-Length: 4", CHUNKED, body=b"%x\r\n%s\r\n0\r\n\r\n" % (len(HIDDEN), HIDDEN)),
    "chunked twice": framed(CHUNKED, CHUNKED, body=IN_CHUNKS),
    "chunked list twice": framed("Transfer-Encoding: chunked, chunked", body=IN_CHUNKS),
    "identity, chunked": framed("Transfer-Encoding: identity, chunked", body=IN_CHUNKS),
    "chunked, identity": framed("Transfer-Encoding: chunked, identity", body=IN_CHUNKS),
    "gzip, chunked": framed("Transfer-Encoding: gzip, chunked", body=IN_CHUNKS),
    "identity": framed("Transfer-Encoding: identity", SIZED),
    "gzip": framed("Transfer-Encoding: gzip", SIZED),
    "empty coding": framed("Transfer-Encoding:", SIZED),
    "comma, chunked": framed("Transfer-Encoding: , chunked", body=IN_CHUNKS),
    "chunked comma": framed("Transfer-Encoding: chunked,", body=IN_CHUNKS),
    "xchunked": framed("Transfer-Encoding: xchunked", SIZED),
    "chunkedx": framed("Transfer-Encoding: chunkedx", body=IN_CHUNKS),
    "chunked semicolon": framed("Transfer-Encoding: chunked;q=1", body=IN_CHUNKS),
    "chunked quoted": framed('Transfer-Encoding: "chunked"', body=IN_CHUNKS),
    "chunked dotless i": framed("Transfer-Encoding: chun\xc4\xb1ked", body=IN_CHUNKS),
    "chunked vertical tab": framed("Transfer-Encoding: \x0bchunked", body=IN_CHUNKS),
    "chunked NUL": framed("Transfer-Encoding: chunked\0", body=IN_CHUNKS),
    "chunked space before colon": framed("Transfer-Encoding : chunked", body=IN_CHUNKS),
    "chunked tab before colon": framed("Transfer-Encoding\t: chunked", SIZED),
    "chunked folded": framed("Transfer-Encoding:\r\n chunked", body=IN_CHUNKS),
    "chunked in a fold": framed(SIZED, "X: 1\r\n Transfer-Encoding: chunked"),
    "chunked underscore name": framed("Transfer_Encoding: chunked", SIZED),
    "chunked behind bare LF": framed("X: 1\nTransfer-Encoding: chunked", SIZED),
    "chunked behind bare CR": framed("X: 1\rTransfer-Encoding: chunked", SIZED),
    "chunked on 1.0": framed(CHUNKED, body=IN_CHUNKS, line=f"POST {PATH} HTTP/1.0"),
    "chunked on 1.0 with keep-alive": framed(
        CHUNKED, "Connection: keep-alive", body=IN_CHUNKS, line=f"POST {PATH} HTTP/1.0", tail=HIDDEN
    ),
    "chunked on GET": framed(CHUNKED, body=IN_CHUNKS, line="GET /v1/models HTTP/1.1", tail=HIDDEN),
    "two codings in two lines": framed("Transfer-Encoding: identity", CHUNKED, body=IN_CHUNKS),
    # chunk sizes
    "chunk 0x": chunks(f"0x{SIZE:x}"),
    "chunk plus": chunks(f"+{SIZE:x}"),
    "chunk minus": chunks(f"-{SIZE:x}"),
    "chunk underscore": chunks(f"0_{SIZE:x}"),
    "chunk space before": chunks(f" {SIZE:x}"),
    "chunk space after": chunks(f"{SIZE:x} "),
    "chunk tab after": chunks(f"{SIZE:x}\t"),
    "chunk h": chunks(f"{SIZE:x}h"),
    "chunk word": chunks("banana"),
    "chunk empty": chunks(" "),
    "chunk overflow": chunks(f"1{SIZE:016x}"),
    "chunk overflow far": chunks("f" * 40),
    "chunk NUL": chunks(f"{SIZE:x}\0"),
    "chunk bare LF": CHUNKED_HEAD + b"%x\n%s\r\n0\r\n\r\n" % (SIZE, BODY),
    "chunk bare CR": CHUNKED_HEAD + b"%x\r%s\r\n0\r\n\r\n" % (SIZE, BODY),
    "chunk CR CR LF": CHUNKED_HEAD + b"%x\r\r\n%s\r\n0\r\n\r\n" % (SIZE, BODY),
    "chunk extension with bare LF": chunks(b"%x;a\nb" % SIZE),
    "chunk extension with bare CR": chunks(b"%x;a\rb" % SIZE),
    "chunk extension with NUL": chunks(b"%x;a\0b" % SIZE),
    "chunk extension of 64 KiB": chunks(b"%x;" % SIZE + b"a" * 65536),
    "chunk unfinished quote": chunks(b'%x;a="b' % SIZE),
    "chunk data too short": chunks(f"{SIZE + 1:x}"),
    "chunk data too long": chunks(f"{SIZE - 1:x}"),
    "chunk data without CRLF": chunks(end=b"0\r\n\r\n"),
    "chunk data, two bytes for CRLF": chunks(end=b"XX0\r\n\r\n"),
    "chunk data, bare LF": chunks(end=b"\n0\r\n\r\n"),
    "last chunk, bare LF": chunks(end=b"\r\n0\n\n"),
    "last chunk, minus": chunks(end=b"\r\n-0\r\n\r\n"),
    "last chunk of zeros and a word": chunks(end=b"\r\n0000x\r\n\r\n"),
    "no last chunk": chunks(end=b"\r\n"),
    "last chunk without end": chunks(end=b"\r\n0\r\n"),
    "length as trailer": chunks(end=b"\r\n0\r\nContent-Length: 5\r\n\r\n"),
    "host as trailer": chunks(end=b"\r\n0\r\nHost: elsewhere\r\n\r\n"),
    "trailer folded": chunks(end=b"\r\n0\r\nX: 1\r\n 2\r\n\r\n"),
    "trailer bare LF": chunks(end=b"\r\n0\r\nX: 1\nY: 2\r\n\r\n"),
    "trailer NUL": chunks(end=b"\r\n0\r\nX: \0\r\n\r\n"),
    "trailer without colon": chunks(end=b"\r\n0\r\nbanana\r\n\r\n"),
    "trailer is a request": chunks(end=b"\r\n0\r\n" + HIDDEN),
    "a thousand trailers": chunks(end=b"\r\n0\r\n" + b"X: 1\r\n" * 1000 + b"\r\n"),
    # lines and headers
    "folded": framed(SIZED, "X: 1\r\n 2"),
    "folded with tab": framed(SIZED, "X: 1\r\n\t2"),
    "folded first": LINE.encode() + b"\r\n " + GOOD.partition(b"\r\n")[2],
    "bare LF throughout": head(SIZED).replace(b"\r\n", b"\n") + BODY,
    "bare LF at the end of the head": head(SIZED)[:-4] + b"\n\n" + BODY,
    "bare LF last": head(SIZED)[:-2] + b"\n" + BODY,
    "bare CR throughout": head(SIZED).replace(b"\r\n", b"\r") + BODY,
    "CR CR LF": head(SIZED).replace(b"\r\n", b"\r\r\n") + BODY,
    "NUL in a value": framed(SIZED, "X: a\0b"),
    "NUL in a name": framed(SIZED, "X\0Y: 1"),
    "control byte in a value": framed(SIZED, "X: a\x01b"),
    "DEL in a value": framed(SIZED, "X: a\x7fb"),
    "no name": framed(SIZED, ": 1"),
    "no colon": framed(SIZED, "banana"),
    "space in a name": framed(SIZED, "X Y: 1"),
    "non-ASCII name": framed(SIZED, "X\xe9: 1"),
    "bracket in a name": framed(SIZED, "X[]: 1"),
    "a value of 64 KiB": framed(SIZED, "X: " + "x" * 65536),
    "a name of 64 KiB": framed(SIZED, "X" * 65536 + ": 1"),
    "a hundred headers": framed(SIZED, *(f"X-{i}: 1" for i in range(100))),
    "two keys": framed(SIZED, "Authorization: Bearer other"),
    "underscore twin of the key": framed(SIZED, "X_Forwarded_For: 1"),
    # host
    "no host": framed(SIZED, host=False),
    "two hosts": framed(SIZED, "Host: elsewhere"),
    "two hosts, alike": framed(SIZED, "Host: gateway"),
    "host with a space": framed(SIZED, "Host: a b", host=False),
    "host space before colon": framed(SIZED, "Host : gateway", host=False),
    # request line
    "0.9": f"GET {PATH}\r\n\r\n".encode(),
    "0.9 post": f"POST {PATH}\r\n\r\n".encode() + BODY,
    "version 0.9": framed(SIZED, line=f"POST {PATH} HTTP/0.9"),
    "version 1.2": framed(SIZED, line=f"POST {PATH} HTTP/1.2"),
    "version 2.0": framed(SIZED, line=f"POST {PATH} HTTP/2.0", tail=HIDDEN),
    "version 3": framed(SIZED, line=f"POST {PATH} HTTP/3"),
    "version 11": framed(SIZED, line=f"POST {PATH} HTTP/11"),
    "version 1.10": framed(SIZED, line=f"POST {PATH} HTTP/1.10"),
    "version comma": framed(SIZED, line=f"POST {PATH} HTTP/1,1"),
    "version lower case": framed(SIZED, line=f"POST {PATH} http/1.1"),
    "version of ICE": framed(SIZED, line=f"POST {PATH} ICE/1.0"),
    "version of RTSP": framed(SIZED, line=f"POST {PATH} RTSP/1.0"),
    "version missing": framed(SIZED, line=f"POST {PATH} "),
    "two spaces": framed(SIZED, line=f"POST  {PATH} HTTP/1.1"),
    "two spaces before the version": framed(SIZED, line=f"POST {PATH}  HTTP/1.1"),
    "tab for space": framed(SIZED, line=f"POST\t{PATH}\tHTTP/1.1"),
    "space first": framed(SIZED, line=f" POST {PATH} HTTP/1.1"),
    "space last": framed(SIZED, line=f"POST {PATH} HTTP/1.1 "),
    "space in the path": framed(SIZED, line=f"POST {PATH} x HTTP/1.1"),
    "NUL in the path": framed(SIZED, line=f"POST {PATH}\0 HTTP/1.1"),
    "CR in the path": framed(SIZED, line=f"POST {PATH}\r HTTP/1.1"),
    "non-ASCII in the path": framed(SIZED, line=f"POST {PATH}\xe9 HTTP/1.1"),
    "absolute form": framed(SIZED, line=f"POST http://gateway{PATH} HTTP/1.1"),
    "absolute form elsewhere": framed(SIZED, line=f"POST http://127.0.0.1:9{PATH} HTTP/1.1"),
    "absolute form without host": framed(SIZED, line=f"POST http://{PATH} HTTP/1.1"),
    "authority form": framed(SIZED, line="POST gateway:80 HTTP/1.1"),
    "asterisk form": framed(SIZED, line="OPTIONS * HTTP/1.1"),
    "connect": framed(line="CONNECT gateway:80 HTTP/1.1", body=b"", tail=HIDDEN),
    "connect to the path": framed(line=f"CONNECT {PATH} HTTP/1.1", body=b"", tail=HIDDEN),
    "connect with a body": framed(SIZED, line="CONNECT gateway:80 HTTP/1.1", tail=HIDDEN),
    "lower-case method": framed(SIZED, line=f"post {PATH} HTTP/1.1"),
    "unknown method": framed(SIZED, line=f"BREW {PATH} HTTP/1.1"),
    "method with a quote": framed(SIZED, line=f'P"OST {PATH} HTTP/1.1'),
    "a path of 64 KiB": framed(SIZED, line=f"POST {PATH}?{'x' * 65536} HTTP/1.1"),
    # connection, upgrade, expect
    "hidden after close": framed(SIZED, "Connection: close", tail=HIDDEN),
    "hidden after 1.0": framed(SIZED, line=f"POST {PATH} HTTP/1.0", tail=HIDDEN),
    "connection names the length": framed(SIZED, "Connection: Content-Length"),
    "connection names the coding": framed(CHUNKED, "Connection: Transfer-Encoding", body=IN_CHUNKS),
    "upgrade h2c": framed(SIZED, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk", tail=HIDDEN),
    "upgrade websocket": framed(
        SIZED, "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: x", tail=HIDDEN
    ),
    "upgrade tcp": framed(SIZED, "Connection: Upgrade", "Upgrade: tcp", tail=HIDDEN),
    "upgrade of a GET": framed("Connection: Upgrade", "Upgrade: websocket", body=b"", line=f"GET {PATH} HTTP/1.1", tail=b"\x81\x05hello"),
    "old websocket": framed(SIZED, "Sec-WebSocket-Key1: 1"),
    "expect twice": framed(SIZED, "Expect: 100-continue", "Expect: 100-continue"),
    "expect something else": framed(SIZED, "Expect: 200-ok"),
    "expect on 1.0": framed(SIZED, "Expect: 100-continue", line=f"POST {PATH} HTTP/1.0"),
    "expect, then silence": head(SIZED, "Expect: 100-continue"),
    # behind a good one
    "pipelined": GOOD + HIDDEN,
    "pipelined after chunks": chunks() + HIDDEN,
    "pipelined after a GET": framed(body=b"", line="GET /v1/models HTTP/1.1", tail=HIDDEN),
    "half of one behind": GOOD + b"POST  /v1/chat/completions HTTP/1.1\r\nX: ",
    # other protocols, and nonsense
    "h2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    "TLS hello": b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03" + bytes(range(150)),
    "PROXY protocol": b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\n" + GOOD,
    "PROXY protocol 2": b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + bytes(12) + GOOD,
    "SSH": b"SSH-2.0-OpenSSH_9.9\r\n",
    "SOCKS": b"\x05\x01\x00",
    "a response": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "zeros": bytes(1000),
    "noise": bytes(random.Random(SEED).randbytes(1000)),
    "UTF-16": "\ufeff".encode("utf-16-le") + GOOD.decode().encode("utf-16-le"),
    "byte order mark": b"\xef\xbb\xbf" + GOOD,
    "only empty lines": b"\r\n" * 8,
    "a head without end": head(SIZED)[:-2],
    "half a line": b"POST /v1/chat",
    "one byte": b"P",
    "body cut": GOOD[:-5],
    "chunk cut": chunks()[:-20],
    "gzip that is none": framed(SIZED, "Content-Encoding: gzip"),
    "garbage after": GOOD + b"\x00\x01\x02\r\n\r\n",
    "a half request after": GOOD + HIDDEN[:60],
    "nothing": b"",
}  # fmt: skip

_SEED_HEADERS = (
    b"Content-Length: 0", b"Content-Length: 1", b"Content-Length: 99999", b"Content-Length:", b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: identity", b"Transfer-Encoding: chunked, gzip", b"Transfer-Encoding:", b"Connection: close",
    b"Connection: keep-alive", b"Connection: Upgrade", b"Host: elsewhere", b"Host:", b"Expect: 100-continue", b"Upgrade: h2c",
    b"Upgrade: websocket", b"Content_Length: 0", b"X: 1\r\n 2", b"Trailer: Content-Length", b"Content-Encoding: gzip",
)  # fmt: skip
_BYTES = b'\0\t\n\r \x0b\x0c\x1f"%+,-./0123456789:;=AZ_az\x7f\x80\xa0\xff'
_STARTS = (GOOD, chunks(), GOOD + HIDDEN, chunks() + HIDDEN)


def _outside(rng: random.Random, data: bytes) -> int:
    """A place in the heads and the framing: what stands in the JSON is no matter of HTTP."""
    bodies = [(at, at + SIZE) for body in (BODY, asked(SECOND)) if (at := data.find(body)) >= 0]
    return rng.choice([at for at in range(len(data)) if not any(start <= at < end for start, end in bodies)])


def _delete(rng: random.Random, data: bytes) -> tuple[bytes, ...]:
    at = _outside(rng, data)
    return (data[:at] + data[at + 1 :],)


def _replace(rng: random.Random, data: bytes) -> tuple[bytes, ...]:
    at = _outside(rng, data)
    return (data[:at] + bytes([rng.choice(_BYTES)]) + data[at + 1 :],)


def _insert(rng: random.Random, data: bytes) -> tuple[bytes, ...]:
    at = _outside(rng, data)
    return (data[:at] + bytes([rng.choice(_BYTES)]) + data[at:],)


def _lines(data: bytes) -> tuple[list[bytes], bytes]:
    start, _, rest = data.partition(b"\r\n\r\n")
    return start.split(b"\r\n"), rest


def _header_insert(rng: random.Random, data: bytes) -> tuple[bytes, ...]:
    lines, rest = _lines(data)
    lines.insert(rng.randint(1, len(lines)), rng.choice(_SEED_HEADERS))
    return (b"\r\n".join(lines) + b"\r\n\r\n" + rest,)


def _header_delete(rng: random.Random, data: bytes) -> tuple[bytes, ...]:
    lines, rest = _lines(data)
    del lines[rng.randrange(len(lines))]
    return (b"\r\n".join(lines) + b"\r\n\r\n" + rest,)


def _header_replace(rng: random.Random, data: bytes) -> tuple[bytes, ...]:
    lines, rest = _lines(data)
    lines[rng.randrange(1, len(lines))] = rng.choice(_SEED_HEADERS)
    return (b"\r\n".join(lines) + b"\r\n\r\n" + rest,)


def _concat(rng: random.Random, data: bytes) -> tuple[bytes, ...]:
    return (data + rng.choice((HIDDEN[rng.randrange(40) :], b"\r\n" + HIDDEN, b"\0" + HIDDEN, b"0\r\n\r\n" + HIDDEN)),)


def _split(rng: random.Random, data: bytes) -> tuple[bytes, ...]:
    """A mutated one in two segments: what the parser is told late."""
    (mutated,) = rng.choice((_delete, _replace, _insert, _header_insert))(rng, data)
    at = rng.randrange(1, len(mutated))
    return mutated[:at], mutated[at:]


def _shift(rng: random.Random, data: bytes) -> tuple[bytes, ...]:
    """A head that claims a body longer or shorter than it is, so that the next head begins elsewhere."""
    by = rng.choice((-40, -2, -1, 1, 2, 40))
    size = b"%d" % (SIZE + by) if b"Content-Length: %d" % SIZE in data else b"%x" % (SIZE + by)
    return (
        data.replace(b"%d" % SIZE, size, 1)
        if b"Length" in data.partition(b"\r\n\r\n")[0]
        else data.replace(b"%x\r\n" % SIZE, size + b"\r\n", 1),
    )


MUTATORS: dict[str, Callable[[random.Random, bytes], tuple[bytes, ...]]] = {
    "byte deleted": _delete,
    "byte replaced": _replace,
    "byte inserted": _insert,
    "header inserted": _header_insert,
    "header deleted": _header_delete,
    "header replaced": _header_replace,
    "concatenated": _concat,
    "split": _split,
    "shifted": _shift,
}


def requests(*, mutations: int) -> list[Payload]:
    """All hand-made ones, each also broken in two behind its head, and as many distinct mutations of each kind."""
    made = [Payload(name=name, segments=(data,)) for name, data in {**SOUND, **REQUESTS}.items()]
    made += [
        Payload(name=f"{payload.name}, in two", segments=(data[: at + 4], data[at + 4 :]))
        for payload in made
        for data in payload.segments
        if 0 <= (at := data.find(b"\r\n\r\n")) < len(data) - 4
    ]
    return made + list(_mutated(mutations))


def _mutated(count: int) -> Iterator[Payload]:
    rng = random.Random(SEED)
    seen: set[tuple[bytes, ...]] = {(start,) for start in _STARTS}
    for kind, mutate in MUTATORS.items():
        left = count
        for _ in range(50 * count):
            segments = mutate(rng, rng.choice(_STARTS))
            if left and segments not in seen:
                seen.add(segments)
                left -= 1
                yield Payload(name=f"{kind} {count - left}", segments=segments)


# What other parsers make of it.


@dataclass
class Reading:
    """The complete requests that a parser found, in order, and whether it then gave up."""

    requests: list[tuple[bytes, bytes, bytes]] = field(default_factory=list)  # method, target, body
    refused: bool = False

    def __str__(self) -> str:
        return f"{len(self.requests)} requests" + (", then refuses" if self.refused else "")


def prompt(request: tuple[bytes, bytes, bytes]) -> str | None:
    """What a backend would be asked, if this request reached one."""
    method, target, body = request
    try:
        return json.loads(body)["messages"][0]["content"] if (method, target) == (b"POST", PATH.encode()) else None
    except (ValueError, LookupError, TypeError):
        return None


def h11_reads(data: bytes) -> Reading:
    """h11 refuses the empty lines before a request that RFC 9112, section 2.2, has servers ignore: it is not shown them."""
    reading = Reading()
    while data:
        while data.startswith(b"\r\n"):
            data = data[2:]
        connection, body = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20), b""
        try:
            connection.receive_data(data)
            while not isinstance(event := connection.next_event(), h11.EndOfMessage):
                if isinstance(event, h11.Request):
                    request = event
                elif isinstance(event, h11.Data):
                    body += event.data
                else:
                    return reading
            reading.requests.append((request.method, request.target, bytes(body)))
            connection.send(h11.Response(status_code=400, headers=[("Content-Length", "0")]))
            connection.send(h11.EndOfMessage())
        except h11.RemoteProtocolError:
            reading.refused = True
            return reading
        if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
            return reading
        data = connection.trailing_data[0]
    return reading


class _Collector:
    def __init__(self) -> None:
        self.reading = Reading()
        self.parser = httptools.HttpRequestParser(self)
        self.target = self.body = b""
        self.over = False

    def on_message_begin(self) -> None:
        self.target = self.body = b""

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        if not self.over:
            self.reading.requests.append((self.parser.get_method(), self.target, self.body))
        self.over = self.over or not self.parser.should_keep_alive()


def httptools_reads(data: bytes) -> Reading:
    collector = _Collector()
    try:
        collector.parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError:
        collector.reading.refused = True
    return collector.reading


# Responses.

MARKER = b"MARKER-7f3a"
ANSWER = whole_body("answer @@@@")
LEFTOVER = response(whole_body("MARKER-7f3a leftover @@@@"))
JSON_HEAD = b"Content-Type: application/json\r\n"
ANSWERED = response(ANSWER)
LENGTH = b"Content-Length: %d\r\n" % len(ANSWER)
OK = b"HTTP/1.1 200 OK\r\n"
ANSWER_CHUNKS = b"%x\r\n%s\r\n0\r\n\r\n" % (len(ANSWER), ANSWER)
TE = b"Transfer-Encoding: chunked\r\n"


def reply(*headers: bytes, line: bytes = OK, body: bytes = ANSWER, content_type: bytes = JSON_HEAD) -> bytes:
    return line + content_type + b"".join(headers) + b"\r\n" + body


def reply_chunked(size: bytes = b"", *, end: bytes = b"\r\n0\r\n\r\n") -> bytes:
    return reply(TE, body=(size or b"%x" % len(ANSWER)) + b"\r\n" + ANSWER + end)


_N = len(ANSWER)

RESPONSES: dict[str, bytes] = {
    "sized": ANSWERED,
    "chunked": reply_chunked(),
    # status lines
    "reason empty": reply(LENGTH, line=b"HTTP/1.1 200 \r\n"),
    "reason missing": reply(LENGTH, line=b"HTTP/1.1 200\r\n"),
    "reason chatty": reply(LENGTH, line=b"HTTP/1.1 200 " + MARKER + b"\r\n"),
    "reason of 4 KB": reply(LENGTH, line=b"HTTP/1.1 200 " + MARKER * 400 + b"\r\n"),
    "reason of 64 KiB": reply(LENGTH, line=b"HTTP/1.1 200 " + MARKER * 6000 + b"\r\n"),
    "reason with CR": reply(LENGTH, line=b"HTTP/1.1 200 OK\rX: " + MARKER + b"\r\n"),
    "reason with NUL": reply(LENGTH, line=b"HTTP/1.1 200 \0" + MARKER + b"\r\n"),
    "reason non-ASCII": reply(LENGTH, line=b"HTTP/1.1 200 \xff\xfe" + MARKER + b"\r\n"),
    "status 099": reply(LENGTH, line=b"HTTP/1.1 099 OK\r\n"),
    "status 000": reply(LENGTH, line=b"HTTP/1.1 000 OK\r\n"),
    "status 999": reply(LENGTH, line=b"HTTP/1.1 999 OK\r\n"),
    "status 20": reply(LENGTH, line=b"HTTP/1.1 20 OK\r\n"),
    "status 2000": reply(LENGTH, line=b"HTTP/1.1 2000 OK\r\n"),
    "status +200": reply(LENGTH, line=b"HTTP/1.1 +200 OK\r\n"),
    "status hex": reply(LENGTH, line=b"HTTP/1.1 0xc8 OK\r\n"),
    "status 201": reply(LENGTH, line=b"HTTP/1.1 201 Created\r\n"),
    "status 204 with a body": reply(LENGTH, line=b"HTTP/1.1 204 No Content\r\n"),
    "status 205 with a body": reply(LENGTH, line=b"HTTP/1.1 205 Reset\r\n"),
    "status 206": reply(LENGTH, b"Content-Range: bytes 0-1/2\r\n", line=b"HTTP/1.1 206 Partial\r\n"),
    "status 304 with a body": reply(LENGTH, line=b"HTTP/1.1 304 Not Modified\r\n"),
    "version 0.9": reply(LENGTH, line=b"HTTP/0.9 200 OK\r\n"),
    "version 1.0": reply(LENGTH, line=b"HTTP/1.0 200 OK\r\n"),
    "version 1.0 chunked": reply(TE, line=b"HTTP/1.0 200 OK\r\n", body=ANSWER_CHUNKS),
    "version 1.2": reply(LENGTH, line=b"HTTP/1.2 200 OK\r\n"),
    "version 2.0": reply(LENGTH, line=b"HTTP/2.0 200 OK\r\n"),
    "version 3": reply(LENGTH, line=b"HTTP/3 200 OK\r\n"),
    "version lower case": reply(LENGTH, line=b"http/1.1 200 OK\r\n"),
    "version of ICY": reply(LENGTH, line=b"ICY 200 OK\r\n"),
    "space first": b" " + ANSWERED,
    "two spaces": reply(LENGTH, line=b"HTTP/1.1  200 OK\r\n"),
    "tab for space": reply(LENGTH, line=b"HTTP/1.1\t200\tOK\r\n"),
    "empty lines first": b"\r\n\r\n" + ANSWERED,
    "garbage first": MARKER + ANSWERED,
    "body only": ANSWER,
    "a request": b"POST / HTTP/1.1\r\nHost: x\r\nX: " + MARKER + b"\r\nContent-Length: 0\r\n\r\n",
    # interim responses
    "100 first": b"HTTP/1.1 100 Continue\r\n\r\n" + ANSWERED,
    "100 with headers": b"HTTP/1.1 100 Continue\r\nX: " + MARKER + b"\r\n\r\n" + ANSWERED,
    "100 with a length": b"HTTP/1.1 100 Continue\r\nContent-Length: 5\r\n\r\nhello" + ANSWERED,
    "103 first": b"HTTP/1.1 103 Early Hints\r\nLink: <" + MARKER + b">\r\n\r\n" + ANSWERED,
    "199 first": b"HTTP/1.1 199 " + MARKER + b"\r\n\r\n" + ANSWERED,
    "a thousand 100s": b"HTTP/1.1 100 Continue\r\n\r\n" * 1000 + ANSWERED,
    "only 100": b"HTTP/1.1 100 Continue\r\n\r\n",
    "101": b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n" + ANSWERED,
    "101 without upgrade": b"HTTP/1.1 101 Switching\r\n\r\n" + ANSWERED,
    "upgrade on 200": reply(LENGTH, b"Connection: Upgrade\r\nUpgrade: h2c\r\n"),
    # lengths
    "two lengths, alike": reply(LENGTH, LENGTH),
    "two lengths": reply(LENGTH, b"Content-Length: 5\r\n"),
    "two lengths, longer": reply(b"Content-Length: %d\r\n" % (_N + len(LEFTOVER)), LENGTH, body=ANSWER + LEFTOVER),
    "length list": reply(b"Content-Length: %d, %d\r\n" % (_N, _N)),
    "length plus": reply(b"Content-Length: +%d\r\n" % _N),
    "length minus": reply(b"Content-Length: -%d\r\n" % _N),
    "length hex": reply(b"Content-Length: 0x%x\r\n" % _N),
    "length empty": reply(b"Content-Length:\r\n"),
    "length word": reply(b"Content-Length: banana\r\n"),
    "length overflow": reply(b"Content-Length: %d\r\n" % (2**64 + _N)),
    "length NUL": reply(b"Content-Length: %d\0\r\n" % _N),
    "length space before colon": reply(b"Content-Length : %d\r\n" % _N),
    "length zero": reply(b"Content-Length: 0\r\n"),
    "length too short": reply(b"Content-Length: %d\r\n" % (_N - 10)),
    "length too long": reply(b"Content-Length: %d\r\n" % (_N + 10)),
    "length underscore": reply(b"Content_Length: 5\r\n", LENGTH),
    "length zeros": reply(b"Content-Length: 000%d\r\n" % _N),
    "no length": reply(),
    "no length, close": reply(b"Connection: close\r\n"),
    "no length, cut": reply(body=ANSWER[:-10]),
    "no length, extra": reply(body=ANSWER + LEFTOVER),
    "length and chunked": reply(LENGTH, TE, body=ANSWER_CHUNKS),
    "chunked and length": reply(TE, LENGTH, body=ANSWER_CHUNKS),
    # codings
    "chunked twice": reply(TE, TE, body=ANSWER_CHUNKS),
    "chunked, chunked": reply(b"Transfer-Encoding: chunked, chunked\r\n", body=ANSWER_CHUNKS),
    "gzip, chunked": reply(b"Transfer-Encoding: gzip, chunked\r\n", body=ANSWER_CHUNKS),
    "chunked, gzip": reply(b"Transfer-Encoding: chunked, gzip\r\n", body=ANSWER_CHUNKS),
    "identity": reply(b"Transfer-Encoding: identity\r\n", LENGTH),
    "xchunked": reply(b"Transfer-Encoding: xchunked\r\n", LENGTH),
    "coding empty": reply(b"Transfer-Encoding:\r\n", LENGTH),
    "chunked folded": reply(b"Transfer-Encoding:\r\n chunked\r\n", body=ANSWER_CHUNKS),
    "chunked space before colon": reply(b"Transfer-Encoding : chunked\r\n", body=ANSWER_CHUNKS),
    "chunked NUL": reply(b"Transfer-Encoding: chunked\0\r\n", body=ANSWER_CHUNKS),
    # chunks
    "chunk 0x": reply_chunked(b"0x%x" % _N),
    "chunk plus": reply_chunked(b"+%x" % _N),
    "chunk minus": reply_chunked(b"-%x" % _N),
    "chunk space after": reply_chunked(b"%x " % _N),
    "chunk word": reply_chunked(b"banana"),
    "chunk empty": reply_chunked(b" "),
    "chunk overflow": reply_chunked(b"1%016x" % _N),
    "chunk huge": reply_chunked(b"7fffffffffffffff"),
    "chunk extension": reply_chunked(b"%x;x=%s" % (_N, MARKER)),
    "chunk extension with LF": reply_chunked(b"%x;x=\n%s" % (_N, MARKER)),
    "chunk extension of 64 KiB": reply_chunked(b"%x;" % _N + b"x" * 65536),
    "chunk bare LF": reply(TE, body=b"%x\n%s\n0\n\n" % (_N, ANSWER)),
    "chunk too short": reply_chunked(b"%x" % (_N - 1)),
    "chunk too long": reply_chunked(b"%x" % (_N + 1)),
    "chunk without CRLF": reply_chunked(end=b"0\r\n\r\n"),
    "chunk without end": reply_chunked(end=b"\r\n"),
    "chunk then a response": reply_chunked(end=b"\r\n" + LEFTOVER),
    "trailer": reply_chunked(end=b"\r\n0\r\nX: " + MARKER + b"\r\n\r\n"),
    "trailer length": reply_chunked(end=b"\r\n0\r\nContent-Length: 5\r\n\r\n"),
    "trailer folded": reply_chunked(end=b"\r\n0\r\nX: 1\r\n " + MARKER + b"\r\n\r\n"),
    "trailer without colon": reply_chunked(end=b"\r\n0\r\n" + MARKER + b"\r\n\r\n"),
    "trailer is a response": reply_chunked(end=b"\r\n0\r\n" + LEFTOVER),
    "a thousand trailers": reply_chunked(end=b"\r\n0\r\n" + b"X: " + MARKER + b"\r\n" * 1000 + b"\r\n"),
    "every byte a chunk": reply(TE, body=b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in re.findall(rb"@+|.", ANSWER)) + b"0\r\n\r\n"),
    # headers
    "bare LF": ANSWERED.replace(b"\r\n", b"\n"),
    "bare CR": ANSWERED.replace(b"\r\n", b"\r"),
    "CR CR LF": ANSWERED.replace(b"\r\n", b"\r\r\n"),
    "folded": reply(LENGTH, b"X: 1\r\n " + MARKER + b"\r\n"),
    "NUL in a value": reply(LENGTH, b"X: \0" + MARKER + b"\r\n"),
    "control byte in a value": reply(LENGTH, b"X: \x01" + MARKER + b"\r\n"),
    "DEL in a value": reply(LENGTH, b"X: \x7f" + MARKER + b"\r\n"),
    "non-ASCII value": reply(LENGTH, b"X: \xff" + MARKER + b"\r\n"),
    "CR in a value": reply(LENGTH, b"X: 1\rSet-Cookie: " + MARKER + b"\r\n"),
    "no name": reply(LENGTH, b": " + MARKER + b"\r\n"),
    "no colon": reply(LENGTH, MARKER + b"\r\n"),
    "space in a name": reply(LENGTH, b"X Y: " + MARKER + b"\r\n"),
    "non-ASCII name": reply(LENGTH, b"X\xe9: " + MARKER + b"\r\n"),
    "a value of 64 KiB": reply(LENGTH, b"X: " + MARKER * 6000 + b"\r\n"),
    "a name of 64 KiB": reply(LENGTH, MARKER * 6000 + b": 1\r\n"),
    "five hundred headers": reply(LENGTH, *(b"X-%d: %s\r\n" % (i, MARKER) for i in range(500))),
    "sixty headers": reply(LENGTH, *(b"X-%d: %s\r\n" % (i, MARKER) for i in range(60))),
    "cookies": reply(LENGTH, *(b"Set-Cookie: a%d=%s; Domain=x\r\n" % (i, MARKER) for i in range(20))),
    "two content types": reply(LENGTH, b"Content-Type: text/html\r\n"),
    "content type with charset": reply(LENGTH, content_type=b"Content-Type: application/json; charset=utf-16\r\n"),
    "content type with junk": reply(LENGTH, content_type=b"Content-Type: application/json; " + MARKER + b"\r\n"),
    "content type in capitals": reply(LENGTH, content_type=b"CONTENT-TYPE: APPLICATION/JSON\r\n"),
    "content type list": reply(LENGTH, content_type=b"Content-Type: application/json, text/html\r\n"),
    "content type html": reply(LENGTH, content_type=b"Content-Type: text/html\r\n"),
    "content type missing": reply(LENGTH, content_type=b""),
    "coded gzip": reply(LENGTH, b"Content-Encoding: gzip\r\n"),
    "coded identity": reply(LENGTH, b"Content-Encoding: identity\r\n"),
    "coded twice": reply(LENGTH, b"Content-Encoding: identity\r\nContent-Encoding: gzip\r\n"),
    "location": reply(LENGTH, b"Location: http://127.0.0.1:9/" + MARKER + b"\r\n"),
    "keep-alive words": reply(LENGTH, b"Keep-Alive: timeout=99999, " + MARKER + b"\r\nConnection: keep-alive, " + MARKER + b"\r\n"),
    "connection close, held open": reply(LENGTH, b"Connection: close\r\n"),
    # what follows the body
    "extra bytes": ANSWERED + MARKER,
    "extra line ends": ANSWERED + b"\r\n\r\n",
    "a second response": ANSWERED + LEFTOVER,
    "a second response after chunks": reply_chunked() + LEFTOVER,
    "a second response after an empty line": ANSWERED + b"\r\n" + LEFTOVER,
    "a hundred responses": ANSWERED + LEFTOVER * 100,
    "half a response": ANSWERED + LEFTOVER[:40],
    "a refused response, then a good one": b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n" + LEFTOVER,
    "an interim one after": ANSWERED + b"HTTP/1.1 100 Continue\r\n\r\n",
    # bodies
    "nothing": b"",
    "head only": reply(LENGTH, body=b""),
    "head without end": OK + JSON_HEAD + LENGTH,
    "half a line": b"HTTP/1.1 2",
    "binary": b"\x00\xff\x80" * 200,
    "TLS alert": b"\x15\x03\x01\x00\x02\x02\x28",
    "h2 settings": b"\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    "byte order mark": reply(b"Content-Length: %d\r\n" % (_N + 3), body=b"\xef\xbb\xbf" + ANSWER),
    "UTF-16": response(ANSWER.decode().encode("utf-16")),
    "an event stream": response(b"data: {}\n\n", content_type="text/event-stream"),
}  # fmt: skip

LATE_LEFTOVER = (
    ("a response later", (ANSWERED, LEFTOVER)),
    ("a response later, after chunks", (reply_chunked(), LEFTOVER)),
)


def responses(*, mutations: int) -> list[Payload]:
    """All hand-made ones, each also broken in two behind its head, and seeded mutations of a good one."""
    made = [Payload(name=name, segments=(data,)) for name, data in RESPONSES.items()]
    made += [
        Payload(name=f"{payload.name}, in two", segments=(data[: at + 4], data[at + 4 :]))
        for payload in made
        for data in payload.segments
        if 0 <= (at := data.find(b"\r\n\r\n")) < len(data) - 4
    ]
    made += [Payload(name=name, segments=segments) for name, segments in LATE_LEFTOVER]
    rng = random.Random(SEED)
    seen: set[bytes] = set()
    starts = (ANSWERED, reply_chunked(), ANSWERED + LEFTOVER, reply_chunked() + LEFTOVER)
    while len(seen) < mutations:
        start = rng.choice(starts)
        until = start.find(b"\r\n\r\n") + 4 + (len(b"%x\r\n" % _N) if TE in start else 0)
        at, byte = rng.randrange(until), bytes([rng.choice(_BYTES)])
        data = start[:at] + rng.choice((b"", byte, byte + start[at : at + 1])) + start[at + 1 :]
        if data not in seen and data not in starts:
            seen.add(data)
            made.append(Payload(name=f"mutated {len(seen)}", segments=(data,)))
    return made


def h11_answer(data: bytes) -> bytes | None:
    """The body that h11 reads as the answer to a request, the connection ending after it; None if it refuses."""
    connection, body, final = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20), b"", False
    connection.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    connection.send(h11.EndOfMessage())
    try:
        connection.receive_data(data)
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(b"")
            elif isinstance(event, h11.Response):
                final = event.status_code == 200
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                return body if final else None
            elif event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                return None
    except h11.RemoteProtocolError:
        return None


class _AnswerCollector:
    def __init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.body, self.final, self.complete = b"", False, False

    def on_headers_complete(self) -> None:
        if not self.complete:
            self.final = self.parser.get_status_code() == 200

    def on_body(self, body: bytes) -> None:
        if not self.complete:
            self.body += body

    def on_message_complete(self) -> None:
        self.complete = self.complete or self.final


def httptools_answer(data: bytes) -> bytes | None:
    """The same by llhttp. It is not told of the end, so what it has then of an unsized body is the answer."""
    collector = _AnswerCollector()
    try:
        collector.parser.feed_data(data)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        if not collector.complete:
            return None
    return collector.body if collector.final else None
