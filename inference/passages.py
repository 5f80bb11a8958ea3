"""Texts as token ids: passages to run, positions to look at, and how texts are packed into passes and batches. Pure."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Iterator, Sequence

from inference.limits import LAB_BATCH_ROWS_MAX, LAB_BATCH_TOKENS_MAX, LAB_STEP_TOKENS_MAX

TokenIds = tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Passage:
    """A text to run whole. To selectors the first `prompt_tokens` are prompt, the others answer."""

    token_ids: TokenIds
    prompt_tokens: int

    @property
    def answer_ids(self) -> TokenIds:
        return self.token_ids[self.prompt_tokens :]


class Which(enum.Enum):
    """The positions of a text whose activations are taken."""

    LAST = "last"
    MEAN = "mean"  # the mean over all but the first, whose activation is an attention sink of many times the norm
    TAIL = "tail"  # the mean over the last `tokens`
    EACH_OF_TAIL = "each_of_tail"  # the last `tokens`, each
    EVERY = "every"  # each but the first
    INDEX = "index"  # the one at `index`; negative from the end
    ALL = "all"  # each, the first included


@dataclasses.dataclass(frozen=True, kw_only=True)
class Positions:
    """`tokens` belongs to TAIL and EACH_OF_TAIL, `index` to INDEX."""

    which: Which
    tokens: int = 1
    index: int = 0

    @property
    def tokens_min(self) -> int:
        """Tokens a text must have."""
        if self.which is Which.INDEX:
            return self.index + 1 if self.index >= 0 else -self.index
        return self.tokens if self.which in (Which.TAIL, Which.EACH_OF_TAIL) else 1

    @property
    def is_mean(self) -> bool:
        return self.which in (Which.MEAN, Which.TAIL)

    def of(self, length: int) -> range:
        """The positions in a text of `length` tokens. A text of one token has no other than its first."""
        everything = range(length)
        if self.which is Which.INDEX:
            return everything[self.index :][:1]
        if self.which in (Which.MEAN, Which.EVERY):
            return everything[1:] or everything
        if self.which is Which.ALL:
            return everything
        return everything[-self.tokens :] if self.which is not Which.LAST else everything[-1:]

    def rows(self, length: int) -> int:
        """Activations taken of such a text, per layer."""
        return 1 if self.is_mean else len(self.of(length))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """Tokens start..stop of a text, in rows row_start..row_stop of a pass."""

    text: int
    start: int
    stop: int
    row_start: int

    @property
    def row_stop(self) -> int:
        return self.row_start + self.stop - self.start


def packed(texts: Sequence[TokenIds]) -> Iterator[list[Part]]:
    """Passes of at most `LAB_STEP_TOKENS_MAX`: whole texts side by side, longer ones cut at its multiples."""
    step: list[Part] = []
    rows = 0
    for text, start, stop in _cuts(texts):
        if rows + stop - start > LAB_STEP_TOKENS_MAX:
            yield step
            step, rows = [], 0
        step.append(Part(text=text, start=start, stop=stop, row_start=rows))
        rows += stop - start
        if stop < len(texts[text]):  # the next piece of a text cannot share a pass with this one
            yield step
            step, rows = [], 0
    if step:
        yield step


def _cuts(texts: Sequence[TokenIds]) -> Iterable[tuple[int, int, int]]:
    for text, ids in enumerate(texts):
        for start in range(0, len(ids), LAB_STEP_TOKENS_MAX):
            yield text, start, min(start + LAB_STEP_TOKENS_MAX, len(ids))


def batches(prompts: Sequence[TokenIds], tokens_max: int) -> Iterator[list[TokenIds]]:
    """Rows that are answered together, within `LAB_BATCH_ROWS_MAX` and, but for a single row, `LAB_BATCH_TOKENS_MAX`."""
    batch: list[TokenIds] = []
    tokens = 0
    for prompt in prompts:
        needed = len(prompt) + tokens_max
        if batch and (len(batch) == LAB_BATCH_ROWS_MAX or tokens + needed > LAB_BATCH_TOKENS_MAX):
            yield batch
            batch, tokens = [], 0
        batch.append(prompt)
        tokens += needed
    if batch:
        yield batch


def common_beginning(passages: Sequence[Passage]) -> int:
    """Tokens with which all passages begin, at most one pass, and less than the shortest prompt; 0 for a single one."""
    if len(passages) < 2:
        return 0
    most = min(LAB_STEP_TOKENS_MAX, min(passage.prompt_tokens for passage in passages) - 1)
    first = passages[0].token_ids
    for position in range(most):
        if any(passage.token_ids[position] != first[position] for passage in passages):
            return position
    return max(most, 0)
