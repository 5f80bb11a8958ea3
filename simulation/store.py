"""The store and the way to it: the reference ledger as the state machine, and a network that loses, delays and reorders."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from copy import deepcopy
from random import Random
from typing import Any

from gateway.ledger.memory import MemoryLedger
from gateway.ports import AccountLimit, AccountState, Granted, LeaseState, LedgerUnavailable, OverLimit, Wanted
from simulation.machine import Disk, Machine
from simulation.model import Books, Model, Violation

CALL_S_MAX = 8.0  # a holder waits so long for an answer

Trace = Callable[..., None]


class Store:
    """One store. Whatever it does, it does at once, and the model watches."""

    def __init__(self, *, model: Model, trace: Trace) -> None:
        self._clock = Machine("store")
        self._ledger = MemoryLedger(clock=self._clock)
        self._model = model
        self._trace = trace
        self._forgot = False  # ever
        self.away = False
        self.disks: dict[str, list[Disk]] = defaultdict(
            list
        )  # by holder: on one of them its closes must be on the record

    def apply(self, name: str, *args: Any, **fields: Any) -> Any:
        """What `Ledger.<name>` returns or raises."""
        known = name == "grant" and fields["lease"] in self._model.books.leases
        try:
            answer = _now(getattr(self._ledger, name)(*args, **fields))
        except ValueError:
            self._model.hold("no more is returned than was granted", self._forgot, str(fields))
            raise
        match name:
            case "register":
                self._model.registered(args[0])
            case "grant" if isinstance(answer, Granted) and not known:
                counted = {self._model.counted_in(account) for account in answer.bits} | answer.bits.keys()
                self._model.granted(holder=fields["holder"], answer=answer, debited=self._debited(counted))
                self._trace("granted", fields["holder"], answer.lease, dict(answer.bits), dict(answer.fences))
            case "close_lease" if answer:
                self._on_record(fields["holder"], fields["lease"], answer, fields["returned"])
                self._model.closed(lease=fields["lease"], returned=fields["returned"], closed=answer)
                self._trace("closed", fields["holder"], fields["lease"], {a: fields["returned"][a] for a in answer})
            case "freeze":
                self._model.books.frozen |= args[0].keys()
                self._trace("frozen", dict(args[0]))
        return answer

    def thaw(self) -> None:
        """An operator thaws what is frozen, and debits what the holders' logs say that was forgotten."""
        for account in sorted(self._model.books.frozen):
            before = self._debited([account])[account]
            lost = sum(
                bits for (_, name), bits in self._model.forgotten.items() if self._model.counted_in(name) == account
            )
            lost_bits = max(lost - self._model.books.thawed[account], 0)
            _now(self._ledger.thaw(account, lost_bits=lost_bits))
            self._model.thawed(account, self._debited([account])[account] - before)
            self._trace("thawed", account, lost_bits)

    def image(self) -> tuple[MemoryLedger, Books]:
        return deepcopy(self._ledger, {id(self._clock): self._clock}), self._model.snapshot()

    def restore(self, image: tuple[MemoryLedger, Books]) -> None:
        """Forget everything since."""
        self._forgot = True
        self._ledger = deepcopy(image[0], {id(self._clock): self._clock})
        self._model.restored(image[1])

    def limit_bits(self, account: str) -> int:
        return self._model.books.limits[account]

    def _debited(self, accounts: Collection[str]) -> dict[str, int]:
        return {state.account: state.debited_bits for state in _now(self._ledger.states(list(accounts)))}

    def _on_record(self, holder: str, lease: str, closed: Collection[str], returned: Mapping[str, int]) -> None:
        for account in closed:
            on_record = any(disk.returned.get((lease, account)) == returned[account] for disk in self.disks[holder])
            self._model.hold("what goes back is on the record first", on_record, f"{account} of {lease}")


class Network:
    """How messages fare between the holders and the store."""

    def __init__(self, store: Store, rng: Random) -> None:
        self.store = store
        self._rng = rng
        self.loss = 0.0  # the share of messages that is lost, each way
        self.delay_s = 0.01  # at most, usually

    def delay(self) -> float:
        return self._rng.random() * self.delay_s * (100 if self.loss and self._rng.random() < 0.05 else 1)

    def loses(self) -> bool:
        return self.store.away or (self.loss > 0 and self._rng.random() < self.loss)


class Wire:
    """The `Ledger` port of one process."""

    def __init__(self, network: Network, machine: Machine, *, process: str, model: Model) -> None:
        self._network = network
        self._machine = machine
        self._process = process
        self._model = model
        self._fences: dict[str, int] = {}  # the highest that were heard
        self._asked: set[str] = set()
        self.cut = False  # the process is dead

    def copied(self, other: Wire) -> None:
        """Know what the wire of the process knew that this one was copied from."""
        self._fences, self._asked = dict(other._fences), set(other._asked)

    async def register(self, limits: Sequence[AccountLimit]) -> Sequence[str]:
        return await self._ask("register", list(limits))

    async def grant(self, *, lease: str, holder: str, wanted: Mapping[str, Wanted]) -> Granted | OverLimit:
        before, again = dict(self._fences), lease in self._asked
        self._asked.add(lease)
        answer = await self._ask("grant", lease=lease, holder=holder, wanted=dict(wanted))
        if isinstance(answer, Granted) and not again:
            self._hear(before, {name: fence - 1 for name, fence in answer.fences.items()})
        return answer

    async def close_lease(self, *, lease: str, holder: str, returned: Mapping[str, int]) -> Collection[str]:
        return await self._ask("close_lease", lease=lease, holder=holder, returned=dict(returned))

    async def beat(self, holder: str) -> int:
        return await self._ask("beat", holder)

    async def idle_s(self, holder: str) -> float | None:
        return await self._ask("idle_s", holder)

    async def states(self, accounts: Collection[str] | None = None) -> Sequence[AccountState]:
        before = dict(self._fences)
        states = await self._ask("states", accounts)
        self._hear(before, {state.account: state.fence for state in states})
        return states

    async def freeze(self, fences: Mapping[str, int]) -> None:
        await self._ask("freeze", dict(fences))

    async def thaw(self, account: str, *, lost_bits: int) -> bool:
        return await self._ask("thaw", account, lost_bits=lost_bits)

    async def leases(
        self, *, holder: str | None = None, after: str = "", count_max: int = 1000
    ) -> Sequence[LeaseState]:
        return await self._ask("leases", holder=holder, after=after, count_max=count_max)

    async def close(self) -> None:
        pass

    def _hear(self, before: Mapping[str, int], shown: Mapping[str, int]) -> None:
        for account, fence in shown.items():
            if fence < before.get(account, 0):
                self._model.hears(self._process, account)
            self._fences[account] = max(fence, self._fences.get(account, 0))

    async def _ask(self, name: str, *args: Any, **fields: Any) -> Any:
        await self._machine.gate()
        loop, network = asyncio.get_running_loop(), self._network
        answered: asyncio.Future[Any] = loop.create_future()

        def arrive() -> None:
            if network.loses():
                return
            try:
                reply = network.store.apply(name, *args, **fields)
            except (LedgerUnavailable, KeyError, ValueError) as refusal:
                loop.call_later(network.delay(), resolve, None, refusal)
            except Violation as violation:
                resolve(None, violation)
            else:
                if not network.loses():
                    loop.call_later(network.delay(), resolve, reply, None)

        def resolve(reply: Any, fault: BaseException | None) -> None:
            if answered.done():
                return
            if fault is None:
                answered.set_result(reply)
            else:
                answered.set_exception(fault)

        if not self.cut:
            loop.call_later(network.delay(), arrive)
        late = loop.call_later(CALL_S_MAX, resolve, None, LedgerUnavailable("no answer"))
        try:
            return await answered
        finally:
            late.cancel()
            await self._machine.gate()


def _now(step: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that waits for nothing."""
    try:
        step.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("the reference ledger waits for nothing")
