"""Keys and values of prompts that were run before, so that a prompt with the same beginning runs only its rest.

Prompts are run in pieces that are cut at fixed places, and a piece is named by everything that its keys and values
depend on besides the model: what steering does to the prompt, the caller's salt, and all tokens up to its end. What is found
under a name is what would have been computed, bit for bit. Pieces are copied in and out, never shared with a sequence.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from inference.kv import key_value_memory
from inference.limits import GATE_DECISIONS_MAX
from inference.steering.applied import Applied

Gates = tuple[bool, ...]


def piece_names(token_ids: Sequence[int], *, piece_tokens: int, depends_on: Sequence[str]) -> tuple[bytes, ...]:
    """Names of the pieces of a prompt, the last of which may be shorter than `piece_tokens`."""
    name = hashlib.sha256(json.dumps(list(depends_on)).encode())
    ids = np.asarray(token_ids, dtype="<u4")
    names = []
    for start in range(0, len(ids), piece_tokens):
        name.update(ids[start : start + piece_tokens].tobytes())
        names.append(name.digest())
    return tuple(names)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Piece:
    """Tokens of one prompt: their keys and values [n_layers, 2 n_kv_heads, tokens, d_head].

    applied: what steering did to the prompt up to the end of this piece. logits: float32 [1, vocab_size] behind its
    last token, if a prompt ended there.
    """

    keys_values: Tensor
    applied: Applied
    logits: Tensor | None

    @property
    def tokens(self) -> int:
        return self.keys_values.shape[2]


class PrefixCache:
    """Pieces of one model's prompts by name; the longest unused go first. For one thread.

    A piece takes as much memory as its tokens take in a `KvCache`, and its logits as many tokens more as their bytes
    are worth; `tokens` is the sum.
    """

    def __init__(self, *, tokens_max: int, logits_tokens: int) -> None:
        self.tokens_max, self._logits_tokens = tokens_max, logits_tokens
        self._pieces: collections.OrderedDict[bytes, Piece] = collections.OrderedDict()  # longest unused first
        self._decisions: collections.OrderedDict[bytes, Gates] = collections.OrderedDict()
        self.tokens = 0

    def find(self, names: Sequence[bytes]) -> list[Piece]:
        """The pieces a prompt with these names can begin with, in their order. The last of all only with its logits."""
        found = list(self._found(names))
        self.touch(names)
        if len(found) == len(names) and found[-1].logits is None:
            found.pop()
        return found

    def touch(self, names: Sequence[bytes]) -> None:
        """Count as used now."""
        # From the end: a piece is worth nothing without those before it, so it must go before them.
        for name in reversed(names):
            if name in self._pieces:
                self._pieces.move_to_end(name)

    def keep(self, names: Sequence[bytes], piece: Piece, *, tokens_max: int) -> None:
        """Copy the piece that ends at the last of `names`, dropping others for it.

        Does nothing if it cannot be held in `tokens_max` tokens or within the cache's own maximum.
        """
        cost = self._cost(piece)
        room = min(tokens_max, self.tokens_max) - cost
        if room < 0:
            return
        self._drop(names[-1])
        self.touch(names)  # what leads to this piece goes last
        self.shrink(room)
        self._pieces[names[-1]] = _copied(piece)
        self.tokens += cost
        self.touch(names)

    def shrink(self, tokens_max: int) -> None:
        """Drop the longest unused until at most `tokens_max` tokens are held."""
        while self._pieces and self.tokens > tokens_max:
            self._drop(next(iter(self._pieces)))

    def decision(self, name: bytes) -> Gates | None:
        """How gates were decided for a prompt before; `name` holds both."""
        if name in self._decisions:
            self._decisions.move_to_end(name)
        return self._decisions.get(name)

    def keep_decision(self, name: bytes, gates: Gates) -> None:
        if self.tokens_max > 0:
            self._decisions[name] = gates
            if len(self._decisions) > GATE_DECISIONS_MAX:
                self._decisions.popitem(last=False)

    def _found(self, names: Sequence[bytes]) -> Iterator[Piece]:
        for name in names:
            piece = self._pieces.get(name)
            if piece is None:
                return
            yield piece

    def _drop(self, name: bytes) -> None:
        piece = self._pieces.pop(name, None)
        if piece is not None:
            self.tokens -= self._cost(piece)

    def _cost(self, piece: Piece) -> int:
        return piece.tokens + (0 if piece.logits is None else self._logits_tokens)


def _copied(piece: Piece) -> Piece:
    source = piece.keys_values
    keys_values = key_value_memory(tuple(source.shape), dtype=source.dtype, device=source.device).copy_(source)
    return dataclasses.replace(
        piece, keys_values=keys_values, logits=None if piece.logits is None else piece.logits.clone()
    )
