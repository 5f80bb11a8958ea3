"""Backend events to releases: the one form in which an answer may leave, whatever bytes the backend chose to say it in.

Text leaves in order, in whole quanta, never splitting a UTF-8 character. Reasoning, where policy releases it, leaves
before the text as part of the same quanta; what of it comes after text has begun is dropped. Tool calls leave together with
the ending, in call order, their arguments as canonical JSON; so do embeddings. Two backends that say the same thing by the
same tick give the same release.
"""

from __future__ import annotations

import json

from msgspec import Struct

from policy.limits import PACED_HEAD_QUANTA, TICK_RELEASE_BYTES_MAX, TOOL_ARGUMENTS_BYTES_MAX, TOOL_CALLS_MAX
from policy.release import Ending, Outcome, Release, ToolCall, Usage, Vectors


class Malformed(ValueError):
    """The backend said something that no type of `policy.release` holds. The message is for the log, not for clients."""


class TextDelta(Struct, frozen=True):
    """More text of the answer."""

    text: str


class ReasoningDelta(Struct, frozen=True):
    """More of what the model thinks before it answers."""

    text: str


class ToolCallDelta(Struct, frozen=True):
    """Part of the tool call at `index`: its name, once, and a fragment of its arguments."""

    index: int
    name: str | None
    arguments: str


class Finish(Struct, frozen=True):
    """The backend says that the answer is over. An unknown reason was already read as `stop` by the codec."""

    outcome: Outcome


class UsageReport(Struct, frozen=True):
    """The backend's token counts."""

    usage: Usage


class Numbers(Struct, frozen=True):
    """A row of non-negative fixed-point statistics (steering), and as many flags as the request asked for."""

    values: tuple[int, ...]
    flags: tuple[bool, ...] = ()


class Reached(Struct, frozen=True):
    """How far a job has come, in steps from its beginning."""

    step: int


class Embedded(Struct, frozen=True):
    """All embeddings, at once."""

    vectors: Vectors


class TokenIds(Struct, frozen=True):
    """The sampled ids, for the sealed record only. They never leave."""

    ids: tuple[int, ...]


Event = TextDelta | ReasoningDelta | ToolCallDelta | Finish | UsageReport | Numbers | Reached | Embedded | TokenIds


def whole_characters(data: bytes | bytearray, size: int) -> int:
    """The largest n <= size such that data[:n] ends between UTF-8 characters. `data` is valid UTF-8."""
    if size >= len(data):
        return len(data)
    while size > 0 and data[size] & 0xC0 == 0x80:
        size -= 1
    return size


def canonical_arguments(arguments: str) -> str:
    """Tool arguments as canonical JSON: sorted keys, no white space, one spelling per number and string.

    What is not JSON, or says what no UTF-8 can hold, is text and stays as it is: every byte of it is priced.
    """
    try:
        value = json.loads(arguments, parse_constant=_refuse_constant)
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True)
        text.encode()
    except (ValueError, RecursionError):
        return arguments
    return text


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _encode(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as fault:
        raise Malformed("a lone surrogate") from fault


class Answer:
    """What a backend has said so far and what of it has left. Feed it events, take releases from it."""

    __slots__ = (
        "_calls",
        "_declared",
        "_finish",
        "_flags",
        "_head_bytes",
        "_numbers",
        "_pending",
        "_reasoning",
        "_room",
        "_switched",
        "_texted",
        "_tick_bytes_max",
        "_usage",
        "_vectors",
        "quantum_bytes",
        "token_ids",
    )

    def __init__(
        self,
        *,
        quantum_bytes: int,
        answer_bytes_max: int,
        tools_declared: frozenset[str],
        reasoning: bool = False,
        paced: bool = False,
    ) -> None:
        self.quantum_bytes = quantum_bytes
        # Paced play-out: one quantum a tick, begun with a few in hand so that an engine's jitter does not stall it.
        self._tick_bytes_max = quantum_bytes if paced else TICK_RELEASE_BYTES_MAX
        self._head_bytes = PACED_HEAD_QUANTA * quantum_bytes if paced else quantum_bytes
        self._room = answer_bytes_max  # bytes the backend may still add before the gateway ends the answer itself
        self._declared = tools_declared
        self._reasoning = bytearray()  # what is pending of it; the text follows it
        self._pending = bytearray()
        self._texted = False  # text was taken in: no reasoning is taken in any more
        self._switched = not reasoning  # text was released: no release has reasoning any more
        self._calls: list[tuple[str, bytearray]] = []
        self._finish: Outcome | None = None
        self._usage: Usage | None = None
        self._numbers: tuple[int, ...] | None = None
        self._flags: tuple[bool, ...] = ()
        self._vectors: Vectors | None = None
        self.token_ids: list[int] = []

    def add(self, event: Event) -> None:
        """Take in one event. Raises `Malformed` for what cannot be part of an answer. After the end, nothing counts."""
        if self._finish is not None:
            return
        match event:
            case TextDelta(text=text):
                self._add_text(text)
            case ReasoningDelta(text=text):
                self._add_reasoning(text)
            case ToolCallDelta():
                self._add_call(event)
            case Finish(outcome=outcome):
                self._finish = outcome
            case UsageReport(usage=usage):
                self._usage = usage
            case Numbers(values=values, flags=flags):
                self._numbers, self._flags = values, flags
            case Reached():
                raise Malformed("progress where none was asked for")
            case Embedded(vectors=vectors):
                self._vectors = vectors
            case TokenIds(ids=ids):
                self.token_ids.extend(ids)

    def end(self, outcome: Outcome, *, numbers: tuple[int, ...] | None = None) -> None:
        """The gateway ends the answer. What the backend said before keeps its place; its own finish stands if it came first."""
        if self._finish is None:
            self._finish = outcome
            self._usage, self._numbers, self._flags, self._vectors = None, numbers, (), None

    @property
    def finished(self) -> bool:
        """Whether nothing more will be taken in."""
        return self._finish is not None

    @property
    def complete(self) -> bool:
        """Whether the backend finished the answer as an answer."""
        return self._finish is not None and self._finish.complete

    def drop_text(self) -> None:
        """Nothing of an unstreamed answer leaves if it did not come to its end."""
        self._reasoning.clear()
        self._pending.clear()

    @property
    def pending_bytes(self) -> int:
        """Reasoning and text taken in and not yet released."""
        return len(self._reasoning) + len(self._pending)

    @property
    def switching(self) -> bool:
        """Whether the next release may turn from reasoning to text, which has a price of up to `SWITCH_BITS_MAX`."""
        return not self._switched

    @property
    def ready(self) -> bool:
        """Whether the next tick has something to release."""
        return self._finish is not None or self.pending_bytes >= self._head_bytes

    @property
    def quanta_now(self) -> int:
        """How many whole quanta the next piece announces."""
        return min(self.pending_bytes, self._tick_bytes_max) // self.quantum_bytes

    @property
    def last_piece(self) -> bool:
        """Whether the next release is the ending: the backend has finished and what is left fits one tick."""
        return self._finish is not None and self.pending_bytes <= self._tick_bytes_max

    def take(self, *, idle_ticks: int, quanta: int) -> Release:
        """Release `quanta` quanta of reasoning and text, rounded down to whole characters."""
        reasoning, text = self._take_words(quanta * self.quantum_bytes)
        self._head_bytes = self.quantum_bytes
        return Release(idle_ticks=idle_ticks, quanta=quanta, text=text, reasoning=reasoning)

    def take_ending(self, *, idle_ticks: int) -> Release:
        """Release all that is left, and the ending."""
        assert self._finish is not None
        reasoning, text = self._take_words(self.pending_bytes)
        outcome, calls = self._with_calls(self._finish)
        ending = Ending(
            outcome=outcome,
            tool_calls=calls,
            usage=self._usage,
            numbers=self._numbers,
            flags=self._flags,
            vectors=self._vectors,
        )
        return Release(idle_ticks=idle_ticks, quanta=0, text=text, ending=ending, reasoning=reasoning)

    def preview_ending(self, *, idle_ticks: int) -> Release:
        """What `take_ending` would release, with nothing taken: its price decides whether it may."""
        kept = bytes(self._reasoning), bytes(self._pending), self._switched
        release = self.take_ending(idle_ticks=idle_ticks)
        self._reasoning[:], self._pending[:], self._switched = kept
        return release

    def cut(self, *, idle_ticks: int, text_bytes: int) -> Release:
        """End for want of budget: at most `text_bytes` more bytes of text leave, and nothing that came after them."""
        reasoning, text = self._take_words(text_bytes)
        self.drop_text()
        ending = Ending(outcome=Outcome.BUDGET)
        return Release(idle_ticks=idle_ticks, quanta=0, text=text, ending=ending, reasoning=reasoning)

    def _add_text(self, text: str) -> None:
        self._texted = self._texted or bool(text)
        self._pending += self._within_room(_encode(text))

    def _add_reasoning(self, text: str) -> None:
        if not self._texted and not self._switched:
            self._reasoning += self._within_room(_encode(text))

    def _within_room(self, data: bytes) -> bytes:
        if len(data) > self._room:
            data = data[: whole_characters(data, self._room)]
            self._finish = Outcome.LENGTH
        self._room -= len(data)
        return data

    def _add_call(self, delta: ToolCallDelta) -> None:
        if delta.index == len(self._calls):
            if delta.name is None or delta.name not in self._declared:
                raise Malformed("call of a tool that the request did not declare")
            if len(self._calls) == TOOL_CALLS_MAX:
                raise Malformed(f"more than {TOOL_CALLS_MAX} tool calls")
            self._calls.append((delta.name, bytearray()))
        elif not 0 <= delta.index < len(self._calls):
            raise Malformed("tool call index out of order")
        arguments = self._calls[delta.index][1]
        arguments += _encode(delta.arguments)
        if len(arguments) > TOOL_ARGUMENTS_BYTES_MAX:
            raise Malformed(f"tool arguments over {TOOL_ARGUMENTS_BYTES_MAX} bytes")

    def _with_calls(self, finish: Outcome) -> tuple[Outcome, tuple[ToolCall, ...]]:
        """The outcome, and the calls if they are whole. Half a call is of no use, and its length would depend on spelling."""
        if finish not in (Outcome.STOP, Outcome.TOOL_CALLS):
            return finish, ()
        if not self._calls:
            return Outcome.STOP, ()  # no call was seen, so none can be claimed
        calls = tuple(
            ToolCall(name=name, arguments=canonical_arguments(arguments.decode())) for name, arguments in self._calls
        )
        if sum(len(call.arguments.encode()) for call in calls) > self._room:
            return Outcome.LENGTH, ()
        return Outcome.TOOL_CALLS, calls

    def _take_words(self, size: int) -> tuple[str | None, str]:
        """Up to `size` bytes: reasoning first, then text. No reasoning but None once an earlier release had text."""
        reasoning = None if self._switched else _take(self._reasoning, size)
        text = "" if self._reasoning else _take(self._pending, size - len((reasoning or "").encode()))
        self._switched = self._switched or bool(text)
        return reasoning, text


def _take(pending: bytearray, size: int) -> str:
    size = whole_characters(pending, size)
    text = pending[:size].decode()
    del pending[:size]
    return text
