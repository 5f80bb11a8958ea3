"""Backend events to releases: the one form in which an answer may leave, whatever bytes the backend chose to say it in.

Text leaves in order, in whole quanta, never splitting a UTF-8 character. Tool calls leave together with the ending, in
call order, their arguments as canonical JSON. Two backends that say the same thing by the same tick give the same release.
"""

from __future__ import annotations

import json

from msgspec import Struct

from policy.limits import TICK_RELEASE_BYTES_MAX, TOOL_ARGUMENTS_BYTES_MAX, TOOL_CALLS_MAX
from policy.release import Ending, Outcome, Release, ToolCall, Usage


class Malformed(ValueError):
    """The backend said something that no type of `policy.release` holds. The message is for the log, not for clients."""


class TextDelta(Struct, frozen=True):
    """More text of the answer."""

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
    """A row of non-negative fixed-point statistics (steering)."""

    values: tuple[int, ...]


class TokenIds(Struct, frozen=True):
    """The sampled ids, for the sealed record only. They never leave."""

    ids: tuple[int, ...]


Event = TextDelta | ToolCallDelta | Finish | UsageReport | Numbers | TokenIds


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
        "_numbers",
        "_pending",
        "_room",
        "_usage",
        "quantum_bytes",
        "token_ids",
    )

    def __init__(self, *, quantum_bytes: int, answer_bytes_max: int, tools_declared: frozenset[str]) -> None:
        self.quantum_bytes = quantum_bytes
        self._room = answer_bytes_max  # bytes the backend may still add before the gateway ends the answer itself
        self._declared = tools_declared
        self._pending = bytearray()
        self._calls: list[tuple[str, bytearray]] = []
        self._finish: Outcome | None = None
        self._usage: Usage | None = None
        self._numbers: tuple[int, ...] | None = None
        self.token_ids: list[int] = []

    def add(self, event: Event) -> None:
        """Take in one event. Raises `Malformed` for what cannot be part of an answer. After the end, nothing counts."""
        if self._finish is not None:
            return
        match event:
            case TextDelta(text=text):
                self._add_text(text)
            case ToolCallDelta():
                self._add_call(event)
            case Finish(outcome=outcome):
                self._finish = outcome
            case UsageReport(usage=usage):
                self._usage = usage
            case Numbers(values=values):
                self._numbers = values
            case TokenIds(ids=ids):
                self.token_ids.extend(ids)

    def end(self, outcome: Outcome, *, numbers: tuple[int, ...] | None = None) -> None:
        """The gateway ends the answer. What the backend said before keeps its place; its own finish stands if it came first."""
        if self._finish is None:
            self._finish = outcome
            self._usage, self._numbers = None, numbers

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
        self._pending.clear()

    @property
    def pending_bytes(self) -> int:
        """Text taken in and not yet released."""
        return len(self._pending)

    @property
    def ready(self) -> bool:
        """Whether the next tick has something to release."""
        return self._finish is not None or len(self._pending) >= self.quantum_bytes

    @property
    def quanta_now(self) -> int:
        """How many whole quanta the next piece announces."""
        return min(len(self._pending), TICK_RELEASE_BYTES_MAX) // self.quantum_bytes

    @property
    def last_piece(self) -> bool:
        """Whether the next release is the ending: the backend has finished and what is left fits one tick."""
        return self._finish is not None and len(self._pending) <= TICK_RELEASE_BYTES_MAX

    def take(self, *, idle_ticks: int, quanta: int) -> Release:
        """Release `quanta` quanta of text, rounded down to whole characters."""
        return Release(idle_ticks=idle_ticks, quanta=quanta, text=self._take_text(quanta * self.quantum_bytes))

    def take_ending(self, *, idle_ticks: int) -> Release:
        """Release all that is left, and the ending."""
        assert self._finish is not None
        text = self._take_text(len(self._pending))
        outcome, calls = self._with_calls(self._finish)
        ending = Ending(outcome=outcome, tool_calls=calls, usage=self._usage, numbers=self._numbers)
        return Release(idle_ticks=idle_ticks, quanta=0, text=text, ending=ending)

    def preview_ending(self, *, idle_ticks: int) -> Release:
        """What `take_ending` would release, with nothing taken: its price decides whether it may."""
        kept = bytes(self._pending)
        release = self.take_ending(idle_ticks=idle_ticks)
        self._pending[:] = kept
        return release

    def cut(self, *, idle_ticks: int, text_bytes: int) -> Release:
        """End for want of budget: at most `text_bytes` more bytes of text leave, and nothing that came after them."""
        text = self._take_text(text_bytes)
        self._pending.clear()
        return Release(idle_ticks=idle_ticks, quanta=0, text=text, ending=Ending(outcome=Outcome.BUDGET))

    def _add_text(self, text: str) -> None:
        data = _encode(text)
        if len(data) > self._room:
            data = data[: whole_characters(data, self._room)]
            self._finish = Outcome.LENGTH
        self._room -= len(data)
        self._pending += data

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

    def _take_text(self, size: int) -> str:
        size = whole_characters(self._pending, size)
        text = self._pending[:size].decode()
        del self._pending[:size]
        return text
