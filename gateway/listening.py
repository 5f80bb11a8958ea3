"""Sockets that clients connect to, and serving on them."""

from __future__ import annotations

import os
import socket
from contextlib import suppress

from aiohttp import web

from policy.limits import CLIENT_SEND_BUFFER_BYTES
from policy.rules import Address, UnixAddress

LISTEN_BACKLOG = 1024


async def site_on(server: web.Server, listener: socket.socket) -> web.BaseSite:
    """Serve on a bound socket."""
    runner = web.ServerRunner(server, shutdown_timeout=1.0)
    await runner.setup()
    site = web.SockSite(runner, listener, backlog=LISTEN_BACKLOG)
    await site.start()
    return site


def port_of(listener: socket.socket) -> int:
    """0 for a Unix socket."""
    return int(listener.getsockname()[1]) if listener.family != socket.AF_UNIX else 0


def bound(address: Address, *, shared: bool = False) -> socket.socket:
    """A socket for this address, whose connections inherit a small send buffer, so that little can leave after a cut.

    With `shared`, other processes may bind the same port and get their part of the connections; without it, nobody.
    """
    if isinstance(address, UnixAddress):
        with suppress(FileNotFoundError):
            os.unlink(address.path)  # noqa: PTH108  left behind by a crash; once, at start
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(address.path)
        return listener
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CLIENT_SEND_BUFFER_BYTES)
    listener.bind((address.host, address.port))
    return listener
