"""The client to one backend: strict, without cookies, redirects, proxies or decompression. It sends what codecs made."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from gateway.ports import UpstreamFailed
from policy.limits import HEADER_LINE_BYTES_MAX, UPSTREAM_CONNECTIONS_MAX
from policy.rules import Timeouts

READ_BUFFER_BYTES = 256 * 1024
UNIX_PREFIX = "unix:"
_HEADERS = {"Content-Type": "application/json", "Accept-Encoding": "identity", "User-Agent": "weir"}


class HttpUpstream:
    """The `Upstream` port over HTTP/1.1 on TCP or a Unix socket."""

    def __init__(self, *, address: str, timeouts: Timeouts) -> None:
        self._timeouts = timeouts
        connector: aiohttp.BaseConnector
        if address.startswith(UNIX_PREFIX):
            self._base = "http://upstream"
            connector = aiohttp.UnixConnector(path=address.removeprefix(UNIX_PREFIX), limit=UPSTREAM_CONNECTIONS_MAX)
        else:
            self._base = address
            connector = aiohttp.TCPConnector(limit=UPSTREAM_CONNECTIONS_MAX, ttl_dns_cache=60)
        self._session = aiohttp.ClientSession(
            connector=connector,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            headers=_HEADERS,
            skip_auto_headers=("Accept",),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=timeouts.connect_s),
            read_bufsize=READ_BUFFER_BYTES,
            max_line_size=HEADER_LINE_BYTES_MAX,
            max_field_size=HEADER_LINE_BYTES_MAX,
        )

    @asynccontextmanager
    async def request(self, *, method: str, path: str, body: bytes) -> AsyncIterator[HttpResponse]:
        """See `Upstream.request`."""
        try:
            async with asyncio.timeout(self._timeouts.first_byte_s):
                response = await self._session.request(
                    method, self._base + path, data=body or None, allow_redirects=False
                )
        except TimeoutError as fault:
            raise UpstreamFailed("timeout_first_byte", timeout=True) from fault
        except aiohttp.ClientConnectorError as fault:
            raise UpstreamFailed("connect") from fault
        except (aiohttp.ClientError, ValueError) as fault:
            raise UpstreamFailed("protocol") from fault
        try:
            if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise UpstreamFailed("content_encoding")
            yield HttpResponse(response, idle_s=self._timeouts.idle_s)
        finally:
            # Only a body read to its end leaves a connection that may be used again; anything else is closed, which
            # also tells the backend to stop.
            response.release() if response.content.at_eof() else response.close()

    async def reachable(self) -> bool:
        """See `Upstream.reachable`."""
        try:
            async with asyncio.timeout(self._timeouts.connect_s):
                async with self._session.get(self._base + "/readyz", allow_redirects=False):
                    return True  # any answer at all: engines differ in their health routes
        except (TimeoutError, aiohttp.ClientError, OSError):
            return False

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()


class HttpResponse:
    """The `UpstreamResponse` port."""

    def __init__(self, response: aiohttp.ClientResponse, *, idle_s: float) -> None:
        self.status = response.status
        self.content_type = response.content_type.lower()
        self._response = response
        self._idle_s = idle_s

    async def read(self) -> bytes:
        """See `UpstreamResponse.read`."""
        try:
            async with asyncio.timeout(self._idle_s):
                return await self._response.content.readany()
        except TimeoutError as fault:
            raise UpstreamFailed("timeout_idle", timeout=True) from fault
        except aiohttp.ClientError as fault:
            raise UpstreamFailed("died") from fault
