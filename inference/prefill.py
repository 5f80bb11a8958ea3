"""Prompts on their way through the model: gates are read, known beginnings copied in, the rest run piece by piece.

Pieces are cut at multiples of `PREFILL_CHUNK_TOKENS` and run one at a time, so that what a prompt computes depends
neither on who else is there nor on what was known already.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math

import torch
from torch import Tensor

from inference.limits import PREFILL_CHUNK_TOKENS, RESTORED_TOKENS_PER_RUN
from inference.model import Model, Span
from inference.prefix import Piece, PrefixCache, piece_names
from inference.request import Sequence
from inference.steering.gates import Gate, GateReader
from inference.steering.table import SteeringTable

_log = logging.getLogger("inference.prefill")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """What one call did: work in tokens run, and once the prompt is over the logits [1, vocab_size] behind it."""

    tokens: int
    logits: Tensor | None = None


class Prefill:
    """Owned by the engine's thread. `prefix` is what it remembers of this model's prompts, and of no other's."""

    def __init__(self, model: Model, *, prefix_tokens_max: int) -> None:
        self._model = model
        token_bytes = model.config.kv_values_per_token * model.dtype.itemsize
        logits_tokens = math.ceil(model.config.vocab_size * torch.float32.itemsize / token_bytes)
        self.prefix = PrefixCache(tokens_max=prefix_tokens_max, logits_tokens=logits_tokens)

    def admit(self, sequence: Sequence, *, room_tokens: int) -> None:
        """Leave `room_tokens` to the prefix cache, and what this prompt can use of it longest."""
        if sequence.gates is not None:
            self.prefix.touch(self._names(sequence))
        self.prefix.shrink(room_tokens)

    def advance(self, sequence: Sequence, *, room_tokens: int) -> Progress:
        """Go on with a prompt. `room_tokens` is the memory that the prefix cache may fill."""
        assert sequence.cache is not None
        if sequence.gates is None:
            return self._read_gates(sequence)
        if not sequence.is_restored:
            return self._restore(sequence)
        start = sequence.cache.length
        ids = sequence.request.prompt_ids[start : start + PREFILL_CHUNK_TOKENS]
        table = SteeringTable([sequence.steered_span(ids, start=start)], device=self._model.device)
        sequence.tables.append(table)
        token_ids = torch.tensor(ids, device=self._model.device)
        hidden = self._model.hidden(token_ids, [Span(sequence.cache, len(ids))], steering=table or None)
        table.finish_step()
        if sequence.cache.length < len(sequence.request.prompt_ids):
            return Progress(tokens=len(ids))
        logits = self._model.head(hidden[-1:])
        self._remember(sequence, logits, room_tokens)
        return Progress(tokens=len(ids), logits=logits)

    def _read_gates(self, sequence: Sequence) -> Progress:
        """Run a piece of the plain prompt as far as the gates look; behind the last one decide, and begin again."""
        assert sequence.cache is not None
        assert sequence.request.steering is not None
        gates, prompt_ids = sequence.request.steering.gates, sequence.request.prompt_ids
        depends_on = ("gates", sequence.request.cache_salt, *map(_identity, gates))
        (name,) = piece_names(prompt_ids, piece_tokens=len(prompt_ids), depends_on=depends_on)
        if sequence.gate_reader is None:
            sequence.gates = self.prefix.decision(name)
            if sequence.gates is not None:
                return Progress(tokens=0)
            sequence.gate_reader = GateReader(gates)
        reader, start = sequence.gate_reader, sequence.cache.length
        ids = prompt_ids[start : start + PREFILL_CHUNK_TOKENS]
        token_ids = torch.tensor(ids, device=self._model.device)
        reader.read(self._model.block_outputs(token_ids, [Span(sequence.cache, len(ids))], layers=reader.layers))
        if sequence.cache.length == len(prompt_ids):
            sequence.gates, sequence.gate_reader = reader.decide(), None
            sequence.cache.length = 0
            self.prefix.keep_decision(name, sequence.gates)
        return Progress(tokens=len(ids))

    def _restore(self, sequence: Sequence) -> Progress:
        """Copy in what is known of the prompt."""
        assert sequence.cache is not None
        sequence.is_restored = True
        pieces = self.prefix.find(self._names(sequence))
        for piece in pieces:
            end = sequence.cache.length + piece.tokens
            sequence.cache.keys_values[:, :, sequence.cache.length : end].copy_(piece.keys_values)
            sequence.cache.length = end
        if not pieces:
            return Progress(tokens=0)
        sequence.applied = pieces[-1].applied.copy()
        sequence.handle.cached_tokens = sequence.cache.length
        is_whole = sequence.cache.length == len(sequence.request.prompt_ids)
        work = math.ceil(sequence.cache.length / RESTORED_TOKENS_PER_RUN)
        return Progress(tokens=work, logits=pieces[-1].logits if is_whole else None)

    def _remember(self, sequence: Sequence, logits: Tensor, room_tokens: int) -> None:
        """Keep the pieces that were run, each with what was applied up to its end."""
        assert sequence.cache is not None
        names, prompt_tokens = self._names(sequence), len(sequence.request.prompt_ids)
        start = sequence.handle.cached_tokens
        try:
            for table in sequence.tables:
                table.settle()
                end = min(start + PREFILL_CHUNK_TOKENS, prompt_tokens)
                piece = Piece(
                    keys_values=sequence.cache.keys_values[:, :, start:end],
                    applied=sequence.applied.copy(),
                    logits=logits if end == prompt_tokens else None,
                )
                self.prefix.keep(names[: math.ceil(end / PREFILL_CHUNK_TOKENS)], piece, tokens_max=room_tokens)
                start = end
        except (RuntimeError, OSError):  # the machine has less memory than it was configured for
            _log.exception("no memory for the prefix cache")
            self.prefix.shrink(0)
        sequence.settle()

    def _names(self, sequence: Sequence) -> tuple[bytes, ...]:
        assert sequence.gates is not None
        request = sequence.request
        if sequence.piece_names is None:
            steered = ""
            if request.steering is not None:
                steered = request.steering.prefix_key(prompt_tokens=len(request.prompt_ids), gates=sequence.gates)
            depends_on = ("keys and values", request.cache_salt, steered)
            sequence.piece_names = piece_names(
                request.prompt_ids, piece_tokens=PREFILL_CHUNK_TOKENS, depends_on=depends_on
            )
        return sequence.piece_names


def _identity(gate: Gate) -> str:
    condition = hashlib.sha256(gate.condition.numpy().tobytes()).hexdigest()
    return f"{condition} {gate.layer} {gate.comparison.value} {gate.threshold.hex()} {gate.reading.value}"
