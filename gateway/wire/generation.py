"""Decoding what backends say of a generation, streamed or whole: shared by all dialects that generate.

The structs name every field that is read. All others, known to an engine or invented by one, are skipped unread.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from gateway.wire.sse import EventParser
from gateway.wire.steering_report import SteeringReport, steering_numbers
from policy.canonical import (
    Event,
    Finish,
    Malformed,
    Numbers,
    ReasoningDelta,
    TextDelta,
    TokenIds,
    ToolCallDelta,
    UsageReport,
)
from policy.limits import (
    ANSWER_JSON_BYTES_MAX,
    TOKENS_REPORTED_MAX,
    WIRE_BASE_BYTES,
    WIRE_BYTES_PER_CHARACTER,
    WIRE_BYTES_PER_TOKEN,
)
from policy.release import Outcome, Usage

# 20, 20.0 and 2e1 are one number: which of them a backend writes must make no difference.
Count = Annotated[int, Meta(ge=0, le=TOKENS_REPORTED_MAX)] | Annotated[float, Meta(ge=0, le=TOKENS_REPORTED_MAX)]
TOKEN_IDS_MARGIN = 16  # an engine may count its end token, and a few that it withheld

_NO_IDS = msgspec.Raw(b"")

_OUTCOMES = {
    "length": Outcome.LENGTH,
    "tool_calls": Outcome.TOOL_CALLS,
    "function_call": Outcome.TOOL_CALLS,
}  # every other reason an engine may invent is `stop`


class Function(Struct):
    """A tool call's function, whole or in part."""

    name: str | None = None
    arguments: str | None = None


class ToolCallPart(Struct):
    """An element of `tool_calls`. Ids are the gateway's own, so the backend's is not read."""

    function: Function
    index: int | float | None = None


class Message(Struct):
    """A chat message or delta. Engines name their reasoning differently, and some say it under both names."""

    content: str | None = None
    tool_calls: list[ToolCallPart] | None = None
    reasoning_content: Any = None
    reasoning: Any = None

    @property
    def thought(self) -> str:
        """The reasoning, if it is text."""
        for said in (self.reasoning_content, self.reasoning):
            if isinstance(said, str) and said:
                return said
        return ""


class Choice(Struct):
    """A choice of any dialect: chat has `delta` or `message`, text completions have `text`."""

    index: int | float = 0
    delta: Message | None = None
    message: Message | None = None
    text: str | None = None
    finish_reason: str | None = None
    token_ids: msgspec.Raw = _NO_IDS  # decoded only where the policy asks for them


class UsageClaim(Struct):
    """Token counts as claimed."""

    prompt_tokens: Count
    completion_tokens: Count = 0


class Body(Struct):
    """A streamed chunk or a whole answer."""

    choices: list[Choice] = []
    usage: UsageClaim | None = None
    steering: SteeringReport | None = None
    error: Any = None


_BODY = msgspec.json.Decoder(Body)


class Heeded(Struct, frozen=True, kw_only=True):
    """Which of the things that a backend may volunteer are read at all: those that were asked for and may leave."""

    usage: bool = False
    reasoning: bool = False
    steering: bool = False
    gates: int = 0  # how many the steering has


class Room(Struct, frozen=True, kw_only=True):
    """How much a backend may send for an answer of so many tokens: what is dear to parse must have been asked for."""

    tokens: int
    token_ids: bool = False  # whether the sampled ids are kept for the record

    @property
    def wire_bytes(self) -> int:
        """Before any text: headroom for empty chunks, hidden reasoning and a verbose envelope, token by token."""
        return WIRE_BASE_BYTES + WIRE_BYTES_PER_TOKEN * self.tokens


class _Closing:
    """What is said once, at the end, and therefore held until the backend's body is complete."""

    __slots__ = ("finish", "heeded", "numbers", "token_ids_left", "usage")

    def __init__(self, heeded: Heeded, room: Room) -> None:
        self.heeded = heeded
        self.token_ids_left = room.tokens + TOKEN_IDS_MARGIN if room.token_ids else 0
        self.finish: Outcome | None = None
        self.usage: Usage | None = None
        self.numbers: Numbers | None = None

    def events(self) -> list[Event]:
        if self.finish is None:
            raise Malformed("the answer has no finish_reason")
        if self.heeded.steering and self.numbers is None:
            raise Malformed("steering was asked for, and the backend does not say that there was any")
        events: list[Event] = []
        if self.usage is not None:
            events.append(UsageReport(self.usage))
        if self.numbers is not None:
            events.append(self.numbers)
        return [*events, Finish(self.finish)]


class StreamDecoder:
    """A streamed answer. The finish is reported only when `[DONE]` has been read, so that late chunks cannot race it."""

    def __init__(self, heeded: Heeded, room: Room) -> None:
        self._parser = EventParser(room_bytes=room.wire_bytes)
        self._closing = _Closing(heeded, room)
        self._reasoning = heeded.reasoning
        self._done = False

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """Events of the chunk's complete SSE events. Raises `Malformed` after those before the fault, however split."""
        if self._done:
            return
        texts: list[str] = []  # an event a token: those that are text alone are joined before they go on
        parser, reasoning = self._parser, self._reasoning
        try:
            for data in parser.feed(chunk):
                if data == b"[DONE]":
                    self._done = True
                    break
                body = _decode(data)
                text = _only_text(body, reasoning=reasoning)
                if text is not None:
                    texts.append(text)
                    parser.room_bytes += WIRE_BYTES_PER_CHARACTER * len(text)
                    continue
                if texts:
                    yield TextDelta("".join(texts))
                    texts.clear()
                for event in _read(body, self._closing):
                    parser.room_bytes += WIRE_BYTES_PER_CHARACTER * _said(event)
                    yield event
        except Malformed:
            if texts:
                yield TextDelta("".join(texts))
            raise
        if texts:
            yield TextDelta("".join(texts))
        if self._done:
            yield from self._closing.events()

    def eof(self) -> Iterator[Event]:
        """The body ended. Raises `Malformed` without `[DONE]`: a cut stream must not pass for a whole one."""
        if not self._done:
            raise Malformed("the stream ended before [DONE]")
        return iter(())


class WholeDecoder:
    """An unstreamed answer: one JSON body."""

    def __init__(self, heeded: Heeded, room: Room) -> None:
        self._chunks: list[bytes] = []
        self._room_bytes = min(room.wire_bytes, ANSWER_JSON_BYTES_MAX)
        self._heeded = heeded
        self._room = room

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """Collects. Raises `Malformed` for more than an answer of so many tokens can need."""
        self._room_bytes -= len(chunk)
        if self._room_bytes < 0:
            raise Malformed("more bytes than an answer of so many tokens needs")
        self._chunks.append(chunk)
        return iter(())

    def eof(self) -> Iterator[Event]:
        """All events of the answer. Raises `Malformed`."""
        closing = _Closing(self._heeded, self._room)
        yield from _read(_decode(b"".join(self._chunks)), closing)
        yield from closing.events()


def _decode(data: bytes) -> Body:
    try:
        return _BODY.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
        raise Malformed(f"not the JSON of an answer: {type(fault).__name__}") from fault


def _only_text(body: Body, *, reasoning: bool) -> str | None:
    """The text of a chunk that says nothing else, as nearly all do; None for any other."""
    if len(body.choices) != 1 or body.usage is not None or body.steering is not None or body.error is not None:
        return None
    choice = body.choices[0]
    if choice.index != 0 or choice.finish_reason is not None or choice.token_ids:
        return None
    if choice.delta is not None:
        if choice.text is not None or choice.delta.tool_calls is not None or (reasoning and choice.delta.thought):
            return None
        return choice.delta.content
    return choice.text


def _read(body: Body, closing: _Closing) -> Iterator[Event]:
    if body.error is not None:
        raise Malformed("the backend reported an error in its stream")
    if len(body.choices) > 1:
        raise Malformed("more than one choice")
    for choice in body.choices:
        yield from _read_choice(choice, closing)
    if body.usage is not None and closing.heeded.usage:
        claim = body.usage
        closing.usage = Usage(
            prompt_tokens=whole(claim.prompt_tokens), completion_tokens=whole(claim.completion_tokens)
        )
    if body.steering is not None and closing.heeded.steering:
        closing.numbers = steering_numbers(body.steering, gates=closing.heeded.gates)


def _read_choice(choice: Choice, closing: _Closing) -> Iterator[Event]:
    if choice.index != 0:
        raise Malformed("a choice other than the first")
    message = choice.delta or choice.message
    if message is not None and closing.heeded.reasoning and message.thought:
        yield ReasoningDelta(message.thought)
    text = choice.text or (message.content if message is not None else None)
    if text:
        yield TextDelta(text)
    if message is not None and message.tool_calls:
        for position, part in enumerate(message.tool_calls):
            index = whole(part.index) if part.index is not None else position
            yield ToolCallDelta(index, part.function.name, part.function.arguments or "")
    if choice.token_ids and closing.token_ids_left:
        yield TokenIds(_token_ids(choice.token_ids, closing))
    if choice.finish_reason is not None:
        closing.finish = closing.finish or _OUTCOMES.get(choice.finish_reason, Outcome.STOP)


def whole(number: float) -> int:
    """A count, however it was spelled. Raises `Malformed` for a fraction."""
    if number != int(number):
        raise Malformed("a count is not a whole number")
    return int(number)


def _said(event: Event) -> int:
    match event:
        case TextDelta(text=text) | ReasoningDelta(text=text):
            return len(text)
        case ToolCallDelta(arguments=arguments):
            return len(arguments)
    return 0


def _token_ids(raw: msgspec.Raw, closing: _Closing) -> tuple[int, ...]:
    try:
        ids = msgspec.json.decode(raw, type=list[Count] | None) or []
    except msgspec.DecodeError as fault:
        raise Malformed("token ids are not a list of counts") from fault
    closing.token_ids_left -= len(ids)
    if closing.token_ids_left <= 0:
        raise Malformed("more token ids than the answer may have tokens")
    return tuple(whole(number) for number in ids)
