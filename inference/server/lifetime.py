"""From sockets open to sockets closed: listen, wait for a signal, let answers finish, stop."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from pathlib import Path
from typing import Protocol

from aiohttp import web

from inference.limits import DRAIN_S, KEEPALIVE_S

_log = logging.getLogger("inference.server")
_DRAIN_POLL_S = 0.05


class Worker(Protocol):
    """The thread that computes for an app. `stop` ends what is left; after it nothing calls back any more."""

    def start(self) -> None: ...
    def stop(self) -> None: ...

    @property
    def active_requests(self) -> int: ...


class Served(Protocol):
    """What an app's routes share and its lifetime steers. While `is_draining` the routes take nothing new."""

    is_draining: bool

    @property
    def worker(self) -> Worker: ...

    @property
    def model_id(self) -> str: ...


async def serve(app: web.Application, served: Served, *, listen: str) -> None:
    """Serve on `HOST:PORT` or `unix:PATH` until SIGTERM or SIGINT, then drain. Raises OSError if it cannot listen."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    # Cancelling the handler is how a client that hangs up cancels its request in the engine.
    runner = web.AppRunner(
        app,
        handler_cancellation=True,
        access_log=None,
        keepalive_timeout=KEEPALIVE_S,
        shutdown_timeout=1.0,
    )
    await runner.setup()
    served.worker.start()
    try:
        site = make_site(runner, listen)
        await site.start()
        _log.info("ready", extra={"listen": listen, "model": served.model_id})
        await stop.wait()
        served.is_draining = True
        _log.info("draining", extra={"requests": served.worker.active_requests})
        await _drained(served.worker)
    finally:
        served.worker.stop()
        await runner.cleanup()
    _log.info("stopped")


def make_site(runner: web.AppRunner, listen: str) -> web.BaseSite:
    """Raises ValueError for a listen address that is neither HOST:PORT nor unix:PATH."""
    if listen.startswith("unix:"):
        path = Path(listen.removeprefix("unix:"))
        if path.is_socket():
            path.unlink()  # left by a killed server, it would refuse the address; anything else is not ours to remove
        return web.UnixSite(runner, str(path))
    host, colon, port = listen.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"--listen {listen!r} is neither HOST:PORT nor unix:PATH")
    return web.TCPSite(runner, host.strip("[]") or None, int(port))


async def _drained(worker: Worker) -> None:
    deadline = time.monotonic() + DRAIN_S
    while worker.active_requests and time.monotonic() < deadline:  # noqa: ASYNC110 - the worker is a thread
        await asyncio.sleep(_DRAIN_POLL_S)
