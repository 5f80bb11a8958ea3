"""What a JSON body can hide: envelope fields, unknown fields, and ways of spelling the same value."""

import json
import re
from collections.abc import Callable
from typing import Any

from loadtests.exfiltration import honest
from loadtests.exfiltration.answer import first
from loadtests.exfiltration.channel import Channel, Decode, Reply, Residual, by_symbol
from loadtests.exfiltration.headers import WORD_BITS, word
from loadtests.exfiltration.hiding import from_hexadecimal, from_order, order
from loadtests.exfiltration.response import Response

Place = Callable[[Any], Any]
KEYS = ("id", "created", "model", "object")
SPELLINGS = ("20", "20.0", "2e1", "20e0")
LETTERS = 16  # of the text that may be written as escapes


def _field(name: str, what: str, fields: Callable[[str], dict[str, Any]], place: Place) -> Channel:
    """A 32-bit word in a field of the answer, and where the decoder looks for it."""

    def decode(response: Response) -> int | None:
        try:
            value = place(first(response))
        except (KeyError, IndexError, TypeError):
            return None
        return value if isinstance(value, int) else from_hexadecimal(str(value)[-8:])

    def reply(symbol: int) -> bytes:
        return honest.whole(honest.chat() | fields(word(symbol).decode()))

    return _spelling(name, what, WORD_BITS, reply, decode)


def _spelling(name: str, what: str, bits: int, reply: Reply, decode: Decode) -> Channel:
    return Channel(
        name=name, what=what, residual=Residual.NOTHING, steal=by_symbol(bits=bits, reply=reply, decode=decode)
    )


def _choice(**extra: Any) -> dict[str, Any]:
    return {"choices": [honest.chat()["choices"][0] | extra]}


def _ordered(symbol: int) -> bytes:
    body = honest.chat()
    return honest.whole({key: body[key] for key in order(symbol, KEYS)} | body)


def _order(response: Response) -> int | None:
    return from_order([key for key in first(response) if key in KEYS], KEYS)


def _duplicated(symbol: int) -> bytes:
    body = honest.compact(honest.chat())
    return honest.whole(body[:-1] + b',"model":"target"' * symbol + b"}")


def _spaced(symbol: int) -> bytes:
    separators = (", " if symbol & 1 else ",", ": " if symbol & 2 else ":")
    return honest.whole(json.dumps(honest.chat(), separators=separators).encode())


def _spaces(response: Response) -> int:
    return (b'", "' in response.body) + 2 * (b'": "' in response.body)


def _escaped(symbol: int) -> bytes:
    text = "".join(f"\\u{ord(c):04x}" if symbol >> at & 1 else c for at, c in enumerate(honest.TEXT[:LETTERS]))
    body = honest.compact(honest.chat()).replace(honest.TEXT[:LETTERS].encode(), text.encode())
    return honest.whole(body)


def _escapes(response: Response) -> int | None:
    rest = response.body.partition(b'"content":"')[2]
    symbol = 0
    for at in range(LETTERS):
        escaped = rest.startswith(b"\\u")
        symbol |= escaped << at
        rest = rest[6 if escaped else 1 :]
    return symbol if response.body else None


def _number(symbol: int) -> bytes:
    body = honest.compact(honest.chat()).replace(
        b'"completion_tokens":20', b'"completion_tokens":' + SPELLINGS[symbol].encode()
    )
    return honest.whole(body)


def _number_spelling(response: Response) -> int | None:
    found = re.search(rb'"completion_tokens":([-+.0-9eE]+)', response.body)
    spelling = found[1].decode() if found else ""
    return SPELLINGS.index(spelling) if spelling in SPELLINGS else None


def _created(symbol: int) -> bytes:
    spelled = (b"1790000000", b"1.79e9", b"1790000000.0", b"1790000e3")[symbol]
    return honest.whole(honest.compact(honest.chat()).replace(b'"created":1790000000', b'"created":' + spelled))


def _created_spelling(response: Response) -> int | None:
    found = re.search(rb'"created":([-+.0-9eE]+)', response.body)
    spellings = (b"1790000000", b"1.79e9", b"1790000000.0", b"1790000e3")
    return spellings.index(found[1]) if found and found[1] in spellings else None


def _trailing(symbol: int) -> bytes:
    return honest.whole(honest.compact(honest.chat()) + b" " * symbol)


def _null(symbol: int) -> bytes:
    return honest.whole(honest.chat() | ({"service_tier": None} if symbol else {}))


CHANNELS = (
    _field("id", "the answer's id", lambda w: {"id": f"chatcmpl-{w}"}, lambda body: body["id"]),
    _field("created", "the answer's time", lambda w: {"created": int(w, 16)}, lambda body: body["created"]),
    _field(
        "system-fingerprint",
        "system_fingerprint",
        lambda w: {"system_fingerprint": w},
        lambda body: body["system_fingerprint"],
    ),
    _field("service-tier", "service_tier", lambda w: {"service_tier": w}, lambda body: body["service_tier"]),
    _field("model-name", "the model that the backend claims to be", lambda w: {"model": w}, lambda body: body["model"]),
    _field("object-name", "the object's type name", lambda w: {"object": w}, lambda body: body["object"]),
    _field("unknown-fields", "a field of no dialect", lambda w: {"x": w}, lambda body: body["x"]),
    _field(
        "unknown-names",
        "the name of a field of no dialect",
        lambda w: {f"x-{w}": 1},
        lambda body: next(key for key in (*body, "x-") if key.startswith("x-")),
    ),
    _field(
        "kv-transfer-params",
        "a vendor's field that carries state",
        lambda w: {"kv_transfer_params": {"block": w}},
        lambda body: body["kv_transfer_params"]["block"],
    ),
    _field(
        "prompt-logprobs",
        "a vendor's field that nobody asked for",
        lambda w: {"prompt_logprobs": [None, w]},
        lambda body: body["prompt_logprobs"][1],
    ),
    _field(
        "logprobs",
        "log-probabilities that nobody asked for",
        lambda w: _choice(logprobs={"content": [{"token": w, "logprob": -1}]}),
        lambda body: body["choices"][0]["logprobs"]["content"][0]["token"],
    ),
    _field(
        "message-fields",
        "reasoning beside the text",
        lambda w: _choice(message={"role": "assistant", "content": honest.TEXT, "reasoning_content": w}),
        lambda body: body["choices"][0]["message"]["reasoning_content"],
    ),
    _field(
        "role",
        "the author's role",
        lambda w: _choice(message={"role": w, "content": honest.TEXT}),
        lambda body: body["choices"][0]["message"]["role"],
    ),
    _field(
        "stop-reason",
        "a vendor's second finish reason",
        lambda w: _choice(stop_reason=w),
        lambda body: body["choices"][0]["stop_reason"],
    ),
    _field(
        "usage-details",
        "details below the token counts",
        lambda w: {"usage": {**honest.USAGE, "prompt_tokens_details": {"cached_tokens": int(w, 16)}}},
        lambda body: body["usage"]["prompt_tokens_details"]["cached_tokens"],
    ),
    _field(
        "usage-total",
        "a total that is not the sum",
        lambda w: {"usage": {**honest.USAGE, "total_tokens": int(w, 16)}},
        lambda body: body["usage"]["total_tokens"],
    ),
    _spelling("key-order", "which of 16 orders four keys stand in", 4, _ordered, _order),
    _spelling(
        "key-duplicates",
        "how often a key is repeated",
        3,
        _duplicated,
        lambda response: response.body.count(b'"model"') - 1,
    ),
    _spelling("white-space", "spaces after commas and colons", 2, _spaced, _spaces),
    _spelling("escapes", "which letters of the text are \\u escapes", LETTERS, _escaped, _escapes),
    _spelling("number-spelling", "20, 20.0, 2e1 in a dropped number", 2, _created, _created_spelling),
    _spelling("trailing-space", "spaces after the body", 4, _trailing, lambda r: len(r.body) - len(r.body.rstrip())),
    _spelling("null-fields", "a null field, or none", 1, _null, lambda r: int(b'"service_tier":null' in r.body)),
    Channel(
        name="usage-spelling",
        what="20, 20.0, 2e1 in a token count",
        residual=Residual.NOTHING,
        steal=by_symbol(bits=2, reply=_number, decode=_number_spelling),
    ),
)
