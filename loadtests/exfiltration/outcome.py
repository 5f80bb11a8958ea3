"""How an answer ends: status, finish reason, error, truncation, silence. What is left of it has a price."""

import json
import struct
from collections.abc import Sequence

from loadtests.exfiltration import honest
from loadtests.exfiltration.answer import error_of, finish_of, text_of
from loadtests.exfiltration.backend import Wire
from loadtests.exfiltration.channel import (
    STREAM,
    STREAM_USAGE,
    WHOLE,
    Channel,
    Decode,
    Loot,
    Play,
    Question,
    Reply,
    Residual,
    Scene,
    by_symbol,
)
from loadtests.exfiltration.client import exchange
from loadtests.exfiltration.headers import WORD_BITS, word
from loadtests.exfiltration.hiding import from_hexadecimal
from loadtests.exfiltration.information import information_bits
from loadtests.exfiltration.response import Response

STATUSES = (200, 400, 401, 403, 404, 409, 413, 418, 422, 429, 451, 500, 501, 502, 503, 529)
FINISHES = ("stop", "length")
INVENTED = ("stop", "eos_token", "content_filter", "max_time", "abort", "end_turn", "function_call", "recitation")
CODES = ("context_length_exceeded", "unknown_vector", "wrong_dimension", "overloaded")
LENGTH_BITS = 5
HASTY = Question(model="hasty", limit_s=3.0)
HASTY_STREAM = Question(model="hasty", limit_s=3.0, fields={"stream": True})


def _status(symbol: int) -> bytes:
    return honest.whole(status=b"HTTP/1.1 %d No" % STATUSES[symbol])


def _errored(code: str, message: str) -> bytes:
    return honest.whole({"error": {"code": code, "message": message, "type": "x"}}, status=b"HTTP/1.1 400 Bad Request")


def _drop(symbol: int) -> bytes:
    return honest.whole() if symbol else b""


async def _drop_or_answer(symbol: int, wire: Wire) -> None:
    await wire.send(_drop(symbol))
    if not symbol:
        await wire.reset()


async def _hang_or_answer(symbol: int, wire: Wire) -> None:
    if symbol:
        await wire.send(honest.whole())
    else:
        await wire.gone()


async def _truncate(symbol: int, wire: Wire) -> None:
    answer = honest.stream(honest.events())
    await wire.send(answer if symbol else answer.removesuffix(honest.LAST_CHUNK))
    if not symbol:
        await wire.close()


async def _shorten(symbol: int, wire: Wire) -> None:
    answer = honest.stream(honest.events())
    await wire.send(answer if symbol else answer[: answer.index(honest.DONE)])
    await wire.close()


def _error_order(symbol: int) -> bytes:
    error = honest.data({"error": {"message": "x"}})
    text = honest.event({"content": honest.TEXT})
    return honest.stream([text, error] if symbol else [error, text])


def _error_came_late(response: Response) -> int:
    return int(bool(text_of(response)) and response.body.find(b'"error"') > response.body.find(b'"content"'))


def _length(symbol: int) -> bytes:
    return honest.stream(honest.events(honest.TEXT[: 32 + symbol]))


def _usage(symbol: int) -> bytes:
    prompt, completion = symbol & (1 << 31) - 1, symbol >> 31
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return honest.stream([*honest.events()[:-1], honest.data({"choices": [], "usage": usage}), honest.DONE])


def _usage_read(response: Response) -> int | None:
    usage = {}
    for line in response.body.split(b"\n"):
        if b'"usage":{' in line:
            usage = json.loads(line.partition(b"data: ")[2])["usage"]
    return usage["prompt_tokens"] | usage["completion_tokens"] << 31 if usage else None


def _overflow(symbol: int) -> bytes:
    count = (20, 2**31, 2**63, -1)[symbol]
    return honest.whole(honest.chat() | {"usage": {**honest.USAGE, "completion_tokens": count}})


def _overflow_read(response: Response) -> int | None:
    body = response.body
    spelled = (b'tokens":20', b'tokens":2147483648', b'tokens":9223372036854775808', b'tokens":-1')
    return next((at for at, text in enumerate(spelled) if text in body), 3)


def _redirect(symbol: int) -> bytes:
    return honest.whole(status=b"HTTP/1.1 307 Away", headers=[b"Location: /v1/" + word(symbol)])


def _encoded(symbol: int) -> bytes:
    if not symbol:
        return honest.whole()
    body = honest.compact(honest.chat())
    stored = b"\x1f\x8b\x08\0\0\0\0\0\0\xff\x01" + struct.pack("<HH", len(body), len(body) ^ 0xFFFF) + body
    return honest.whole(stored, headers=[b"Content-Encoding: gzip"])


async def _refuse(scene: Scene) -> Loot:
    """The backend stops listening for a 0. One question at a time, because a port is open or it is not."""
    symbols = [scene.rng.getrandbits(1) for _ in range(40)]
    pairs: list[tuple[int, int | None]] = []
    answers: list[tuple[int, Response]] = []
    for number, symbol in enumerate(symbols):
        await (scene.backend.listen() if symbol else scene.backend.refuse())
        answer = await exchange(scene.exit, WHOLE.request(scene.exit, number))
        pairs.append((symbol, int(answer.status == 200)))
        answers.append((symbol, answer))
    await scene.backend.listen()
    return Loot(
        sent_bits=len(symbols), decoded_bits=information_bits(pairs, bits=1), answers=answers, symbol_bits=1,
        responses=len(symbols),
    )  # fmt: skip


def _one_of(values: Sequence[object], value: object) -> int | None:
    return values.index(value) if value in values else None


def _channel(
    name: str,
    what: str,
    bits: int,
    decode: Decode,
    *,
    reply: Reply | None = None,
    play: Play | None = None,
    question: Question = WHOLE,
    residual: Residual = Residual.PRICED,
) -> Channel:
    steal = by_symbol(bits=bits, reply=reply, play=play, decode=decode, question=question)
    return Channel(name=name, what=what, residual=residual, steal=steal)


def _succeeded(response: Response) -> int:
    return int(response.status == 200 and bool(text_of(response)))


def _ended_well(response: Response) -> int:
    return int(honest.DONE.strip() in response.body and response.end == "complete")


CHANNELS = (
    _channel("status-code", "one of 16 status codes", 4, lambda r: _one_of(STATUSES, r.status), reply=_status),
    _channel(
        "finish-reason",
        "stop or length",
        1,
        lambda r: _one_of(FINISHES, finish_of(r)),
        reply=lambda symbol: honest.whole(honest.chat(finish=FINISHES[symbol])),
    ),
    _channel(
        "finish-reason-invented",
        "one of 8 ways to say stop",
        3,
        lambda r: _one_of(INVENTED, finish_of(r)),
        reply=lambda symbol: honest.whole(honest.chat(finish=INVENTED[symbol])),
        residual=Residual.NOTHING,
    ),
    _channel(
        "early-end",
        "length of the text modulo 32",
        LENGTH_BITS,
        lambda r: len(text_of(r)) - 32,
        reply=_length,
        question=STREAM,
    ),
    _channel("usage-integers", "two token counts of 31 bits", 62, _usage_read, reply=_usage, question=STREAM_USAGE),
    _channel("usage-overflow", "a token count beyond its range", 2, _overflow_read, reply=_overflow),
    _channel(
        "error-code",
        "one of four error codes",
        2,
        lambda r: _one_of(CODES, error_of(r).get("code")),
        reply=lambda symbol: _errored(CODES[symbol], "no"),
    ),
    _channel(
        "error-message",
        "the words of an error",
        WORD_BITS,
        lambda r: from_hexadecimal(str(error_of(r).get("message"))),
        reply=lambda symbol: _errored("x", word(symbol).decode()),
        residual=Residual.NOTHING,
    ),
    _channel(
        "error-order", "an error before or after the text", 1, _error_came_late, reply=_error_order, question=STREAM
    ),
    _channel(
        "redirect",
        "where a redirect leads",
        WORD_BITS,
        lambda r: from_hexadecimal((r.header(b"location") or b"").removeprefix(b"/v1/")),
        reply=_redirect,
        residual=Residual.NOTHING,
    ),
    _channel(
        "content-encoding",
        "gzip or not",
        1,
        lambda r: int(r.header(b"content-encoding") == b"gzip" or r.status == 502),
        reply=_encoded,
    ),
    _channel("drop", "connection reset before the answer", 1, _succeeded, play=_drop_or_answer),
    _channel("truncation", "no last chunk", 1, _ended_well, play=_truncate, question=STREAM),
    _channel("no-done", "no [DONE]", 1, _ended_well, play=_shorten, question=STREAM),
    _channel("hang", "no answer until the time-out", 1, _succeeded, play=_hang_or_answer, question=HASTY),
    Channel(name="refuse", what="connection refused", residual=Residual.PRICED, steal=_refuse),
)
