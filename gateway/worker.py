"""`python -m gateway.worker`: one worker of a keeper, which starts it. It serves clients, and asks the keeper for the rest.

It lives only as long as its keeper: when the channel between them breaks, nothing can be recorded any more, and it ends at once.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path

from gateway.edge import strict  # noqa: F401  before anything imports aiohttp

# isort: split
from gateway import log
from gateway.app import Gateway, Kept
from gateway.audit.log import scribe
from gateway.audit.segments import recent
from gateway.clock import SystemClock
from gateway.config import Config, ConfigError, config_of
from gateway.holdings import Holdings
from gateway.host.channel import Answers, Channel, ChannelBroken, open_channel
from gateway.host.orders import (
    Count,
    Counted,
    Done,
    Drain,
    Hello,
    Hold,
    Ready,
    Serving,
    Take,
    Together,
    Unready,
    Welcome,
)
from gateway.host.process import CannotServe, run, stop_unrecorded
from gateway.host.remote import FAULTS, RemoteAuditLog, RemoteLedger
from gateway.host.summing import values_of
from gateway.listening import bound
from gateway.ports import AuditFailed, LedgerUnavailable
from policy.rules import Policy, TcpAddress


class Worker:
    """A gateway on what a keeper keeps."""

    def __init__(self, *, listener: socket.socket | None) -> None:
        self._listener = listener  # of a Unix address, which cannot be bound by each worker for itself
        self._path = Path()
        self._gateway: Gateway
        self._channel: Channel

    async def run(self, end: socket.socket) -> None:
        """Serve until the keeper says that it is enough. `end` is this worker's of the channel."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # they are for the keeper, even if they were sent to the whole group
        self._channel = await open_channel(end, answers=self._answers(), faults=FAULTS, bug=_bug)
        gone = asyncio.create_task(self._outlive_nobody())
        welcome = await self._channel.call(Hello(), Welcome)
        self._path = Path(welcome.path)
        config = self._config(welcome.text, policy=welcome.policy)
        kept = Kept(
            ledger=RemoteLedger(self._channel),
            audit=RemoteAuditLog(
                self._channel,
                scribe=scribe(config.policy.audit, origin=welcome.origin, clock=SystemClock()),
                recent=lambda: recent(Path(config.policy.audit.directory)),
            ),
            origin=welcome.origin,
            held=self._together,
            listener=self._listener or _bound(config.policy, port=welcome.port),
            serving=self._serving,
        )
        self._gateway = Gateway(config=config, kept=kept)
        if self._gateway.codes != welcome.codes:
            raise CannotServe("the files that the codes depend on have changed; restart the gateway")
        await self._gateway.run()
        gone.cancel()

    def _answers(self) -> Answers:
        """What the keeper asks, only after it was told `Serving`."""
        return {Take: self._take, Count: self._count, Hold: self._hold, Ready: self._ready, Drain: self._drain}

    async def _take(self, order: Take) -> Done:
        await self._gateway.take(self._config(order.text, policy=order.policy))
        return Done()

    async def _count(self, _: Count) -> Counted:
        return Counted(values_of(self._gateway.metrics.registry))

    async def _hold(self, _: Hold) -> Holdings:
        return self._gateway.holdings()

    async def _ready(self, _: Ready) -> Unready:
        return Unready(await self._gateway.unready())

    async def _drain(self, _: Drain) -> Done:
        self._gateway.stop()
        return Done()

    async def _serving(self) -> None:
        await self._channel.call(Serving(), Done)

    async def _together(self) -> Holdings:
        try:
            return await self._channel.call(Together(), Holdings)
        except ChannelBroken as broken:
            raise LedgerUnavailable(str(broken)) from broken

    async def _outlive_nobody(self) -> None:
        await self._channel.broken()
        stop_unrecorded(AuditFailed("the keeper is gone"))

    def _config(self, text: str, *, policy: str) -> Config:
        try:
            config = config_of(text, self._path)
        except ConfigError as mistakes:
            raise CannotServe(str(mistakes)) from mistakes
        assert config.policy.digest == policy, "two processes read one policy differently"
        return config


def _bound(policy: Policy, *, port: int) -> socket.socket:
    assert isinstance(policy.listen, TcpAddress)
    return bound(replace(policy.listen, port=port), shared=True)


def _bug(fault: Exception) -> None:
    log.fault("a keeper's question failed", fault)


def main(arguments: list[str]) -> int:
    """`NUMBER CHANNEL [LISTENER]`: descriptors that were inherited. Returns the exit status."""
    number, channel, *listener = map(int, arguments)
    log.configure(worker=number)
    worker = Worker(listener=socket.socket(fileno=listener[0]) if listener else None)
    return run(lambda: worker.run(socket.socket(fileno=channel)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
