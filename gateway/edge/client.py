"""The `Client` port on an aiohttp request: every header is the gateway's own, by construction."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from email.utils import formatdate
from functools import lru_cache

from aiohttp import web
from aiohttp.web_request import BaseRequest

from gateway.edge.compression import negotiate
from gateway.metrics import Metrics
from gateway.ports import ClientGone
from gateway.wire.errors import error_body
from policy.limits import CLIENT_WRITE_PIECE_BYTES, CLIENT_WRITE_S_MAX
from policy.refusal import Reason, Refused

_BODY_UNREAD = frozenset({Reason.REQUEST_TOO_LARGE, Reason.REQUEST_TIMEOUT, Reason.WRONG_CONTENT_TYPE})
COMPRESS_BYTES_MIN = 512  # below it a coding's own header eats what it saves


class HttpClient:
    """One request's way back. `response` is what the aiohttp handler must return in the end."""

    def __init__(
        self,
        request: BaseRequest,
        *,
        answer: str,
        now_s: int,
        metrics: Metrics,
        errors: Callable[[Refused], bytes] = error_body,
    ) -> None:
        self.response: web.StreamResponse | None = None
        self._request = request
        self._headers = {"Date": http_date(now_s), "Server": "weir", "X-Request-Id": answer}
        self._metrics = metrics
        self._errors = errors
        self._encoder = negotiate(request.headers.get("Accept-Encoding"))
        self._status = 200
        self._stream = False

    async def begin(self, *, status: int, content_type: str, stream: bool) -> None:
        """See `Client.begin`. An unstreamed response is sent as one with its length by the first write."""
        self._status, self._stream = status, stream
        self._headers["Content-Type"] = content_type
        if stream:
            self._headers |= {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
            if self._encoder is not None:
                self._headers |= {"Content-Encoding": self._encoder.coding, "Vary": "Accept-Encoding"}
            self.response = web.StreamResponse(status=status, headers=self._headers)
            try:
                await self.response.prepare(self._request)
            except ConnectionError as fault:
                raise ClientGone("gone before the first byte") from fault

    async def write(self, data: bytes, *, last: bool) -> None:
        """See `Client.write`."""
        if not self._stream:
            self.response = self._whole(data)
            await self._send_most(self.response)
            return
        assert self.response is not None
        if self._encoder is not None:
            data = self._encoder.encode(data, last=last)
        await self._send(self.response, data)
        self._metrics.sent_wire.inc(len(data))

    async def refuse(self, refused: Refused) -> None:
        """See `Client.refuse`."""
        self._metrics.refusals.labels(refused.reason.label).inc()
        self._headers |= refusal_headers(refused)
        self._status = refused.reason.value.status
        self.response = self._whole(self._errors(refused))
        body = self._request.content
        if refused.reason in _BODY_UNREAD or not body.is_eof() or body.exception() is not None:
            self.response.force_close()  # the rest of the body is still on its way; nothing after it can be trusted

    def abort(self) -> None:
        """See `Client.abort`."""
        if self._request.transport is not None:
            self._request.transport.abort()

    async def _send_most(self, response: web.Response) -> None:
        """A long answer in pieces; aiohttp would give a client for ever to take it whole. aiohttp sends a short one."""
        data = response.body
        assert isinstance(data, bytes)
        if len(data) <= CLIENT_WRITE_PIECE_BYTES:
            return
        in_pieces = web.StreamResponse(status=self._status, headers=self._headers)
        in_pieces.content_length = len(data)
        self.response = in_pieces
        try:
            await in_pieces.prepare(self._request)
        except ConnectionError as fault:
            raise ClientGone("gone before the first byte") from fault
        for start in range(0, len(data), CLIENT_WRITE_PIECE_BYTES):
            await self._send(in_pieces, data[start : start + CLIENT_WRITE_PIECE_BYTES])

    async def _send(self, response: web.StreamResponse, data: bytes) -> None:
        try:
            async with asyncio.timeout(CLIENT_WRITE_S_MAX):
                await response.write(data)
        except (ConnectionError, TimeoutError) as fault:
            self.abort()
            raise ClientGone("gone or not reading") from fault

    def _whole(self, data: bytes) -> web.Response:
        if self._encoder is not None and len(data) >= COMPRESS_BYTES_MIN:
            data = self._encoder.encode(data, last=True)
            self._headers |= {"Content-Encoding": self._encoder.coding, "Vary": "Accept-Encoding"}
        self._metrics.sent_wire.inc(len(data))
        return web.Response(status=self._status, body=data, headers=self._headers)


@lru_cache(maxsize=4)
def http_date(now_s: int) -> str:
    """RFC 9110, section 5.6.7. Many answers share a second."""
    return formatdate(now_s, usegmt=True)


def refusal_headers(refused: Refused) -> dict[str, str]:
    """Headers that keep clients from retrying in vain, and the RateLimit fields of draft-ietf-httpapi-ratelimit-headers-11.

    A model's budget is shared, so how much of it is left is not a tenant's to see: only its own budgets are described.
    """
    headers = {"Content-Type": "application/json"}
    if refused.retry_after_s is not None:
        headers["Retry-After"] = str(refused.retry_after_s)
    if refused.reason is Reason.OVER_BUDGET:
        headers["x-should-retry"] = "false"
    if refused.reason is Reason.UNKNOWN_KEY:
        headers["WWW-Authenticate"] = "Bearer"
    account = refused.account
    if account is not None and account.owner == "tenant":
        seconds = account.window.duration_s
        window = f";w={seconds}" if seconds is not None else ""
        reset = f";t={refused.retry_after_s}" if refused.retry_after_s is not None else ""
        headers["RateLimit-Policy"] = f'"{account.window.name}";q={account.limit_bits // 8};qu="content-bytes"{window}'
        headers["RateLimit"] = f'"{account.window.name}";r=0{reset}'
        headers["x-ratelimit-limit-bytes"] = str(account.limit_bits // 8)
        headers["x-ratelimit-remaining-bytes"] = "0"
        if refused.retry_after_s is not None:
            headers["x-ratelimit-reset-bytes"] = f"{refused.retry_after_s}s"
    return headers
