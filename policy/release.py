"""The closed type of all that may leave: what no type here can hold cannot leak."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal


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
    LICENCE = "licence"  # the gateway's operating licence ended first
    UNWITNESSED = "unwitnessed"  # no quorum of witnesses had seen the audit log lately enough

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
class Vectors:
    """Embeddings of a request's inputs, in their order: a row of bytes each, one byte a component, all of one length.

    `bits` 8: a component is k + 127 for k from -127 to 127. `bits` 1: 1 for its positive sign, 0 for its negative one.
    `dimensions_coded`: the backend chose the rows' length, which is therefore priced; otherwise policy had fixed it.
    """

    bits: Literal[1, 8]
    dimensions_coded: bool
    rows: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """The one terminal event of an answer. `numbers` are fixed-point statistics whose meaning the dialect knows.

    `flags` come with numbers only, and then as many of them as the request asked for: so their count is not priced.
    """

    outcome: Outcome
    tool_calls: tuple[ToolCall, ...] = ()
    usage: Usage | None = None
    numbers: tuple[int, ...] | None = None
    flags: tuple[bool, ...] = ()
    vectors: Vectors | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """What leaves for one answer at one tick: text, and at the end the ending.

    `idle_ticks`: ticks without a release since the last one (or since admission). `quanta`: whole quanta announced; of a
    job's progress, steps without any bytes (`policy.progress`).
    `reasoning` stands before the text; None once an earlier release had text, and where policy releases no reasoning.
    """

    idle_ticks: int
    quanta: int
    text: str
    ending: Ending | None = None
    reasoning: str | None = None

    @property
    def spoken(self) -> str:
        """All that is said in words: reasoning, then text. Its bytes are what quanta count and text codes settle."""
        return self.reasoning + self.text if self.reasoning else self.text
