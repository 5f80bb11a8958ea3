"""Counting tokens with a pinned tokenizer, so that usage is the gateway's own figure and carries nothing of a backend's.

`tokenizers` is needed only by a policy that says `usage: recount`; it is imported here and nowhere else in the gateway.
"""

from __future__ import annotations

import hashlib
from pathlib import Path


class TokenizerError(ValueError):
    """The file is not the tokenizer that the policy names."""


class TokenizerCounter:
    """The `TokenCounter` port on a `tokenizer.json`. Raises `TokenizerError`, or `OSError` if the file cannot be read."""

    def __init__(self, path: Path, *, digest: str) -> None:
        data = path.read_bytes()
        found = hashlib.sha256(data).hexdigest()
        if found != digest:
            raise TokenizerError(f"its SHA-256 is {found}, and the policy pins {digest}")
        try:
            from tokenizers import Tokenizer
        except ImportError as fault:
            raise TokenizerError("usage: recount needs the package 'tokenizers'; install weir[recount]") from fault
        try:
            self._tokenizer = Tokenizer.from_buffer(data)
        except ValueError as fault:
            raise TokenizerError(f"it is not a tokenizer: {fault}") from fault

    def tokens(self, text: str) -> int:
        """See `TokenCounter.tokens`."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)
