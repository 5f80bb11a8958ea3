"""After an answer has ended: what its text costs under the cheapest code, and the refund of the difference.

Sound in every case that goes wrong, because the raw price was paid before anything left: an answer that is never settled
keeps its raw charge. If settling falls behind, budgets run out.

Two steps: the codes that this process applies itself (zstd, the adaptive tick code) at once, or in a thread if the text is
long; then, if there is a scorer, the language model's. The second only ever lowers what the first left.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from gateway.metrics import Metrics
from gateway.ports import Clock, Meter, Scorer, ScorerFailed, ToScore
from gateway.record import Leaf, Settled
from gateway.session import Session
from policy.codelength import BITS_PER_BYTE
from policy.limits import (
    SCORE_BATCH_ANSWERS_MAX,
    SCORE_QUEUE_BYTES_MAX,
    SETTLE_INLINE_BYTES_MAX,
    SETTLE_QUEUE_ANSWERS_MAX,
)

RAW = "raw"
LANGUAGE_MODEL = "language_model"
SCORER_PAUSE_S = 1.0  # after a failure: the answers it concerned keep what they have, and the next ones are tried again


class Settler:
    """Applies the codes to closed answers. `settle` never waits; `run` and `score` are its two workers."""

    def __init__(
        self,
        *,
        meters: Sequence[Meter],
        scorer: Scorer | None = None,
        clock: Clock,
        metrics: Metrics,
        record: Callable[[Leaf], None],
    ) -> None:
        self._meters = meters
        self._scorer = scorer
        self._clock = clock
        self._metrics = metrics
        self._record = record
        self._long: asyncio.Queue[Session] = asyncio.Queue(SETTLE_QUEUE_ANSWERS_MAX)
        self._unscored: deque[Session] = deque()
        self._unscored_bytes = 0
        self._scorable = asyncio.Event()

    def settle(self, session: Session) -> None:
        """Settle a session whose hold is closed."""
        if session.renewed or not session.text:
            return  # across a window's edge nobody can say which window a saving belongs to
        if len(session.text) <= SETTLE_INLINE_BYTES_MAX:
            self._apply(session, self._cheapest(bytes(session.text)))
        elif not self._long.full():
            self._long.put_nowait(session)
            self._metrics.settle_backlog.labels("zstd").inc()

    async def run(self) -> None:
        """Settle long texts, one at a time, off the event loop."""
        while True:
            session = await self._long.get()
            cheapest = await asyncio.to_thread(self._cheapest, bytes(session.text))
            self._metrics.settle_backlog.labels("zstd").dec()
            self._apply(session, cheapest)

    async def score(self) -> None:
        """Ask the scorer for what waits, a batch at a time. Its failures cost refunds and nothing else."""
        if self._scorer is None:
            return
        while True:
            await self._scorable.wait()
            batch = self._take_batch()
            try:
                scores = await self._scorer.score(
                    [ToScore(session.call.upstream_body, bytes(session.text)) for session in batch]
                )
            except ScorerFailed as fault:
                self._metrics.scorer_errors.labels(fault.kind).inc()
                await asyncio.sleep(SCORER_PAUSE_S)
                continue
            for session, bits in zip(batch, scores, strict=True):
                if bits is None:
                    self._metrics.scorer_errors.labels("unscored").inc()
                elif bits < session.text_bits:
                    self._refund(session, session.text_bits - bits, LANGUAGE_MODEL)
                    session.text_bits = bits

    def _cheapest(self, text: bytes) -> tuple[int, str]:
        return min(
            ((meter.text_bits(text), meter.name) for meter in self._meters), default=(BITS_PER_BYTE * len(text), RAW)
        )

    def _apply(self, session: Session, cheapest: tuple[int, str]) -> None:
        """The first step. Ticks of an answer that was left are not described whole, so they keep the fixed code."""
        raw_bits = BITS_PER_BYTE * len(session.text)
        session.text_bits, code = min((raw_bits, RAW), cheapest)
        ticks_bits = session.ticks.saving_bits() if session.ending is not None else 0
        self._refund(session, raw_bits - session.text_bits + ticks_bits, code)
        if self._scorer is not None and not session.call.stateful:  # a list of handles is no language
            self._enqueue(session)

    def _enqueue(self, session: Session) -> None:
        if self._unscored_bytes + len(session.text) > SCORE_QUEUE_BYTES_MAX:
            self._metrics.scorer_errors.labels("queue_full").inc()
            return
        self._unscored.append(session)
        self._unscored_bytes += len(session.text)
        self._metrics.settle_backlog.labels(LANGUAGE_MODEL).inc()
        self._scorable.set()

    def _take_batch(self) -> list[Session]:
        batch = [self._unscored.popleft() for _ in range(min(len(self._unscored), SCORE_BATCH_ANSWERS_MAX))]
        self._unscored_bytes -= sum(len(session.text) for session in batch)
        self._metrics.settle_backlog.labels(LANGUAGE_MODEL).dec(len(batch))
        if not self._unscored:
            self._scorable.clear()
        return batch

    def _refund(self, session: Session, bits: int, code: str) -> None:
        if session.hold.void:
            return  # what it was charged to was forfeited meanwhile
        session.hold.refund(bits)
        session.charged_bits -= bits
        self._record(
            Settled(
                at_ms=int(self._clock.wall_s() * 1000),
                answer=session.identity.id,
                code=code,
                charged_bits=session.charged_bits,
                refunded_bits=bits,
            )
        )
        session.metrics.settled(code=code, refunded_bits=bits, charged_bits=session.charged_bits)
