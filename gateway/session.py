"""One answer on its way out: what the backend said, what it may cost, and what has left. No I/O.

The order of one release is fixed here: price it, charge it, hand out its record; the tick makes the record durable and
only then delivers. Enough is held back at every moment to end the answer honestly, so that running out of budget is an
ordinary ending with a price and not an accident.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import Enum
from functools import lru_cache

from gateway.metrics import AnswerMetrics
from gateway.ports import OverLimit
from gateway.record import Released
from gateway.wire.dialect import Call, Identity
from policy.budget import Account, Hold
from policy.canonical import Answer
from policy.codelength import (
    BITS_PER_BYTE,
    SWITCH_BITS_MAX,
    elias_delta_bits,
    ending_bits,
    parting_bits,
    piece_bits,
    release_bits,
    slot_bits,
)
from policy.limits import FLOW_BLOCK_BYTES
from policy.release import Ending, Outcome, Release
from policy.ticks import TickSymbols

# What a piece or the ending may cost beyond its bytes and its slot: kind, sizes of up to 2**21, tool flags, outcome.
_FRAMING_BITS_MAX = 1 + elias_delta_bits(1 << 21) + 16


class Budget(Enum):
    """What the session knows of its budget's store."""

    OPEN = "open"  # more may be had
    SHORT = "short"  # the purse is empty and a refill is under way
    SPENT = "spent"  # the store has no more


class BudgetGone(Exception):
    """There is not even the price of an ending: a new window has nothing left, or what was held was forfeited."""


class Session:
    """State of one open answer. Driven by the relay (events in, releases out) and the tick (`collect`)."""

    def __init__(
        self,
        *,
        number: int,
        identity: Identity,
        tenant: str,
        metrics: AnswerMetrics,
        call: Call,
        answer: Answer,
        whole: bool,
        hold: Hold,
        accounts: Callable[[], tuple[Account, ...]],
        opened_tick: int,
        opened_s: float,
        ticks_max: int,
        surcharge_bits: int,
        changed: Callable[[Session], None],
    ) -> None:
        self.number = number
        self.identity = identity
        self.tenant = tenant
        self.metrics = metrics
        self.call = call
        self.answer = answer
        self.hold = hold
        self.accounts = accounts  # those of the window that is current when it is called
        self.opened_s = opened_s
        self.ticks_max = ticks_max
        self.budget = Budget.OPEN
        self.whole = whole
        self.charged_bits = 0
        self.text_bits = 0  # what the text costs, as far as it has been settled
        self.ticks = TickSymbols()
        self.text = bytearray()  # what left, for settling: reasoning, text, tool arguments
        self.ending: Ending | None = None
        self.over: OverLimit | None = None  # the account that ran out, if one did
        self.begun = False  # whether the client has been sent anything
        self.renewed = False  # whether the hold was exchanged at a window's edge
        self._surcharge_bits = surcharge_bits  # log2 of the number of codes, owed once
        self._last_tick = opened_tick
        self._changed = changed
        self._waiter: asyncio.Future[Release] | None = None
        self._fault: BaseException | None = None
        self._drained = asyncio.Event()

    async def next(self) -> Release:
        """The next release, once it is charged and on the record. At most one is under way: a slow client gets no more."""
        assert self._waiter is None
        if self._fault is not None:
            raise self._fault
        self._waiter = asyncio.get_running_loop().create_future()
        self._changed(self)
        try:
            return await self._waiter
        finally:
            self._waiter = None

    def touch(self) -> None:
        """The backend said something."""
        if self.ready:
            self._changed(self)

    async def room(self, *, pending_bytes_max: int) -> None:
        """Return when less than this is waiting to leave: the backend is read no faster than the client."""
        while self.answer.pending_bytes > pending_bytes_max and not self.answer.finished:
            self._drained.clear()
            await self._drained.wait()

    @property
    def ready(self) -> bool:
        """Whether the next tick could release something."""
        waiting = self._waiter is not None and not self._waiter.done()
        said = self.answer.finished if self.whole else self.answer.ready
        return waiting and said and self.budget is not Budget.SHORT and self.ending is None

    def renew(self, hold: Hold) -> None:
        """Go on under the accounts of a new window. What was charged stays where it was, and is no longer refunded."""
        self.hold.close()
        self.hold = hold
        self.over = None  # it was an account of the window that has ended
        self.renewed = True

    def part(self, tick: int) -> int:
        """Nothing more leaves. If there was no ending, the silence since the last release was an event as well, and is charged.

        Returns what was charged now.
        """
        if self.ending is not None or self.hold.void:
            return 0
        bits = min(parting_bits(idle_ticks=self._idle_ticks(tick)), self.hold.left_bits)
        self.hold.charge(bits)
        self.charged_bits += bits
        self.metrics.released(bits=bits, text_bytes=0)
        return bits

    def _idle_ticks(self, tick: int) -> int:
        return max(tick - self._last_tick - 1, 0)

    def fail(self, fault: BaseException) -> None:
        """Nothing more can leave, not even an ending: whoever waits for a release gets the fault."""
        self._fault = fault
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(fault)

    def pumped(self, pump: asyncio.Task[None]) -> None:
        """The task that reads the backend is over. A fault it did not turn into an ending is a bug, and must not hang."""
        if not pump.cancelled() and (fault := pump.exception()) is not None:
            self.fail(fault)

    def deliver(self, release: Release) -> None:
        """Hand a durable release to whoever waits for it. A client that went away meanwhile changes nothing."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(release)
        self._drained.set()

    def collect(self, tick: int, *, at_ms: int) -> tuple[Release, Released] | None:
        """Charge what can leave at this tick and return it with its record; None if nothing can, or a refill is needed first."""
        if self.hold.void:
            self.fail(BudgetGone())
            return None
        if self.hold.expires_s is not None and at_ms >= self.hold.expires_s * 1000:
            self.budget = Budget.SHORT  # a budget's window is over: what leaves now belongs to the next one
            return None
        idle_ticks = self._idle_ticks(tick)
        release = self._choose(idle_ticks)
        if release is None:
            return None
        bits = self._price(release)
        self.hold.charge(bits)
        self._surcharge_bits = 0
        self._last_tick = tick
        self.charged_bits += bits
        self._keep(release)
        record = Released(
            at_ms=at_ms,
            answer=self.identity.id,
            tick=tick,
            idle_ticks=idle_ticks,
            text_bytes=len(release.spoken.encode()),
            charged_bits=bits,
            outcome=release.ending.outcome.value if release.ending is not None else None,
        )
        return release, record

    @property
    def shortfall_bits(self) -> int:
        """How much a refill should bring: what the next block, or the whole ending, needs beyond the hold."""
        if not self.answer.last_piece:
            piece_bytes = max(FLOW_BLOCK_BYTES, self.answer.quanta_now * self.answer.quantum_bytes)
            return BITS_PER_BYTE * piece_bytes + _FRAMING_BITS_MAX + self._closing_bits
        needed_bits = self._price(self.answer.preview_ending(idle_ticks=self.ticks_max)) - self.hold.left_bits
        return max(needed_bits, 1)

    def _choose(self, idle_ticks: int) -> Release | None:
        if self.whole and not self.answer.complete:
            self.answer.drop_text()
        if self.answer.last_piece or self.whole:
            ending = self.answer.preview_ending(idle_ticks=idle_ticks)
            if self._afford(self._price(ending)):
                return self.answer.take_ending(idle_ticks=idle_ticks)
            if self.budget is Budget.OPEN:
                self.budget = Budget.SHORT
                return None
            return self._cut(idle_ticks)
        quanta = self.answer.quanta_now
        if self._afford_quanta(quanta, idle_ticks):
            return self.answer.take(idle_ticks=idle_ticks, quanta=quanta)
        if self.budget is Budget.OPEN:
            self.budget = Budget.SHORT
            return None
        return self._cut(idle_ticks)

    def _cut(self, idle_ticks: int) -> Release:
        """The budget is spent. A stream gets what it still covers; half of an unstreamed answer is of no use to anyone."""
        text_bytes = 0 if self.whole else self._affordable_bytes(idle_ticks)
        return self.answer.cut(idle_ticks=idle_ticks, text_bytes=text_bytes)

    def _price(self, release: Release) -> int:
        return release_bits(release, tools_declared=len(self.call.tools_declared)) + self._surcharge_bits

    def _afford(self, bits: int) -> bool:
        return bits <= self.hold.left_bits or self.hold.extend(bits - self.hold.left_bits)

    def _afford_quanta(self, quanta: int, idle_ticks: int) -> bool:
        """Whether so many quanta can leave with the price of an ending still in hand; extends the hold by blocks."""
        bits = piece_bits(idle_ticks=idle_ticks, quanta=quanta, text_bytes=quanta * self.answer.quantum_bytes)
        needed_bits = bits + self._surcharge_bits + self._switch_bits_max + self._closing_bits
        while self.hold.left_bits < needed_bits:
            if not self.hold.extend(BITS_PER_BYTE * FLOW_BLOCK_BYTES):
                return self.hold.extend(needed_bits - self.hold.left_bits)
        return True

    def _affordable_bytes(self, idle_ticks: int) -> int:
        """How much text may still leave together with the ending. A budget is spent to its last whole byte."""
        left_bits = self.hold.left_bits - self._surcharge_bits - self._switch_bits_max
        text_bytes = max(left_bits // BITS_PER_BYTE, 0)
        while text_bytes > 0 and _cut_bits(idle_ticks, text_bytes) > left_bits:
            text_bytes -= 1
        return text_bytes

    @property
    def _switch_bits_max(self) -> int:
        return SWITCH_BITS_MAX if self.answer.switching else 0

    @property
    def _closing_bits(self) -> int:
        return closing_bits(ticks_max=self.ticks_max)

    def _keep(self, release: Release) -> None:
        self.text += release.spoken.encode()
        if release.ending is None:
            self.ticks.piece(idle_ticks=release.idle_ticks, quanta=release.quanta)
        else:
            self.ticks.end(idle_ticks=release.idle_ticks)
            self.ending = release.ending
            for call in release.ending.tool_calls:
                self.text += call.arguments.encode()


def _cut_bits(idle_ticks: int, text_bytes: int) -> int:
    return ending_bits(
        idle_ticks=idle_ticks, text_bytes=text_bytes, ending=Ending(outcome=Outcome.BUDGET), tools_declared=0
    )


@lru_cache(maxsize=64)  # every piece of every stream asks for it, and a policy's timeouts are few
def closing_bits(*, ticks_max: int) -> int:
    """Held back from the start so that any answer can be ended with `Outcome.BUDGET` at any tick."""
    ending = Release(idle_ticks=ticks_max, quanta=0, text="", ending=Ending(outcome=Outcome.BUDGET))
    return release_bits(ending, tools_declared=0) + elias_delta_bits(1 << 21)


def whole_bits_max(*, answer_bytes: int, ticks_max: int) -> int:
    """The raw price of an unstreamed answer of `answer_bytes` without tool calls, at most."""
    return BITS_PER_BYTE * answer_bytes + slot_bits(ticks_max) + _FRAMING_BITS_MAX + 128
