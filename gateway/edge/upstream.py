"""The client to one backend: strict, without cookies, redirects, proxies or decompression. It sends what codecs made."""

from __future__ import annotations

import asyncio
import select
from functools import partial
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from yarl import URL

from gateway.ports import UpstreamFailed
from policy.limits import HEADER_LINE_BYTES_MAX, UPSTREAM_CONNECTIONS_MAX
from policy.rules import Timeouts

if TYPE_CHECKING:
    from aiohttp.connector import Connection
    from aiohttp.tracing import Trace

READ_BUFFER_BYTES = 256 * 1024
KEEPALIVE_S = 4.0  # below uvicorn's 5 s, so that a request does not meet a connection that its engine is closing
STALE_CONNECTIONS_MAX = 64  # how many kept connections are given up for one request before the backend is
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
            connector = _UnixConnector(path=path, limit=UPSTREAM_CONNECTIONS_MAX, keepalive_timeout=KEEPALIVE_S)
        else:
            self._base = address
            connector = _TcpConnector(limit=UPSTREAM_CONNECTIONS_MAX, keepalive_timeout=KEEPALIVE_S, ttl_dns_cache=60)
        self._session = aiohttp.ClientSession(
            connector=connector,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            headers=_HEADERS,
            skip_auto_headers=("Accept",),
            # aiohttp's own socket timer begins when the head is in: it waits for the next byte of the body.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=timeouts.connect_s, sock_read=None),
            read_bufsize=READ_BUFFER_BYTES,
            max_line_size=HEADER_LINE_BYTES_MAX,
            max_field_size=HEADER_LINE_BYTES_MAX,
        )
        self._urls: dict[str, URL] = {}

    def request(self, *, method: str, path: str, body: bytes, stream: bool) -> HttpExchange:
        """See `Upstream.request`."""
        url = self._urls.get(path)
        if url is None:
            url = URL(self._base + path)
            if len(self._urls) < URLS_KEPT_MAX:
                self._urls[path] = url
        wait_s = self._timeouts.first_byte_s if stream else self._timeouts.total_s
        return HttpExchange(self._session, method, url, body, timeouts=self._timeouts, wait_s=wait_s)

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

    __slots__ = ("_body", "_method", "_response", "_session", "_timeouts", "_url", "_wait_s")

    def __init__(
        self, session: aiohttp.ClientSession, method: str, url: URL, body: bytes, *, timeouts: Timeouts, wait_s: float
    ) -> None:
        self._session = session
        self._method = method
        self._url = url
        self._body = body
        self._timeouts = timeouts
        self._wait_s = wait_s  # for the head
        self._response: aiohttp.ClientResponse

    async def __aenter__(self) -> HttpResponse:
        try:
            # aiohttp's timer starts again with every byte: of an endless head, of endless interim responses.
            async with asyncio.timeout(self._timeouts.connect_s + self._wait_s):
                response = await self._session.request(
                    self._method, self._url, data=self._body or None, allow_redirects=False
                )
        except TimeoutError as fault:
            raise UpstreamFailed("timeout_first_byte", timeout=True) from fault
        except aiohttp.ClientConnectorError as fault:
            raise UpstreamFailed("connect") from fault
        except (aiohttp.ClientError, ValueError) as fault:
            raise UpstreamFailed("protocol") from fault
        self._response = response
        kind = _unreadable(response)
        if kind is not None:
            response.close()
            raise UpstreamFailed(kind)
        protocol = response.connection.protocol if response.connection is not None else None
        if protocol is not None:
            protocol.read_timeout = self._timeouts.idle_s
            protocol.start_timeout()
            assert isinstance(protocol, _Backend)
            protocol.body = response.content
        return HttpResponse(response)

    async def __aexit__(self, *_: object) -> None:
        # Only a body read to its end leaves a connection that may be used again; anything else is closed, which also
        # tells the backend to stop.
        if self._response.content.at_eof():
            self._response.release()
        else:
            self._response.close()


def _unreadable(response: aiohttp.ClientResponse) -> str | None:
    """Why a response is refused by its head: framing that two parsers could read in two ways, or a coded body."""
    coding = response.headers.get("Transfer-Encoding")
    if response.version not in (aiohttp.HttpVersion10, aiohttp.HttpVersion11):
        return "protocol"
    if coding is not None and (coding.lower() != "chunked" or response.version != aiohttp.HttpVersion11):
        return "protocol"
    if any(coded.lower() != "identity" for coded in response.headers.getall("Content-Encoding", ())):
        return "content_encoding"
    return None


class _Backend(ResponseHandler):
    """aiohttp's side of a connection, without what it does for nothing, and with one thing more.

    Its reader resumes reading after every chunk that it hands out, paused or not, and each time the parser is run on no bytes
    and the transport is told: a tenth of what a burst of 200 chunks costs. On malformed chunks it closes the connection without
    telling whoever waits for the body.
    """

    body: aiohttp.StreamReader | None = None  # of the answer that this connection carries, or carried last

    def connection_lost(self, exc: BaseException | None) -> None:
        """See `asyncio.Protocol.connection_lost`."""
        super().connection_lost(exc)
        if self.body is not None and not self.body.is_eof() and self.body.exception() is None:
            self.body.set_exception(aiohttp.ClientPayloadError("the connection closed in the middle of the body"))

    def resume_reading(self, resume_parser: bool = True) -> None:
        """See `aiohttp.base_protocol.BaseProtocol.resume_reading`. What was not paused has nothing left to parse."""
        if self._reading_paused:
            super().resume_reading(resume_parser)


class _Unspoilt(aiohttp.BaseConnector):
    """Gives out no connection on which the backend has said anything since its last answer ended.

    aiohttp would take such bytes, glued to one tenant's answer, for the next tenant's (RFC 9112, section 6.3).
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._factory = partial(_Backend, loop=self._loop)  # type: ignore[assignment]  # partial is invariant

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109  aiohttp's signature
    ) -> Connection:
        """See `aiohttp.BaseConnector.connect`."""
        for _ in range(STALE_CONNECTIONS_MAX):
            connection = await super().connect(req, traces, timeout)
            if not _spoilt(connection):
                return connection
            connection.close()
        raise aiohttp.ServerDisconnectedError("the backend speaks before it is asked")


class _TcpConnector(_Unspoilt, aiohttp.TCPConnector):
    """Over TCP."""


class _UnixConnector(_Unspoilt, aiohttp.UnixConnector):
    """Over a Unix socket."""


def _spoilt(connection: Connection) -> bool:
    """Whether there are bytes, or an end, that aiohttp has read or the kernel holds."""
    protocol, transport = connection.protocol, connection.transport
    if protocol is None or transport is None or protocol.should_close:
        return True
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
    return bool(poll.poll(0))


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
