"""The public server: exact routes, the key, the body, the codec; then the relay. Deny by default.

A path is matched against a table as it stands in the request line, and never sent on: what a backend is asked for is a
constant of the codec. `..`, `%`, `//`, `;`, queries and absolute-form targets match nothing.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import HttpVersion10, HttpVersion11, web
from aiohttp.web_request import BaseRequest

from gateway.edge.client import HttpClient, http_date, refusal_headers
from gateway.edge.connection import ClientServer
from gateway.edge.plans import ROUTE_NAMES, Asked, Plan, authorization, errors, find
from gateway.metrics import Metrics
from gateway.ports import Clock
from gateway.relay import Relay
from gateway.serving import Serving
from gateway.wire.dialect import Identity
from policy.limits import REQUEST_BODY_S_MAX, REQUEST_BYTES_MAX
from policy.refusal import Reason, Refused
from policy.rules import Tenant

JSON = "application/json"
BODILESS = ("GET", "HEAD", "DELETE")  # a body with one of these is somebody else's request in disguise

Reply = Callable[[Asked], Awaitable[bytes | Refused]]


class PublicServer:
    """Handles public requests. `serving` is read once a request, so that a reload changes nothing half-way."""

    def __init__(
        self,
        *,
        relay: Relay,
        serving: Callable[[], Serving],
        budget: Callable[[Serving, Tenant], Awaitable[bytes | Refused]],
        identify: Callable[[], Identity],
        clock: Clock,
        metrics: Metrics,
        started_s: int,
    ) -> None:
        self.draining = False
        self._relay = relay
        self._serving = serving
        self._budget = budget
        self._identify = identify
        self._clock = clock
        self._metrics = metrics
        self._started_s = started_s
        self._reading: Counter[str] = Counter()
        self._replies: dict[str, Reply] = {
            "/v1/models": self._models,
            "/v1/budget": lambda asked: self._budget(asked.serving, asked.tenant),
        }

    def server(self) -> web.Server:
        """The protocol factory for `loop.create_server`."""
        return ClientServer(self.handle, metrics=self._metrics)

    async def handle(self, request: BaseRequest) -> web.StreamResponse:
        """One request, one response."""
        asked = self._ask(request)
        if isinstance(asked, Refused):
            return await self._refuse(request, asked)
        if asked.plan is None:
            body = await self._replies[asked.route](asked)
            return await self._refuse(request, body) if isinstance(body, Refused) else self._reply(body)
        return await self._generate(asked, asked.plan)

    def _ask(self, request: BaseRequest) -> Asked | Refused:
        """Framing, route, key: all that can be decided without the body."""
        if _is_ambiguous(request):
            message = "This request's framing could be read in more than one way."
            return Refused(reason=Reason.INVALID_REQUEST, message=message)
        path = request.raw_path
        at, replies = find(path), path in self._replies
        found = at.get(request.method)
        if not at and not replies:
            offered = ", ".join(sorted({*ROUTE_NAMES, *self._replies}))
            message = f"There is no such route here. The gateway offers: {offered}."
            return Refused(reason=Reason.UNKNOWN_ROUTE, message=message)
        if found is None and not (replies and request.method == "GET"):
            return Refused(reason=Reason.WRONG_METHOD, message=f"This route takes {self._allowed(path)} only.")
        if self.draining:
            message = "The gateway is shutting down. Another instance will answer."
            return Refused(reason=Reason.DRAINING, message=message, retry_after_s=1)
        serving = self._serving()
        tenant = serving.authenticate(authorization(request))
        if isinstance(tenant, Refused):
            return tenant
        if found is None:
            return Asked(request=request, serving=serving, tenant=tenant, route=path)
        return Asked(
            request=request, serving=serving, tenant=tenant, route=found.route, plan=found.plan, named=found.named
        )

    def _allowed(self, path: str) -> str:
        return ", ".join(sorted(find(path))) or "GET"

    async def _generate(self, asked: Asked, plan: Plan) -> web.StreamResponse:
        identity = self._identify()
        client = HttpClient(
            asked.request,
            answer=identity.id,
            now_s=identity.created_s,
            metrics=self._metrics,
            errors=errors(asked.route),
        )
        body = await self._body(asked)
        call = body if isinstance(body, Refused) else plan(asked, body, identity)
        if isinstance(call, Refused):
            await client.refuse(call)
        else:
            assert isinstance(body, bytes)
            refused = await self._relay.answer(
                call,
                serving=asked.serving,
                tenant=asked.tenant,
                identity=identity,
                route=asked.route,
                client=client,
                size=len(body),
            )
            if refused is not None:
                await client.refuse(refused)
        if client.response is None:  # ended without a word: the connection must not look whole
            client.abort()
            return web.Response(status=Reason.INTERNAL.value.status)
        return client.response

    async def _body(self, asked: Asked) -> bytes | Refused:
        """The body. Those that are slow to come hold memory, so a tenant may have as many at once as answers."""
        if asked.request.content.is_eof():
            return await _read(asked.request)
        tenant = asked.tenant
        if self._reading[tenant.name] >= tenant.streams_max:
            message = f"You are sending {tenant.streams_max} requests, and as many answers at once are your limit."
            return Refused(reason=Reason.TOO_MANY_STREAMS, message=message, retry_after_s=1)
        self._reading[tenant.name] += 1
        try:
            return await _read(asked.request)
        finally:
            self._reading[tenant.name] -= 1

    async def _models(self, asked: Asked) -> bytes:
        """Answered from policy: no backend is asked."""
        names = sorted(asked.tenant.models & asked.serving.policy.models.keys())
        data = [{"id": name, "object": "model", "created": self._started_s, "owned_by": "weir"} for name in names]
        return msgspec.json.encode({"object": "list", "data": data})

    async def _refuse(self, request: BaseRequest, refused: Refused) -> web.StreamResponse:
        self._metrics.refusals.labels(refused.reason.label).inc()
        response = web.Response(
            status=refused.reason.value.status,
            body=errors(request.raw_path)(refused),
            headers={**self._own_headers(), **refusal_headers(refused)},
        )
        if refused.reason is Reason.WRONG_METHOD:
            response.headers["Allow"] = self._allowed(request.raw_path)
        if request.can_read_body or refused.reason is Reason.INVALID_REQUEST:
            response.force_close()  # where this request ends was not seen or is in doubt: nothing after it can be trusted
        return response

    def _reply(self, body: bytes) -> web.Response:
        return web.Response(body=body, headers={**self._own_headers(), "Content-Type": JSON})

    def _own_headers(self) -> dict[str, str]:
        return {"Date": http_date(int(self._clock.wall_s())), "Server": "weir"}


def _is_ambiguous(request: BaseRequest) -> bool:
    """What this server and another one before it might understand differently. None of it has an honest use here."""
    headers = request.headers
    coding = headers.get("Transfer-Encoding")
    return (
        request.version not in (HttpVersion10, HttpVersion11)
        or (coding is not None and (coding.lower() != "chunked" or request.version != HttpVersion11))
        or any(b"_" in name for name, _ in request.raw_headers)
        or len(headers.getall("Authorization", ())) > 1
        or (request.can_read_body and (request.method in BODILESS or "Upgrade" in headers))
    )


async def _read(request: BaseRequest) -> bytes | Refused:
    if request.method in BODILESS:
        return b""
    if request.content_type != JSON:
        message = f"Send the body as Content-Type: {JSON}."
        return Refused(reason=Reason.WRONG_CONTENT_TYPE, message=message)
    if request.headers.get("Expect", "").lower() == "100-continue" and request.version == HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the interim response is not the beginning of the final one
    try:
        if request.content.is_eof():  # it came with the headers, as nearly every body does
            return await request.read()
        async with asyncio.timeout(REQUEST_BODY_S_MAX):
            return await request.read()
    except web.HTTPRequestEntityTooLarge:
        message = f"The request body is over {REQUEST_BYTES_MAX} bytes."
        return Refused(reason=Reason.REQUEST_TOO_LARGE, message=message)
    except TimeoutError:
        message = f"The request body did not arrive within {REQUEST_BODY_S_MAX:.0f} seconds."
        return Refused(reason=Reason.REQUEST_TIMEOUT, message=message)
    except web.RequestPayloadError:
        return Refused(reason=Reason.INVALID_REQUEST, message="The request body breaks its own framing or coding.")
