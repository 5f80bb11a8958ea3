"""From a prompt and a text to the symbols that describe the text: token ids, and a number of escaped bytes."""

from __future__ import annotations

import dataclasses
import itertools
from array import array

from inference.limits import SCORE_PROMPT_CHARS_MAX
from inference.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenPath:
    """What the model is run on: the prompt's tokens (at least one), then the text's. Escapes need no model."""

    token_ids: array[int]
    prompt_tokens: int
    escapes: int

    @property
    def symbols(self) -> int:
        """Tokens and escaped bytes of the text, without END."""
        return len(self.token_ids) - self.prompt_tokens + self.escapes


class Segmenter:
    """Cuts texts with one vocabulary. Safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer, *, start_id: int, prompt_tokens_max: int) -> None:
        self._tokenizer, self._literal = tokenizer, tokenizer.literal()
        self._start_id, self._prompt_tokens_max = start_id, prompt_tokens_max
        tokens = ((tokenizer.token_bytes(i), i) for i in reversed(range(tokenizer.vocab_size)))
        self._single = {data[0]: token_id for data, token_id in tokens if len(data) == 1}
        self._sayable = bytes(self._single)

    def path(self, prompt: str, text: str, *, add_special_tokens: bool) -> TokenPath:
        """The path of `text` after the end of `prompt`; how much of the prompt is kept depends on the prompt alone."""
        shown = self._tokenizer.encode(prompt[-SCORE_PROMPT_CHARS_MAX:], add_special_tokens=add_special_tokens)
        context = shown[-self._prompt_tokens_max :] or [self._start_id]
        token_ids, escapes = self.cut(text)
        return TokenPath(token_ids=array("l", [*context, *token_ids]), prompt_tokens=len(context), escapes=escapes)

    def cut(self, text: str) -> tuple[list[int], int]:
        """Token ids, and how many bytes are escaped. A character is escaped whole if the vocabulary lacks one byte."""
        if self._is_sayable(text):
            return self._tokens(text), 0
        token_ids: list[int] = []
        escapes = 0
        for sayable, characters in itertools.groupby(text, key=self._is_sayable):
            run = "".join(characters)
            if sayable:
                token_ids += self._tokens(run)
            else:
                escapes += len(run.encode())
        return token_ids, escapes

    def _is_sayable(self, text: str) -> bool:
        return not text.encode().translate(None, self._sayable)

    def _tokens(self, run: str) -> list[int]:
        data = run.encode()
        token_ids = self._literal.encode(run, add_special_tokens=False)
        if b"".join(map(self._literal.token_bytes, token_ids)) == data:
            return token_ids
        # A tokenizer that does not give the text back has not described it; byte by byte is dearer, but a description.
        return [self._single[byte] for byte in data]
