"""The closed type of all that may leave: what no type here can hold cannot leak."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Outcome(Enum):
    """How an answer ended."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    BUDGET = "budget"
    UPSTREAM_ERROR = "upstream_error"
    TIMEOUT = "timeout"
    REJECTED = "rejected"  # the backend says that the request is wrong (4xx)
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"

    @property
    def complete(self) -> bool:
        """Whether the client may be told that this was the whole answer."""
        return self in _COMPLETE


_COMPLETE = frozenset({Outcome.STOP, Outcome.LENGTH, Outcome.TOOL_CALLS})


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts, as the backend claims them. The total is the gateway's own sum."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call of a declared tool. `arguments` is canonical JSON wherever the model wrote JSON at all."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """The one terminal event of an answer. `numbers` are fixed-point statistics whose meaning the dialect knows."""

    outcome: Outcome
    tool_calls: tuple[ToolCall, ...] = ()
    usage: Usage | None = None
    numbers: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """What leaves for one answer at one tick: text, and at the end the ending.

    `idle_ticks`: ticks without a release since the last one (or since admission). `quanta`: whole quanta announced.
    """

    idle_ticks: int
    quanta: int
    text: str
    ending: Ending | None = None
