"""A client's connection: how many there may be, how long each step on one may take, and what malformed HTTP is told.

aiohttp bounds idle connections only. Heads, writes and the last bytes before a close get their deadlines here; bodies get
theirs where they are read. Requests are not pipelined: what comes before an answer has ended belongs to that request or to
nobody, so that no parser's idea of where one request ends lets another in behind it (RFC 9112, section 9.3.2, has clients
that pipeline send again what was not answered).
"""

from __future__ import annotations

import asyncio
import re
from typing import Any, cast

from aiohttp import web
from aiohttp.helpers import DEFAULT_CHUNK_SIZE
from aiohttp.http import HttpRequestParser
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import MAX_MSG_QUEUE_SIZE, RequestHandler, RequestPayloadError, _ErrInfo
from aiohttp.web_request import BaseRequest

from gateway.edge.client import refusal_headers
from gateway.metrics import Metrics
from gateway.wire.errors import error_body
from policy.limits import (
    CLIENT_CONNECTIONS_MAX,
    CLIENT_HEAD_S_MAX,
    CLIENT_KEEPALIVE_S_MAX,
    CLIENT_LINGER_S_MAX,
    CLIENT_WRITE_S_MAX,
    HEADER_LINE_BYTES_MAX,
    HEADERS_MAX,
    REQUEST_BYTES_MAX,
)
from policy.refusal import Reason, Refused

# llhttp takes several spaces for one, and RTSP/1.0 and ICE/1.0 for HTTP/1.0.
_LINE = re.compile(rb"(?:\r\n)*[A-Z]+ [!-~]+ HTTP/1\.[01]\r\n")
_LINE_SO_FAR = re.compile(rb"(?:\r\n)*(?:\r|[^\r\n]+\r?)?")
_MESSAGES = {
    Reason.INTERNAL: "The gateway failed to handle this request.",
    Reason.INVALID_REQUEST: "This is not a valid HTTP/1.1 request.",
    Reason.REQUEST_TIMEOUT: f"The request's headers did not arrive within {CLIENT_HEAD_S_MAX:.0f} seconds.",
}


class ClientServer(web.Server):
    """The protocol factory for `loop.create_server`. Counts the connections that are open."""

    def __init__(self, handler: Any, *, metrics: Metrics) -> None:
        super().__init__(
            handler,
            request_factory=_request,
            handler_cancellation=True,  # a client that goes away cancels its backend request
            keepalive_timeout=CLIENT_KEEPALIVE_S_MAX,
            lingering_time=CLIENT_LINGER_S_MAX,
            max_line_size=HEADER_LINE_BYTES_MAX,
            max_field_size=HEADER_LINE_BYTES_MAX,
            max_headers=HEADERS_MAX,
            access_log=None,
        )
        self.open = 0
        self.metrics = metrics

    def __call__(self) -> RequestHandler:
        """A protocol for one connection."""
        return ClientConnection(self, loop=self._loop, **self._kwargs)


class ClientConnection(RequestHandler):
    """aiohttp's protocol with a cap, deadlines, and OpenAI-shaped errors instead of pages that name the server's software."""

    __slots__ = ("_asked", "_body", "_head_deadline", "_heard", "_line", "_server", "_wire")

    def __init__(self, server: ClientServer, **options: Any) -> None:
        super().__init__(server, **options)
        self._server = server
        self._wire: asyncio.Transport
        self._asked = False  # a head has come whole, and its answer has not ended
        self._body: StreamReader = EMPTY_PAYLOAD  # of the request that is being handled
        self._heard = False
        self._line: bytes | None = b""  # what has come of a request line; None after its end
        self._head_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Beyond the cap nothing is said: an answer would cost what the cap is there to save."""
        self._wire = cast("asyncio.Transport", transport)
        if self._server.open >= CLIENT_CONNECTIONS_MAX:
            self._server.metrics.connections_refused.inc()
            self._manager = None  # aiohttp's sign that there is nothing to tidy up
            self._wire.abort()
            return
        self._server.open += 1
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: BaseException | None) -> None:
        """The one end of every connection that was let in."""
        if self._manager is None:
            return
        self._server.open -= 1
        self._head_came()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse. Nothing is heard any more once the connection is to be closed."""
        if self._close or self._force_close:
            return
        self._heard = True
        if self._line is not None and not self._begins_well(data):
            self._interrupt(400)
            return
        before = self._request_count
        super().data_received(data)
        if self._request_count > before:
            self._take_one(came=self._request_count - before)
        elif self._head_deadline is None and not self._asked:
            self._await_head()

    async def start(self) -> None:
        """Handle requests until the connection is to be closed. A close waits for what is unsent, but not for ever."""
        try:
            await super().start()
        finally:
            if self._wire.get_write_buffer_size():
                self._loop.call_later(CLIENT_WRITE_S_MAX, self._wire.abort)

    async def finish_response(
        self, request: BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send what is left of a response; then listen for another request. Long answers have been sent before, in pieces."""
        if self._close:
            resp.force_close()
        try:
            async with asyncio.timeout(CLIENT_WRITE_S_MAX):
                finished = await super().finish_response(request, resp, start_time)
        except TimeoutError:
            self._wire.abort()
            return resp, True
        body = request.content
        if body.exception() is not None:
            body.feed_eof()  # so that aiohttp does not wait for the rest of it
        elif body.is_eof() and self._parser is not None:
            self._asked, self._line, self._body = False, b"", EMPTY_PAYLOAD
            self._parser = _parser(self, self._loop)  # which has heard nothing that came behind this request
        return finished

    def handle_error(
        self, request: BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """A request that could not be parsed, or a bug. Neither may say anything that is not fixed here."""
        if request.writer.output_size > 0:
            raise ConnectionError("a response has begun, so no other can be sent")
        if status >= 500:
            self.log_exception("error while handling a request", exc_info=exc)
            reason = Reason.INTERNAL
        else:
            reason = Reason.REQUEST_TIMEOUT if status == 408 else Reason.INVALID_REQUEST
        self._server.metrics.refusals.labels(reason.label).inc()
        refused = Refused(reason=reason, message=_MESSAGES[reason])
        response = web.Response(
            status=reason.value.status, body=error_body(refused), headers={**refusal_headers(refused), "Server": "weir"}
        )
        response.force_close()
        return response

    def began(self, body: StreamReader) -> None:
        """A request is about to be handled."""
        self._body = body

    def _idle(self) -> bool:
        return self._waiter is not None and not self._waiter.done()

    def _await_head(self) -> None:
        self._head_deadline = self._loop.call_later(CLIENT_HEAD_S_MAX, self._head_late)

    def _head_came(self) -> None:
        if self._head_deadline is not None:
            self._head_deadline.cancel()
            self._head_deadline = None

    def _head_late(self) -> None:
        self._head_deadline = None
        if not self._idle():
            return
        if not self._heard:
            self.force_close()  # it never said a word, as connections opened in advance do
            return
        self._interrupt(408)

    def _begins_well(self, data: bytes) -> bool:
        """Whether the request line is one, as far as it has come."""
        assert self._line is not None
        self._line += data
        if _LINE.match(self._line):
            self._line = None
            return True
        return len(self._line) <= HEADER_LINE_BYTES_MAX and _LINE_SO_FAR.fullmatch(self._line) is not None

    def _interrupt(self, status: int) -> None:
        """Answer with an error where a request should be, and close."""
        self._head_came()
        self._asked, self._line = True, None
        self._messages.append((_ErrInfo(status=status, exc=ValueError(), message=""), EMPTY_PAYLOAD))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        self.close()

    def _take_one(self, *, came: int) -> None:
        """So many heads have come whole, or not at all well. One is answered at a time."""
        self._head_came()
        if isinstance(self._messages[-1][0], _ErrInfo):
            for body in (self._body, *(body for _, body in self._messages)):
                if not body.is_eof():
                    body.set_exception(RequestPayloadError("malformed"))  # aiohttp would leave its reader waiting
        surplus = came if self._asked else came - 1
        for _ in range(surplus):
            self._messages.pop()
        self._asked = True
        if surplus or self._upgraded:
            self._message_tail = b""
            self.close()


def _parser(protocol: ClientConnection, loop: asyncio.AbstractEventLoop) -> HttpRequestParser:
    """A parser like the one that aiohttp begins with."""
    return HttpRequestParser(
        protocol,
        loop,
        DEFAULT_CHUNK_SIZE,
        max_line_size=HEADER_LINE_BYTES_MAX,
        max_field_size=HEADER_LINE_BYTES_MAX,
        max_headers=HEADERS_MAX,
        payload_exception=RequestPayloadError,
        auto_decompress=True,
        max_msg_queue_size=MAX_MSG_QUEUE_SIZE,
    )


def _request(message, payload, protocol, writer, task) -> BaseRequest:  # type: ignore[no-untyped-def] # noqa: ANN001
    """aiohttp's request with our body limit. Its factory type is private, so the arguments stay untyped."""
    protocol.began(payload)
    loop = asyncio.get_running_loop()
    return BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=REQUEST_BYTES_MAX)
