"""After an answer has ended: what its text costs under the cheapest code, and the refund of the difference.

Sound in every case that goes wrong, because the raw price was paid before anything left: an answer that is never settled
keeps its raw charge. If settling falls behind, budgets run out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from gateway.metrics import Metrics
from gateway.ports import Clock, Meter
from gateway.record import Leaf, Settled
from gateway.session import Session
from policy.codelength import BITS_PER_BYTE
from policy.limits import SETTLE_INLINE_BYTES_MAX

QUEUE_ANSWERS_MAX = 1024  # beyond it an answer keeps its raw charge


class Settler:
    """Applies the meters to closed answers, short texts at once and long ones in a thread."""

    def __init__(
        self, *, meters: Sequence[Meter], clock: Clock, metrics: Metrics, record: Callable[[Leaf], None]
    ) -> None:
        self._meters = meters
        self._clock = clock
        self._metrics = metrics
        self._record = record
        self._queue: asyncio.Queue[Session] = asyncio.Queue(QUEUE_ANSWERS_MAX)

    def settle(self, session: Session) -> None:
        """Settle a session whose hold is closed. Never waits."""
        if session.renewed or not session.text or not self._meters:
            return  # across a window's edge nobody can say which window a saving belongs to
        if len(session.text) <= SETTLE_INLINE_BYTES_MAX:
            self._post(session, self._cheapest(bytes(session.text)))
        elif not self._queue.full():
            self._queue.put_nowait(session)
            self._metrics.settle_backlog.inc()

    async def run(self) -> None:
        """Settle long texts, one at a time, off the event loop."""
        while True:
            session = await self._queue.get()
            cheapest = await asyncio.to_thread(self._cheapest, bytes(session.text))
            self._metrics.settle_backlog.dec()
            self._post(session, cheapest)

    def _cheapest(self, text: bytes) -> tuple[int, str]:
        return min((meter.text_bits(text), meter.name) for meter in self._meters)

    def _post(self, session: Session, cheapest: tuple[int, str]) -> None:
        bits, code = cheapest
        raw_bits = BITS_PER_BYTE * len(session.text)
        refund_bits = raw_bits - bits
        if refund_bits <= 0:
            refund_bits, code = 0, "raw"
        session.hold.refund(refund_bits)
        self._record(
            Settled(
                at_ms=int(self._clock.wall_s() * 1000),
                answer=session.identity.id,
                code=code,
                charged_bits=session.charged_bits - refund_bits,
                refunded_bits=refund_bits,
            )
        )
        if code != "raw":
            session.metrics.settled_bits[code].inc(session.charged_bits - refund_bits)
            session.metrics.refunded_bits[code].inc(refund_bits)
