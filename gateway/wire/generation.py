"""Decoding what backends say of a generation, streamed or whole: shared by all dialects that generate.

The structs name every field that is read. All others, known to an engine or invented by one, are skipped unread.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from gateway.wire.sse import EventParser
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
from policy.limits import ANSWER_JSON_BYTES_MAX, ANSWER_WIRE_BYTES_MAX, TOKENS_REPORTED_MAX
from policy.release import Outcome, Usage

Count = Annotated[int, Meta(ge=0, le=TOKENS_REPORTED_MAX)]
DOSE_STEPS_PER_UNIT = 1000  # relative_dose is released in steps of 0.001
DOSE_MAX = 1e6

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
    index: int | None = None


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

    index: int = 0
    delta: Message | None = None
    message: Message | None = None
    text: str | None = None
    finish_reason: str | None = None
    token_ids: list[Count] | None = None


class UsageClaim(Struct):
    """Token counts as claimed."""

    prompt_tokens: Count
    completion_tokens: Count = 0


class Applied(Struct):
    """What steering did, as counted by the backend."""

    prompt_tokens: Count
    generated_tokens: Count
    layers: Annotated[list[Annotated[int, Meta(ge=0, le=1023)]], Meta(max_length=1024)]


class SteeringReport(Struct):
    """The backend's proof that steering fired. Its fingerprint is not read: the gateway makes its own."""

    applied: Applied
    relative_dose: Annotated[float, Meta(ge=0, le=DOSE_MAX)]


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


class _Closing:
    """What is said once, at the end, and therefore held until the backend's body is complete."""

    __slots__ = ("finish", "heeded", "numbers", "usage")

    def __init__(self, heeded: Heeded) -> None:
        self.heeded = heeded
        self.finish: Outcome | None = None
        self.usage: Usage | None = None
        self.numbers: tuple[int, ...] | None = None

    def events(self) -> list[Event]:
        if self.finish is None:
            raise Malformed("the answer has no finish_reason")
        events: list[Event] = []
        if self.usage is not None:
            events.append(UsageReport(self.usage))
        if self.numbers is not None:
            events.append(Numbers(self.numbers))
        return [*events, Finish(self.finish)]


class StreamDecoder:
    """A streamed answer. The finish is reported only when `[DONE]` has been read, so that late chunks cannot race it."""

    def __init__(self, heeded: Heeded) -> None:
        self._parser = EventParser()
        self._closing = _Closing(heeded)
        self._reasoning = heeded.reasoning
        self._done = False
        self._room_bytes = ANSWER_WIRE_BYTES_MAX

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """Events of the chunk's complete SSE events. Raises `Malformed` after those before the fault, however split."""
        if self._done:
            return
        texts: list[str] = []  # an event a token: those that are text alone are joined before they go on
        try:
            for body in self._bodies(chunk):
                text = _only_text(body, reasoning=self._reasoning)
                if text is not None:
                    texts.append(text)
                    continue
                if texts:
                    yield TextDelta("".join(texts))
                    texts.clear()
                yield from _read(body, self._closing)
        except Malformed:
            if texts:
                yield TextDelta("".join(texts))
            raise
        if texts:
            yield TextDelta("".join(texts))
        if self._done:
            yield from self._closing.events()

    def _bodies(self, chunk: bytes) -> Iterator[Body]:
        for data in self._parser.feed(chunk[: self._room_bytes]):
            if data == b"[DONE]":
                self._done = True
                return
            yield _decode(data)
        self._room_bytes -= len(chunk)
        if self._room_bytes < 0:
            raise Malformed(f"answer over {ANSWER_WIRE_BYTES_MAX} bytes on the wire")

    def eof(self) -> Iterator[Event]:
        """The body ended. Raises `Malformed` without `[DONE]`: a cut stream must not pass for a whole one."""
        if not self._done:
            raise Malformed("the stream ended before [DONE]")
        return iter(())


class WholeDecoder:
    """An unstreamed answer: one JSON body."""

    def __init__(self, heeded: Heeded) -> None:
        self._chunks: list[bytes] = []
        self._bytes = 0
        self._heeded = heeded

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """Collects. Raises `Malformed` over `ANSWER_JSON_BYTES_MAX`."""
        self._bytes += len(chunk)
        if self._bytes > ANSWER_JSON_BYTES_MAX:
            raise Malformed(f"answer over {ANSWER_JSON_BYTES_MAX} bytes")
        self._chunks.append(chunk)
        return iter(())

    def eof(self) -> Iterator[Event]:
        """All events of the answer. Raises `Malformed`."""
        closing = _Closing(self._heeded)
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
    if choice.index != 0 or choice.finish_reason is not None or choice.token_ids is not None:
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
        closing.usage = Usage(prompt_tokens=claim.prompt_tokens, completion_tokens=claim.completion_tokens)
    if body.steering is not None and closing.heeded.steering:
        closing.numbers = steering_numbers(body.steering)


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
            index = part.index if part.index is not None else position
            yield ToolCallDelta(index, part.function.name, part.function.arguments or "")
    if choice.token_ids:
        yield TokenIds(tuple(choice.token_ids))
    if choice.finish_reason is not None:
        closing.finish = closing.finish or _OUTCOMES.get(choice.finish_reason, Outcome.STOP)


def steering_numbers(report: SteeringReport) -> tuple[int, ...]:
    """prompt tokens, generated tokens, the set of layers as a bit mask, relative dose in steps of 0.001."""
    layers = 0
    for layer in report.applied.layers:
        layers |= 1 << layer
    dose = round(report.relative_dose * DOSE_STEPS_PER_UNIT)
    return report.applied.prompt_tokens, report.applied.generated_tokens, layers, dose


def steering_body(numbers: tuple[int, ...], *, fingerprint: str) -> dict[str, Any]:
    """The released form of `steering_numbers`, with the gateway's fingerprint of the spec it sent."""
    prompt_tokens, generated_tokens, mask, dose = numbers
    layers = [layer for layer in range(mask.bit_length()) if mask >> layer & 1]
    return {
        "fingerprint": fingerprint,
        "applied": {"prompt_tokens": prompt_tokens, "generated_tokens": generated_tokens, "layers": layers},
        "relative_dose": dose / DOSE_STEPS_PER_UNIT,
    }
