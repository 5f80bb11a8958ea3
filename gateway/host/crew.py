"""The worker processes of a keeper: started, watched, asked, replaced when they die, and told to end.

What a worker may ask for and what is done about its death are the keeper's affair; here is only how processes live.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from msgspec import Struct

from gateway import log
from gateway.host.channel import Answers, Channel, ChannelBroken, T, open_channel
from gateway.host.orders import Done, Drain
from gateway.host.process import CannotServe
from gateway.host.remote import FAULTS
from gateway.host.summing import Values
from gateway.ports import AuditFailed, Clock, LedgerUnavailable
from policy.limits import WORKER_ANSWER_S_MAX, WORKER_OBEYS_S_MAX, WORKER_RESTART_S_MAX, WORKER_SOON_S


@dataclass(slots=True, kw_only=True, eq=False)
class Worker:
    """One process, as its keeper sees it."""

    number: int  # its replacement has the same
    holders: set[str] = field(default_factory=set)  # under whose names it was granted leases
    policy: str = ""  # digest of what it was last told to serve under
    serving_since_s: float | None = None
    values: Values = field(default_factory=dict)  # its metrics, when it was last asked
    process: Process = field(init=False)
    channel: Channel = field(init=False)


class Crew:
    """So many workers. `run` ends when all of them have ended after `drain` or `kill`."""

    def __init__(
        self,
        *,
        count: int,
        listener: socket.socket | None,
        answers: Callable[[Worker], Answers],
        died: Callable[[Worker], Awaitable[None]],
        changed: Callable[[int], None],
        clock: Clock,
    ) -> None:
        self.workers: dict[int, Worker] = {}
        self._count = count
        self._listener = listener  # that workers inherit
        self._answers = answers
        self._died = died  # told of each that ended; a replacement starts when it returns
        self._changed = changed  # told how many serve
        self._clock = clock
        self._all_serve = asyncio.Event()
        self._ending = asyncio.Event()
        self._telling: set[asyncio.Task[None]] = set()

    @property
    def serving(self) -> Sequence[Worker]:
        """Those that clients can reach."""
        return [worker for worker in self.workers.values() if worker.serving_since_s is not None]

    async def run(self) -> None:
        """Keep them all alive. Raises `CannotServe` if one ends before all of them have ever served."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for number in range(self._count):
                    tasks.create_task(self._keep(number))
        except* (CannotServe, AuditFailed) as group:
            raise group.exceptions[0] from None
        finally:
            self.kill()

    async def all_serve(self) -> None:
        """Return when every worker has begun to serve."""
        await self._all_serve.wait()

    def serves(self, worker: Worker) -> None:
        """It says so itself."""
        worker.serving_since_s = self._clock.monotonic_s()
        self._changed(len(self.serving))
        if len(self.serving) == self._count:
            self._all_serve.set()

    async def tell(self, worker: Worker, order: Struct) -> None:
        """Return when it has done so, or is dying: a worker that does not obey is killed."""
        if await _asked(worker, order, Done, within_s=WORKER_OBEYS_S_MAX) is None:
            _kill(worker)

    async def ask_all(self, argument: Struct, answer: type[T]) -> Sequence[tuple[Worker, T]]:
        """Of those that serve and answer soon."""
        asked = self.serving
        answers = await asyncio.gather(
            *(_asked(worker, argument, answer, within_s=WORKER_ANSWER_S_MAX) for worker in asked)
        )
        return [(worker, said) for worker, said in zip(asked, answers, strict=True) if said is not None]

    def drain(self) -> None:
        """All shall finish what they have begun, and end. Those that have not begun to serve end at once."""
        self._ending.set()
        for worker in self.workers.values():
            if worker.serving_since_s is None:
                _kill(worker)
            else:
                task = asyncio.create_task(self.tell(worker, Drain()))
                self._telling.add(task)
                task.add_done_callback(self._telling.discard)

    def kill(self) -> None:
        """End them all now."""
        self._ending.set()
        for worker in self.workers.values():
            _kill(worker)

    async def _keep(self, number: int) -> None:
        deaths = 0  # one soon after the other
        while not self._ending.is_set():
            worker = await self._start(number)
            status = await self._end(worker)
            since_s = worker.serving_since_s
            soon = since_s is None or self._clock.monotonic_s() - since_s < WORKER_SOON_S
            del self.workers[number]
            self._changed(len(self.serving))
            if self._ending.is_set():
                await self._died(worker)
                return
            if not self._all_serve.is_set():
                raise CannotServe(f"worker {number} ended with status {status} before it served")
            deaths = deaths + 1 if soon else 0
            delay_s = min(2.0 ** min(deaths - 2, 10), WORKER_RESTART_S_MAX) if deaths > 1 else 0.0
            log.problem("worker died", worker=number, pid=worker.process.pid, status=status, restart_in_s=delay_s)
            await self._died(worker)
            await self._pause(delay_s)

    async def _end(self, worker: Worker) -> int:
        """Return when it has ended, what it had asked for is done, and nothing of it can come later."""
        await worker.channel.broken()  # by its death, as a rule; a worker that lives without a channel must end
        try:
            async with asyncio.timeout(WORKER_OBEYS_S_MAX):
                await worker.process.wait()
        except TimeoutError:
            _kill(worker)
        await worker.channel.lost()
        return await worker.process.wait()

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._ending.wait()
        except TimeoutError:
            return

    async def _start(self, number: int) -> Worker:
        worker = Worker(number=number)
        ours, theirs = socket.socketpair()
        with theirs:
            descriptors = [end.fileno() for end in (theirs, self._listener) if end is not None]
            # A session of its own: Ctrl-C reaches the keeper alone, which stops its workers in order.
            worker.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "gateway.worker", str(number), *map(str, descriptors)),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=descriptors,
                start_new_session=True,
            )
        worker.channel = await open_channel(
            ours,
            answers=self._answers(worker),
            faults=FAULTS,
            bug=lambda fault: log.fault("a worker's question failed", fault, worker=number),
        )
        self.workers[number] = worker
        if self._ending.is_set():  # since it was decided to start it
            _kill(worker)
        return worker


async def _asked(worker: Worker, argument: Struct, answer: type[T], *, within_s: float) -> T | None:
    """None if it does not answer so soon, or not any more, or cannot do it without the ledger."""
    try:
        async with asyncio.timeout(within_s):
            return await worker.channel.call(argument, answer)
    except (TimeoutError, ChannelBroken, LedgerUnavailable):
        return None


def _kill(worker: Worker) -> None:
    if worker.process.returncode is None:
        worker.process.kill()
