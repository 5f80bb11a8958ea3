"""A host: its clocks, its disk, and whether anything runs on it at all."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from random import Random

from gateway.ports import AuditFailed
from gateway.record import Entry, Leaf, LeaseClosed, LeaseGranted
from policy.limits import RECENT_S

EPOCH_S = 1_000_000.0  # what a right wall clock shows when a schedule begins


class Machine:
    """The `Clock` port, and a gate at which everything waits that runs here while the machine is stopped."""

    def __init__(self, name: str, *, wall_offset_s: float = 0.0) -> None:
        self.name = name
        self._loop = asyncio.get_running_loop()
        self.wall_offset_s = wall_offset_s  # how wrong the wall clock is
        self.boot_offset_s = 64.0
        self.slept_s = 0.0
        self.boots = 1
        self.boot_name = name  # a copied machine keeps it
        self.clocks_moved = False  # its wall clock was once wrong by more than the constant that it began with
        self._running = asyncio.Event()
        self._running.set()

    def wall_s(self) -> float:
        return EPOCH_S + self._loop.time() + self.wall_offset_s

    def monotonic_s(self) -> float:
        return self._loop.time() + self.boot_offset_s

    def suspended_s(self) -> float:
        return self.slept_s

    def boot_id(self) -> str:
        return f"{self.boot_name}/{self.boots}"

    async def sleep_until(self, deadline_s: float) -> None:
        while (left_s := deadline_s - self.monotonic_s()) > 0:  # noqa: ASYNC110  the deadline moves with the clock
            await asyncio.sleep(left_s)
        await self.gate()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self.gate()

    async def gate(self) -> None:
        """Return when the machine runs. Everything from outside comes through here."""
        while not self._running.is_set():
            await self._running.wait()

    def stop(self) -> None:
        self._running.clear()

    def go_on(self) -> None:
        self._running.set()

    def step_wall(self, seconds: float) -> None:
        self.wall_offset_s += seconds
        self.clocks_moved = True


class Disk:
    """The `AuditLog` port. A crash keeps what was flushed, and some prefix of what was being written."""

    def __init__(self, machine: Machine, rng: Random) -> None:
        self.machine = machine
        self._rng = rng
        self._written: list[tuple[float, Leaf]] = []
        self._under_way: list[Sequence[Entry]] = []
        self._free_s = 0.0
        self.broken = False  # its process is dead: nothing is written any more
        self.granted: set[str] = set()  # leases on the record
        self.returned: dict[tuple[str, str], int] = {}  # by lease and account

    @property
    def busy(self) -> bool:
        """Whether something is being written."""
        return bool(self._under_way)

    async def append(self, entries: Sequence[Entry]) -> None:
        if self.broken:
            raise AuditFailed("the process is dead")
        loop = asyncio.get_running_loop()
        flushed: asyncio.Future[None] = loop.create_future()
        self._under_way.append(entries)
        self._free_s = max(self._free_s, loop.time()) + self._rng.choice((0.001, 0.001, 0.004, 0.3))
        loop.call_at(self._free_s, self._flushed, entries, flushed)  # goes on even if nobody waits for it any more
        await flushed
        await self.machine.gate()

    def recent(self) -> Iterator[Leaf]:
        if not self._written:
            return
        first_s = self._written[-1][0] - RECENT_S - self._rng.choice((0.0, 1e9))
        for at_s, leaf in list(self._written):
            if at_s >= first_s:
                yield leaf

    async def close(self) -> None:
        pass

    def crash(self) -> Disk:
        """What a process finds here that begins after this one died."""
        after = self.image()
        self.broken = True
        torn = [entry for entries in self._under_way for entry in entries]
        after._write(torn[: self._rng.randint(0, len(torn))])
        return after

    def all(self) -> list[Leaf]:
        """Everything that is durable."""
        return [leaf for _, leaf in self._written]

    def image(self) -> Disk:
        """A copy of what is durable now."""
        return self.image_for(self.machine)

    def image_for(self, machine: Machine) -> Disk:
        """The same, in a copied machine."""
        copy = Disk(machine, self._rng)
        copy._written = list(self._written)
        copy.granted, copy.returned = set(self.granted), dict(self.returned)
        return copy

    def _flushed(self, entries: Sequence[Entry], flushed: asyncio.Future[None]) -> None:
        if self.broken:
            return
        self._under_way.remove(entries)
        self._write(entries)
        if not flushed.done():
            flushed.set_result(None)

    def _write(self, entries: Sequence[Entry]) -> None:
        now_s = asyncio.get_running_loop().time()
        for entry in entries:
            self._written.append((now_s, entry.leaf))
            if isinstance(entry.leaf, LeaseGranted):
                self.granted.add(entry.leaf.lease)
            elif isinstance(entry.leaf, LeaseClosed):
                self.returned |= {(entry.leaf.lease, name): bits for name, bits in entry.leaf.returned.items()}
