"""One answer in the making: sampled ids in, text that may leave out. Knows stop strings, end tokens and tool tags.

Text is held back while it could still turn out to belong to a stop string or a tool call, so neither ever leaks in
part.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from inference.tokenizer import Detokenizer, Tokenizer
from inference.tools import OPENING, ToolCall, ToolChoice, is_complete_call, read_tool_calls


@dataclasses.dataclass(frozen=True, kw_only=True)
class Piece:
    """What became sure with one token: text to show, and the ids sampled since the piece before."""

    text: str
    token_ids: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LastPiece:
    """The end of an answer: remaining text and ids, the calls it made, and why it ended."""

    text: str
    token_ids: tuple[int, ...]
    tool_calls: tuple[ToolCall, ...]
    finish_reason: str  # "stop", "length" or "tool_calls"


class Answer:
    """Fed by the engine's thread only, one token at a time."""

    def __init__(
        self, tokenizer: Tokenizer, *, end_ids: frozenset[int], stop: Sequence[str], tools: ToolChoice | None
    ) -> None:
        self._detokenizer = Detokenizer(tokenizer)
        self._end_ids = end_ids
        self._stop = tuple(stop)
        self._tools = tools
        self._held = tools.forced_beginning if tools else ""
        self._held_ids: list[int] = []
        self._in_call = self._held.startswith(OPENING)
        self.token_count = 0
        self.is_stopped = False

    def push(self, token_id: int) -> Piece | None:
        """Take one sampled token. Sets `is_stopped` when the answer ends with it. None: nothing to show yet."""
        self.token_count += 1
        self._held_ids.append(token_id)
        if token_id in self._end_ids:
            self.is_stopped = True
            return None
        self._held += self._detokenizer.push(token_id)
        self._look_for_end()
        sure = 0 if self.is_stopped else self._sure_length()
        if sure == 0:
            return None
        text, self._held = self._held[:sure], self._held[sure:]
        return Piece(text=text, token_ids=self._take_ids())

    def finish(self) -> LastPiece:
        """End the answer where it stands. `length` unless a token, a stop string or a whole call ended it."""
        if not self.is_stopped:
            self._held += self._detokenizer.finish()
            self._look_for_end()
        text, calls = read_tool_calls(self._held, self._tools.names) if self._tools else (self._held, [])
        reason = "tool_calls" if calls else "stop" if self.is_stopped else "length"
        return LastPiece(text=text, token_ids=self._take_ids(), tool_calls=tuple(calls), finish_reason=reason)

    def _take_ids(self) -> tuple[int, ...]:
        ids = tuple(self._held_ids)
        self._held_ids.clear()
        return ids

    def _look_for_end(self) -> None:
        if self._in_call:
            # Stop strings do not cut a call in two; one whole call ends the turn, since small models ramble on behind
            # it.
            if self._tools is not None and self._held.endswith(("}", "}\n", ">")):
                self.is_stopped = is_complete_call(self._held.partition(OPENING)[2], self._tools.names)
            return
        found = [place for place in map(self._held.find, self._stop) if place >= 0]
        if found:
            self._held = self._held[: min(found)]
            self.is_stopped = True

    def _sure_length(self) -> int:
        """How many characters of the held text can no longer become part of a stop string or of a tool tag."""
        if self._tools is not None and not self._in_call:
            place = self._held.find(OPENING)
            if place >= 0:
                self._in_call = True
                return place
        if self._in_call:
            return 0
        marks = (*self._stop, OPENING) if self._tools is not None else self._stop
        return len(self._held) - max((_overlap(self._held, mark) for mark in marks), default=0)


def _overlap(text: str, mark: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `mark`."""
    return next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:n])), 0)
