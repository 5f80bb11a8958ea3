"""What a request of the load asks for and what the scripted upstream says to it. Pure: both sides compute the same answer.

A prompt carries its script, so that nothing but a chat message has to survive the gateway. Every piece of text bears its
place, so that a lost, doubled or swapped piece cannot go unseen.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from loadtests.bench.answer import compact, stream_event, tokens

WORDS = tuple(word.strip() for word in tokens())
PATTERN = re.compile(rb"#(\d{9}) (json|stream|tool) (\d{1,5}) (\d{1,6})")
NUMBERS = 10**9
TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Look something up in the keeper's book.",
        "parameters": {"type": "object", "properties": {"number": {"type": "integer"}, "words": {"type": "string"}}},
    },
}
ENVELOPE: dict[str, object] = {"id": "chatcmpl-load", "created": 1_790_000_000, "model": "load"}


class Kind(Enum):
    """How an answer comes."""

    JSON = "json"  # whole
    STREAM = "stream"  # a piece of text in each event
    TOOL = "tool"  # a stream that calls a tool, its arguments in pieces


@dataclass(frozen=True, kw_only=True)
class Script:
    """One question. `number` is its own among all of a run: 0 to NUMBERS - 1."""

    number: int
    kind: Kind
    pieces: int
    pace_ms: int  # between two pieces; before the answer, if it comes whole

    def prompt(self) -> str:
        """The user's message."""
        return f"#{self.number:09} {self.kind.value} {self.pieces} {self.pace_ms}"

    def spoken(self) -> list[str]:
        """What is said, piece by piece: text, or the arguments of the tool in their canonical form."""
        words = [f" {index}:{WORDS[(self.number + index) % len(WORDS)]}" for index in range(self.pieces)]
        text = [f"{self.number}", *words]
        if self.kind is not Kind.TOOL:
            return text
        arguments = json.dumps({"number": self.number, "words": "".join(text)}, separators=(",", ":"))
        step = max(len(arguments) // max(self.pieces, 1), 1)
        return [arguments[at : at + step] for at in range(0, len(arguments), step)]

    def body(self, model: str) -> bytes:
        """The request, as an OpenAI client sends it."""
        question: dict[str, object] = {
            "model": model,
            "messages": [{"role": "user", "content": self.prompt()}],
            "max_tokens": self.pieces + 64,  # the gateway takes 16 bytes a token as a limit
        }
        if self.kind is not Kind.JSON:
            question["stream"] = True
        if self.kind is Kind.TOOL:
            question["tools"] = [TOOL]
        return compact(question)


def script_of(request: bytes) -> Script | None:
    """The script in a request's body, wherever a gateway has put it."""
    found = PATTERN.search(request)
    if found is None:
        return None
    number, kind, pieces, pace_ms = found.groups()
    return Script(number=int(number), kind=Kind(kind.decode()), pieces=int(pieces), pace_ms=int(pace_ms))


def completion(script: Script) -> bytes:
    """The body of an answer that comes whole."""
    message = {"role": "assistant", "content": "".join(script.spoken())}
    usage = {"prompt_tokens": 9, "completion_tokens": script.pieces, "total_tokens": 9 + script.pieces}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return compact({"object": "chat.completion", **ENVELOPE, "choices": [choice], "usage": usage})


def events(script: Script) -> Iterator[bytes]:
    """The events of a stream: one before the pieces, one for each of them, one after."""
    if script.kind is Kind.STREAM:
        yield stream_event({"role": "assistant", "content": ""}, finish_reason=None)
        for piece in script.spoken():
            yield stream_event({"content": piece}, finish_reason=None)
        yield stream_event({}, finish_reason="stop") + b"data: [DONE]\n\n"
        return
    opening = {"index": 0, "id": "call_load", "type": "function", "function": {"name": "look_up", "arguments": ""}}
    yield tool_event({"role": "assistant", "content": None, "tool_calls": [opening]}, finish_reason=None)
    for piece in script.spoken():
        yield tool_event({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}, finish_reason=None)
    yield tool_event({}, finish_reason="tool_calls") + b"data: [DONE]\n\n"


def tool_event(delta: dict[str, object], *, finish_reason: str | None) -> bytes:
    """One `data:` event with a delta that is more than text."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return b"data: " + compact({"object": "chat.completion.chunk", **ENVELOPE, "choices": [choice]}) + b"\n\n"


def heard(body: bytes, kind: Kind) -> str:
    """What a client has heard so far, in any dialect of events. Raises ValueError or LookupError if it is no answer."""
    if kind is Kind.JSON:
        return str(json.loads(body)["choices"][0]["message"]["content"])
    pieces = []
    for line in body.split(b"\n"):
        data = line.removeprefix(b"data:").strip()
        if not line.startswith(b"data:") or not data.startswith(b"{") or not data.endswith(b"}"):
            continue  # [DONE], and the half line at which a broken stream stops
        for choice in json.loads(data).get("choices", []):
            delta = choice.get("delta", {})
            pieces.append(delta.get("content") or "")
            pieces += [call.get("function", {}).get("arguments") or "" for call in delta.get("tool_calls") or ()]
    return "".join(pieces)
