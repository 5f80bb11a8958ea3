"""The fixed clock: collect -> charge -> record -> release, for all answers at once.

At each tick everything that is ready is charged, written to the audit log with one flush, and only then handed to the
sockets. When an answer's bytes leave is therefore a tick number, which is priced, and not a moment that a backend chose.
When nothing is ready nothing runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import floor

from gateway.metrics import Metrics
from gateway.ports import AuditLog, Clock
from gateway.record import Entry, Leaf
from gateway.session import Budget, BudgetGone, Session
from policy.release import Release


class Tick:
    """One loop for the whole process. `run` ends only by cancellation or by `AuditFailed`, which must end the process."""

    def __init__(
        self,
        *,
        clock: Clock,
        audit: AuditLog,
        metrics: Metrics,
        tick_s: float,
        usable: Callable[[], bool],
        short: Callable[[Session], None],
    ) -> None:
        self._clock = clock
        self._audit = audit
        self._metrics = metrics
        self._tick_s = tick_s
        self._usable = usable  # whether what is held of the budgets may be spent now
        self._short = short  # told of a session whose hold needs a refill
        self._ready: dict[int, Session] = {}
        self._entries: list[Entry] = []
        self._flushing: list[asyncio.Future[None]] = []
        self._running = False
        self._wake = asyncio.Event()
        self._last = 0

    @property
    def now(self) -> int:
        """The number of the tick that is under way."""
        return floor(self._clock.monotonic_s() / self._tick_s)

    def enlist(self, session: Session) -> None:
        """This session may have something to release at the next tick."""
        if session.ready:
            self._ready[session.number] = session
            self._wake.set()

    def record(self, leaf: Leaf, content: object = None) -> None:
        """Put a leaf on the record with the next flush, before anything that is charged after it leaves."""
        self._entries.append(Entry(leaf, content))
        self._wake.set()

    async def run(self) -> None:
        """Tick while there is something to do."""
        self._running = True
        try:
            while True:
                await self._wake.wait()
                due = max(self.now, self._last) + 1  # rounding of the clock must not give two ticks one number
                await self._clock.sleep_until(due * self._tick_s)
                self._wake.clear()
                self._last = due
                await self.once(due)
        finally:
            self._running = False

    async def once(self, due: int) -> None:
        """One tick. Raises `AuditFailed`, and then nothing of this tick has left."""
        ready, self._ready = self._ready, {}
        releases = self._collect(ready, due)
        flushing, self._flushing = self._flushing, []
        await self._append()
        # A crash before this line: charged and on the record, never sent. A crash after it: sent, and both hold.
        for session, release in releases:
            session.deliver(release)
        for waiting in flushing:
            if not waiting.done():
                waiting.set_result(None)
        lag_s = self._clock.monotonic_s() - due * self._tick_s
        self._metrics.tick_lag.observe(lag_s)
        self._metrics.ticks_missed.inc(max(floor(lag_s / self._tick_s), 0))

    def _collect(self, ready: dict[int, Session], due: int) -> list[tuple[Session, Release]]:
        at_ms = int(self._clock.wall_s() * 1000)
        releases: list[tuple[Session, Release]] = []
        if not self._usable():
            for session in ready.values():
                session.fail(BudgetGone())  # not even an ending may be charged
            return releases
        for number in sorted(ready):  # by admission, which the backend does not decide
            session = ready[number]
            if not session.ready:
                continue
            charged = session.collect(due, at_ms=at_ms)
            if charged is not None:
                release, leaf = charged
                self._entries.append(Entry(leaf, release))
                session.metrics.released(bits=leaf.charged_bits, text_bytes=leaf.text_bytes)
                releases.append((session, release))
            elif session.budget is Budget.SHORT:
                self._short(session)
        return releases

    async def flush(self) -> None:
        """Return when whatever was recorded before this call is durable. Raises `AuditFailed` if the tick does not run."""
        if self._running:  # one writer keeps the order
            waiting = asyncio.get_running_loop().create_future()
            self._flushing.append(waiting)
            self._wake.set()
            await waiting
        else:
            await self._append()

    async def _append(self) -> None:
        entries, self._entries = self._entries, []
        if entries:
            # Whoever is cancelled here has charged what these say: they must reach the log all the same, in their place.
            await asyncio.shield(asyncio.ensure_future(self._audit.append(entries)))
