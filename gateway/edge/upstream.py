"""The client to one backend: strict, without cookies, redirects, proxies or decompression. It sends what codecs made."""

from __future__ import annotations

import asyncio
from functools import partial

import aiohttp
from yarl import URL

from gateway.ports import UpstreamFailed
from policy.limits import HEADER_LINE_BYTES_MAX, UPSTREAM_CONNECTIONS_MAX
from policy.rules import Timeouts

READ_BUFFER_BYTES = 256 * 1024
KEEPALIVE_S = 4.0  # below uvicorn's 5 s, so that a request does not meet a connection that its engine is closing
URLS_KEPT_MAX = 16  # there are three constant paths; paths with ids are not worth keeping
UNIX_PREFIX = "unix:"
_HEADERS = {"Content-Type": "application/json", "Accept-Encoding": "identity", "User-Agent": "weir"}


class HttpUpstream:
    """The `Upstream` port over HTTP/1.1 on TCP or a Unix socket."""

    def __init__(self, *, address: str, timeouts: Timeouts) -> None:
        self._timeouts = timeouts
        connector: aiohttp.BaseConnector
        if address.startswith(UNIX_PREFIX):
            self._base = "http://upstream"
            path = address.removeprefix(UNIX_PREFIX)
            connector = aiohttp.UnixConnector(path=path, limit=UPSTREAM_CONNECTIONS_MAX, keepalive_timeout=KEEPALIVE_S)
        else:
            self._base = address
            connector = aiohttp.TCPConnector(
                limit=UPSTREAM_CONNECTIONS_MAX, keepalive_timeout=KEEPALIVE_S, ttl_dns_cache=60
            )
        self._session = aiohttp.ClientSession(
            connector=connector,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            headers=_HEADERS,
            skip_auto_headers=("Accept",),
            # The socket timer is aiohttp's own, one for the whole connection: it waits for the first byte here, and
            # for the next one once the headers are in.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=timeouts.connect_s, sock_read=timeouts.first_byte_s),
            read_bufsize=READ_BUFFER_BYTES,
            max_line_size=HEADER_LINE_BYTES_MAX,
            max_field_size=HEADER_LINE_BYTES_MAX,
        )
        self._urls: dict[str, URL] = {}

    def request(self, *, method: str, path: str, body: bytes) -> HttpExchange:
        """See `Upstream.request`."""
        url = self._urls.get(path)
        if url is None:
            url = URL(self._base + path)
            if len(self._urls) < URLS_KEPT_MAX:
                self._urls[path] = url
        return HttpExchange(self._session, method, url, body, idle_s=self._timeouts.idle_s)

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


class HttpExchange:
    """One request and its response, as a context."""

    __slots__ = ("_body", "_idle_s", "_method", "_response", "_session", "_url")

    def __init__(self, session: aiohttp.ClientSession, method: str, url: URL, body: bytes, *, idle_s: float) -> None:
        self._session = session
        self._method = method
        self._url = url
        self._body = body
        self._idle_s = idle_s
        self._response: aiohttp.ClientResponse

    async def __aenter__(self) -> HttpResponse:
        try:
            response = await self._session.request(
                self._method, self._url, data=self._body or None, allow_redirects=False
            )
        except aiohttp.ServerTimeoutError as fault:
            raise UpstreamFailed("timeout_first_byte", timeout=True) from fault
        except aiohttp.ClientConnectorError as fault:
            raise UpstreamFailed("connect") from fault
        except (aiohttp.ClientError, ValueError) as fault:
            raise UpstreamFailed("protocol") from fault
        self._response = response
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            response.close()
            raise UpstreamFailed("content_encoding")
        protocol = response.connection.protocol if response.connection is not None else None
        if protocol is not None:
            protocol.read_timeout = self._idle_s
            if protocol.closed is not None:
                protocol.closed.add_done_callback(partial(_tell_reader, response.content))
        return HttpResponse(response)

    async def __aexit__(self, *_: object) -> None:
        # Only a body read to its end leaves a connection that may be used again; anything else is closed, which also
        # tells the backend to stop.
        if self._response.content.at_eof():
            self._response.release()
        else:
            self._response.close()


def _tell_reader(content: aiohttp.StreamReader, closed: asyncio.Future[None]) -> None:
    """The connection is gone. On malformed chunks aiohttp closes it without telling whoever waits for the body."""
    if not closed.cancelled():
        closed.exception()  # retrieved, so that nobody logs it
    if not content.is_eof() and content.exception() is None:
        content.set_exception(aiohttp.ClientPayloadError("the connection closed in the middle of the body"))


class HttpResponse:
    """The `UpstreamResponse` port."""

    __slots__ = ("_content", "content_type", "status")

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.status = response.status
        self.content_type = response.content_type.lower()
        self._content = response.content

    async def read(self) -> bytes:
        """See `UpstreamResponse.read`."""
        try:
            return await self._content.readany()
        except TimeoutError as fault:
            raise UpstreamFailed("timeout_idle", timeout=True) from fault
        except aiohttp.ClientError as fault:
            raise UpstreamFailed("died") from fault
