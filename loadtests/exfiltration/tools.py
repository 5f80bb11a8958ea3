"""What tool calls can hide: ids, order, the spelling of arguments, and their values."""

import json
from itertools import pairwise
from typing import Any

from loadtests.exfiltration import honest
from loadtests.exfiltration.answer import calls_of
from loadtests.exfiltration.channel import Channel, Decode, Question, Residual, by_symbol
from loadtests.exfiltration.headers import WORD_BITS, word
from loadtests.exfiltration.hiding import from_hexadecimal, from_order, order
from loadtests.exfiltration.response import Response

NAMES = ("measure", "record", "release", "refuse")
KEYS = ("depth", "gate", "height", "place")
NUMBERS = ("2.5", "2.50", "25e-1", "0.25E1")
ASKING = Question(
    fields={
        "stream": True,
        "tools": [{"type": "function", "function": {"name": name, "parameters": {}}} for name in NAMES],
    }
)


def calling(calls: list[dict[str, Any]]) -> bytes:
    """A stream that makes these calls."""
    parts = [
        {
            "index": index,
            "id": call.get("id", f"call_{index}"),
            "type": "function",
            "function": {"name": call.get("name", NAMES[0]), "arguments": call.get("arguments", "{}")},
        }
        for index, call in enumerate(calls)
    ]
    return honest.stream([honest.event({"tool_calls": parts}), *honest.closing(finish="tool_calls")])


def _arguments(response: Response) -> str:
    calls = calls_of(response)
    return str(calls[0]["arguments"]) if calls else ""


def _ids(response: Response) -> int | None:
    return next((from_hexadecimal(str(call["id"])[-8:]) for call in calls_of(response)), None)


def _key_order(response: Response) -> int | None:
    try:
        return from_order(list(json.loads(_arguments(response))), KEYS)
    except ValueError:
        return None


def _spelled(symbol: int) -> str:
    separators = (", " if symbol & 1 else ",", ": " if symbol & 2 else ":")
    return json.dumps({"depth": 1, "gate": 2}, separators=separators)


def _escape_read(response: Response) -> int:
    return sum(1 << at for at in range(8) if f"\\u{ord('a') + at:04x}" in _arguments(response))


def _escape(symbol: int) -> str:
    letters = (f"\\u{ord('a') + at:04x}" if symbol >> at & 1 else chr(ord("a") + at) for at in range(8))
    return '{"gate":"' + "".join(letters) + '"}'


def _number_read(response: Response) -> int | None:
    spelled = _arguments(response).partition(":")[2].rstrip("}")
    return NUMBERS.index(spelled) if spelled in NUMBERS else None


def _fragments(symbol: int) -> bytes:
    text = json.dumps({"gate": "north", "depth": 4})
    cuts = [0, *[at + 1 for at in range(16) if symbol >> at & 1], len(text)]
    events = []
    for index, (start, end) in enumerate(pairwise(cuts)):
        function = {"arguments": text[start:end]} | ({"name": NAMES[0]} if index == 0 else {})
        events.append(honest.event({"tool_calls": [{"index": 0, "id": "call_0", "function": function}]}))
    return honest.stream([b"".join([*events, *honest.closing(finish="tool_calls")])])


def _fragments_read(response: Response) -> int:
    symbol, at = 0, 0
    for said in response.body.split(b"\n"):
        if b'"tool_calls":[' in said:
            delta = json.loads(said.removeprefix(b"data: "))["choices"][0]["delta"]
            at += len(delta["tool_calls"][0]["function"]["arguments"])
            symbol |= 1 << at - 1 if 0 < at <= 16 else 0
    return symbol


def _channel(
    name: str, what: str, bits: int, reply: Any, decode: Decode, *, residual: Residual = Residual.NOTHING
) -> Channel:
    steal = by_symbol(bits=bits, reply=reply, decode=decode, question=ASKING)
    return Channel(name=name, what=what, residual=residual, steal=steal)


CHANNELS = (
    _channel(
        "tool-ids",
        "the id of a call",
        WORD_BITS,
        lambda symbol: calling([{"id": f"call_{word(symbol).decode()}"}]),
        _ids,
    ),
    _channel(
        "tool-argument-order",
        "which of 16 orders four arguments stand in",
        4,
        lambda symbol: calling([{"arguments": json.dumps(dict.fromkeys(order(symbol, KEYS), 1))}]),
        _key_order,
    ),
    _channel(
        "tool-argument-spaces",
        "spaces in the arguments",
        2,
        lambda symbol: calling([{"arguments": _spelled(symbol)}]),
        lambda r: (", " in _arguments(r)) + 2 * (": " in _arguments(r)),
    ),
    _channel(
        "tool-argument-escapes",
        "\\u escapes in the arguments",
        8,
        lambda symbol: calling([{"arguments": _escape(symbol)}]),
        _escape_read,
    ),
    _channel(
        "tool-argument-numbers",
        "2.5 or 25e-1",
        2,
        lambda symbol: calling([{"arguments": '{"depth":' + NUMBERS[symbol] + "}"}]),
        _number_read,
    ),
    _channel("tool-fragments", "where the arguments are cut into deltas", 16, _fragments, _fragments_read),
    _channel(
        "tool-order",
        "which of 16 orders four calls stand in",
        4,
        lambda symbol: calling([{"name": name} for name in order(symbol, NAMES)]),
        lambda r: from_order([call["name"] for call in calls_of(r)], NAMES),
        residual=Residual.PRICED,
    ),
    _channel(
        "tool-argument-values",
        "a value in the arguments",
        WORD_BITS,
        lambda symbol: calling([{"arguments": json.dumps({"gate": word(symbol).decode()})}]),
        lambda r: from_hexadecimal(_arguments(r)[-10:-2]),
        residual=Residual.PRICED,
    ),
    _channel(
        "tool-arguments-not-json",
        "arguments that are no JSON, so that no canonical form holds them",
        WORD_BITS,
        lambda symbol: calling([{"arguments": "{" + word(symbol).decode()}]),
        lambda r: from_hexadecimal(_arguments(r)[1:]),
        residual=Residual.PRICED,
    ),
)
