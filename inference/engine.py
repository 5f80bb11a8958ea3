"""Continuous batching: one thread that owns the model's steps, a bounded queue, and the key-value memory.

Between any two steps requests join and leave. A step is: a bounded piece of prompts, then one token for everybody who
is past the prompt. Memory is counted in tokens: requests that run reserve theirs for their longest answer, the prefix
cache has some of what they leave and gives it back when they need it.
"""

from __future__ import annotations

import collections
import logging
import threading
from collections.abc import Iterator

import numpy as np
import torch

from inference.kv import KvCache
from inference.limits import PREFILL_STEP_TOKENS_MAX, PREFIX_KV_SHARE, QUEUE_REQUESTS_MAX
from inference.model import Model, Span
from inference.prefill import Prefill
from inference.request import EndReason, EngineRequest, Handle, Refused, RefusedReason, Sequence
from inference.sampling import sample
from inference.steering.table import SteeringTable

_log = logging.getLogger("inference.engine")

Chore = Iterator[None]
"""Work in small pieces (an extraction); one `next` per step. It must catch its own faults."""


class Engine:
    """Start with `start`, end with `stop`. `submit`, `add_chore` and the counters may be used from any thread."""

    def __init__(
        self, model: Model, *, batch_rows_max: int, kv_tokens_max: int, prefix_tokens_max: int | None = None
    ) -> None:
        """prefix_tokens_max: how much of `kv_tokens_max` the prefix cache may have (a share of it if left out)."""
        self._model = model
        share = kv_tokens_max // PREFIX_KV_SHARE if prefix_tokens_max is None else prefix_tokens_max
        self._prefill = Prefill(model, prefix_tokens_max=share)
        self._batch_rows_max, self._kv_tokens_max = batch_rows_max, kv_tokens_max
        self._lock = threading.Condition()
        self._waiting: collections.deque[Sequence] = collections.deque()  # guarded by _lock
        self._chores: collections.deque[Chore] = collections.deque()  # guarded by _lock
        self._stopping = False  # guarded by _lock
        self._has_failed = False  # guarded by _lock
        self._prefilling: list[Sequence] = []
        self._decoding: list[Sequence] = []
        self._decode_table: SteeringTable | None = None  # None: the batch has changed since it was built
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End every request as cancelled, then the thread. Returns when the step in progress is over."""
        with self._lock:
            self._stopping = True
            self._lock.notify()
        self._thread.join()

    def submit(self, request: EngineRequest) -> Handle | Refused:
        """Queue a request. Refusals are immediate and call neither callback."""
        assert request.prompt_ids
        assert request.max_tokens > 0
        if request.kv_tokens > self._kv_tokens_max:
            needs = f"{len(request.prompt_ids)} prompt + {request.max_tokens} new tokens"
            message = f"the request needs memory for {needs}, this server has room for {self._kv_tokens_max} in all"
            return Refused(reason=RefusedReason.KV_MEMORY, message=message)
        sequence = Sequence(request=request, handle=Handle())
        with self._lock:
            if self._stopping:
                return Refused(reason=RefusedReason.STOPPING, message="the server is shutting down")
            if len(self._waiting) >= QUEUE_REQUESTS_MAX:
                return Refused(
                    reason=RefusedReason.QUEUE_FULL, message="too many requests are waiting; try again later"
                )
            self._waiting.append(sequence)
            self._lock.notify()
        return sequence.handle

    def add_chore(self, chore: Chore) -> None:
        """Interleave a chore with the requests; one chore runs at a time, first come first served."""
        with self._lock:
            self._chores.append(chore)
            self._lock.notify()

    @property
    def active_requests(self) -> int:
        """Requests waiting or running."""
        with self._lock:
            return len(self._waiting) + len(self._prefilling) + len(self._decoding)

    @property
    def has_failed(self) -> bool:
        """Whether its thread ended by a fault: it will answer nothing any more."""
        with self._lock:
            return self._has_failed

    @property
    def prompts_waiting(self) -> int:
        """Requests whose first token is still to come."""
        with self._lock:
            return len(self._waiting) + len(self._prefilling)

    @property
    def waiting_requests(self) -> int:
        """Requests that wait for a place in the batch."""
        return len(self._waiting)

    @property
    def running_requests(self) -> int:
        """Requests in the batch, their prompts included."""
        return len(self._prefilling) + len(self._decoding)

    @property
    def batch_rows_max(self) -> int:
        """How many requests run at once at most."""
        return self._batch_rows_max

    @property
    def kv_tokens_max(self) -> int:
        """Tokens of key-value memory there are for running requests."""
        return self._kv_tokens_max

    @property
    def kv_tokens_reserved(self) -> int:
        """Tokens of key-value memory held by running requests."""
        return sum(sequence.request.kv_tokens for sequence in (*self._prefilling, *self._decoding))

    @property
    def prefix_tokens(self) -> int:
        """Tokens of key-value memory held by the prefix cache."""
        return self._prefill.prefix.tokens

    def step(self) -> None:
        """One turn. The engine's thread does nothing else; a benchmark may take its place, and never `start`."""
        self._drop_cancelled()
        self._admit()
        self._prefill_some()
        self._decode_once()
        self._advance_chore()

    def _run(self) -> None:
        torch.set_num_threads(torch.get_num_threads())  # OpenMP keeps the number per thread; this one is new
        try:
            while self._await_work():
                self.step()
        except Exception:  # noqa: BLE001 - whatever it was, those who wait must not wait for ever
            # A request's own callback, or a bug. Whoever waits is told, nobody new is taken in, and `/livez` says so.
            _log.exception("the engine has failed")
            with self._lock:
                self._stopping = self._has_failed = True
        self._end_everything()

    def _await_work(self) -> bool:
        with self._lock:
            while not (self._stopping or self._waiting or self._prefilling or self._decoding or self._chores):
                self._lock.wait()
            return not self._stopping

    def _drop_cancelled(self) -> None:
        with self._lock:
            gone = [sequence for sequence in self._waiting if sequence.handle.is_cancelled]
            for sequence in gone:
                self._waiting.remove(sequence)
        gone += [sequence for sequence in (*self._prefilling, *self._decoding) if sequence.handle.is_cancelled]
        for sequence in gone:
            self._end(sequence, EndReason.CANCELLED)

    def _admit(self) -> None:
        # First come, first served: a large request at the head waits for room instead of being overtaken for ever.
        while len(self._prefilling) + len(self._decoding) < self._batch_rows_max:
            with self._lock:
                if not self._waiting:
                    return
                needed = self._waiting[0].request.kv_tokens
                if self.kv_tokens_reserved + needed > self._kv_tokens_max:
                    return
                sequence = self._waiting.popleft()
                self._prefilling.append(sequence)
            model = self._model
            try:
                self._prefill.admit(sequence, room_tokens=self._kv_tokens_max - self.kv_tokens_reserved)
                sequence.cache = KvCache(model.config, capacity=needed, dtype=model.dtype, device=model.device)
            except Exception:  # noqa: BLE001 - above all: the machine has less memory than it was configured for
                self._fail([sequence])

    def _prefill_some(self) -> None:
        budget = PREFILL_STEP_TOKENS_MAX
        while self._prefilling and budget > 0:
            sequence = self._prefilling[0]
            try:
                room_tokens = self._kv_tokens_max - self.kv_tokens_reserved
                progress = self._prefill.advance(sequence, room_tokens=room_tokens)
                budget -= progress.tokens
                if progress.logits is not None:
                    self._prefilling.remove(sequence)
                    self._decoding.append(sequence)
                    self._drop_decode_table()
                    self._take_tokens([sequence], progress.logits)
            except Exception:  # noqa: BLE001 - whatever broke this prompt must not end the others
                self._fail([sequence])

    def _decode_once(self) -> None:
        batch = list(self._decoding)
        if not batch:
            return
        try:
            spans = [Span(sequence.cache, 1) for sequence in batch if sequence.cache is not None]
            ids = tuple(sequence.last_token_id for sequence in batch if sequence.last_token_id is not None)
            table = self._table_for(batch, ids)
            token_ids = torch.tensor(ids, device=self._model.device)
            logits = self._model.logits(token_ids, spans, steering=table or None)
            table.finish_step()
            self._take_tokens(batch, logits)
        except Exception:  # noqa: BLE001 - these requests end as failed and are logged; the thread lives on
            self._fail(batch)

    def _table_for(self, batch: list[Sequence], ids: tuple[int, ...]) -> SteeringTable:
        """The table of the step before, unless the batch or what is to be done to its tokens has changed."""
        spans = [
            sequence.steered_span((token_id,), start=sequence.position_next - 1)
            for sequence, token_id in zip(batch, ids, strict=True)
        ]
        if self._decode_table is None or not self._decode_table.fits(spans):
            self._drop_decode_table()
            self._decode_table = SteeringTable(spans, device=self._model.device)
        return self._decode_table

    def _drop_decode_table(self) -> None:
        if self._decode_table is not None:
            self._decode_table.settle()
            self._decode_table = None

    def _take_tokens(self, batch: list[Sequence], logits: torch.Tensor) -> None:
        rows = logits.cpu().numpy()  # [rows, vocab_size] float32: noise is always drawn on the CPU, the same everywhere
        for sequence, row in zip(batch, rows, strict=True):
            request = sequence.request
            if request.steering is not None and not np.isfinite(row).all():
                self._end(sequence, EndReason.DIVERGED)
                continue
            token_id = sample(row, request.sampling, position=sequence.position_next)
            sequence.generated += 1
            sequence.last_token_id = token_id
            if request.on_token(token_id):
                self._end(sequence, EndReason.STOPPED)
            elif sequence.generated == request.max_tokens:
                self._end(sequence, EndReason.LENGTH)

    def _advance_chore(self) -> None:
        with self._lock:
            chore = self._chores[0] if self._chores else None
        if chore is not None and next(chore, StopIteration) is StopIteration:
            with self._lock:
                self._chores.popleft()

    def _fail(self, batch: list[Sequence]) -> None:
        _log.exception("step failed", extra={"requests": len(batch)})
        for sequence in batch:
            if sequence in self._prefilling or sequence in self._decoding:
                self._end(sequence, EndReason.FAILED)

    def _end(self, sequence: Sequence, reason: EndReason) -> None:
        if sequence in self._prefilling:
            self._prefilling.remove(sequence)
        if sequence in self._decoding:
            self._decoding.remove(sequence)
            self._drop_decode_table()
        sequence.settle()
        sequence.applied.gates = sequence.gates or ()
        sequence.cache = None
        sequence.request.on_end(reason, sequence.applied)

    def _end_everything(self) -> None:
        with self._lock:
            waiting = list(self._waiting)
            self._waiting.clear()
            chores = list(self._chores)
            self._chores.clear()
        for sequence in (*waiting, *self._prefilling, *self._decoding):
            self._end(sequence, EndReason.CANCELLED)
        for chore in chores:
            close = getattr(chore, "close", None)
            if close is not None:
                close()
