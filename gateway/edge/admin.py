"""The admin server: health, metrics, status page, and the figures of `weir status`. Read-only, for the operator alone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web
from aiohttp.web_request import BaseRequest
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from gateway.edge import status_page
from gateway.metrics import Registry
from gateway.overview import Overview

JSON = "application/json"


class AdminServer:
    """Answers on the admin address."""

    def __init__(
        self,
        *,
        registry: Callable[[], Awaitable[Registry]],
        status: Callable[[], Awaitable[dict[str, object]]],
        claims: Callable[[], Awaitable[dict[str, object]]],
        unready: Callable[[], Awaitable[str | None]],
        overview: Callable[[], Awaitable[Overview]],
    ) -> None:
        self._registry = registry
        self._status = status
        self._claims = claims
        self._unready = unready
        self._overview = overview

    def server(self) -> web.Server:
        """The protocol factory for `loop.create_server`."""
        return web.Server(self.handle, access_log=None, keepalive_timeout=75.0)

    async def handle(self, request: BaseRequest) -> web.StreamResponse:
        """One request. Anything but GET of a known path is refused."""
        if request.method not in ("GET", "HEAD"):
            return web.Response(status=405, text="The admin port is read-only.\n", headers={"Allow": "GET"})
        match request.raw_path:
            case "/" | status_page.REFRESHING as path:
                refreshes = path != "/"
                body = status_page.page(await self._overview(), refreshes=refreshes)
                every = {"Refresh": str(status_page.REFRESH_S)} if refreshes else {}
                return web.Response(body=body.encode(), headers={**status_page.HEADERS, **every})
            case "/livez" | "/healthz":
                return web.Response(text="ok\n")
            case "/readyz":
                reason = await self._unready()
                return web.Response(text="ok\n") if reason is None else web.Response(status=503, text=f"{reason}\n")
            case "/metrics":
                await self._status()  # brings the budget gauges up to date
                page = generate_latest(await self._registry())
                return web.Response(body=page, headers={"Content-Type": CONTENT_TYPE_LATEST})
            case "/status.json":
                return web.Response(body=msgspec.json.encode(await self._status()), headers={"Content-Type": JSON})
            case "/claims":
                return web.Response(body=msgspec.json.encode(await self._claims()), headers={"Content-Type": JSON})
        return web.Response(
            status=404, text="Here are / (status), /livez, /readyz, /metrics, /status.json and /claims.\n"
        )
