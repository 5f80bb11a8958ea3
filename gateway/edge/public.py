"""The public server: exact routes, the key, the body, the codec; then the relay. Deny by default.

A path is matched against a table as it stands in the request line, and never sent on: what a backend is asked for is a
constant of the codec. `..`, `%`, `//`, `;`, queries and absolute-form targets match nothing.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec
from aiohttp import web
from aiohttp.web_protocol import RequestHandler
from aiohttp.web_request import BaseRequest

from gateway.edge.client import HttpClient, http_date, refusal_headers
from gateway.metrics import Metrics
from gateway.ports import Clock
from gateway.relay import Relay
from gateway.serving import Serving
from gateway.wire import chat, completions, steering
from gateway.wire.dialect import Call, Identity
from gateway.wire.errors import error_body
from policy.limits import (
    CLIENT_KEEPALIVE_S_MAX,
    HEADER_LINE_BYTES_MAX,
    HEADERS_MAX,
    REQUEST_BODY_S_MAX,
    REQUEST_BYTES_MAX,
)
from policy.refusal import Reason, Refused
from policy.rules import Tenant

JSON = "application/json"
_JOB = re.compile(r"/v1/jobs/(job-([0-9a-f]{8})-[a-z0-9]{1,64})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """An authenticated request."""

    request: BaseRequest
    serving: Serving
    tenant: Tenant
    route: str


Plan = Callable[[Asked, bytes, Identity], Call | Refused]
Reply = Callable[[Asked], Awaitable[bytes]]


class PublicServer:
    """Handles public requests. `serving` is read once a request, so that a reload changes nothing half-way."""

    def __init__(
        self,
        *,
        relay: Relay,
        serving: Callable[[], Serving],
        budget: Callable[[Serving, Tenant], Awaitable[bytes]],
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
        self._plans: dict[tuple[str, str], Plan] = {
            ("POST", chat.UPSTREAM_PATH): _plan_chat,
            ("POST", completions.UPSTREAM_PATH): _plan_completion,
            ("POST", "/v1/steering/extract"): _plan_extract,
        }
        self._replies: dict[tuple[str, str], Reply] = {
            ("GET", "/v1/models"): self._models,
            ("GET", "/v1/budget"): lambda asked: self._budget(asked.serving, asked.tenant),
        }
        self._methods = {path: method for method, path in (*self._plans, *self._replies)}

    def server(self) -> web.Server:
        """The protocol factory for `loop.create_server`."""
        return _Server(
            self.handle,
            request_factory=_request,
            handler_cancellation=True,  # a client that goes away cancels its backend request
            keepalive_timeout=CLIENT_KEEPALIVE_S_MAX,
            max_line_size=HEADER_LINE_BYTES_MAX,
            max_field_size=HEADER_LINE_BYTES_MAX,
            max_headers=HEADERS_MAX,
            access_log=None,
        )

    async def handle(self, request: BaseRequest) -> web.StreamResponse:
        """One request, one response."""
        asked = self._ask(request)
        if isinstance(asked, Refused):
            return await self._refuse(request, asked)
        reply = self._replies.get((request.method, asked.route))
        if reply is not None:
            return self._reply(await reply(asked))
        return await self._generate(asked)

    def _ask(self, request: BaseRequest) -> Asked | Refused:
        """Route, then key: all that can be decided without the body."""
        path = request.raw_path
        job = _JOB.fullmatch(path)
        route = "/v1/jobs/{id}" if job is not None else path
        allowed = "GET" if job is not None else self._methods.get(path)
        if allowed is None:
            message = "There is no such route here. The gateway offers: " + ", ".join(sorted(self._methods)) + "."
            return Refused(reason=Reason.UNKNOWN_ROUTE, message=message)
        if request.method != allowed:
            return Refused(reason=Reason.WRONG_METHOD, message=f"This route takes {allowed} only.")
        if self.draining:
            message = "The gateway is shutting down. Another instance will answer."
            return Refused(reason=Reason.DRAINING, message=message, retry_after_s=1)
        serving = self._serving()
        tenant = serving.authenticate(request.headers.get("Authorization"))
        if isinstance(tenant, Refused):
            return tenant
        return Asked(request=request, serving=serving, tenant=tenant, route=route)

    async def _generate(self, asked: Asked) -> web.StreamResponse:
        identity = self._identify()
        client = HttpClient(asked.request, answer=identity.id, now_s=identity.created_s, metrics=self._metrics)
        body = await _body(asked.request)
        call = body if isinstance(body, Refused) else self._plan(asked, body, identity)
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

    def _plan(self, asked: Asked, body: bytes, identity: Identity) -> Call | Refused:
        job = _JOB.fullmatch(asked.request.raw_path)
        if job is not None:
            return _plan_job(asked, job.group(1), job.group(2))
        return self._plans[asked.request.method, asked.route](asked, body, identity)

    async def _models(self, asked: Asked) -> bytes:
        """Answered from policy: no backend is asked."""
        names = sorted(asked.tenant.models & asked.serving.policy.models.keys())
        data = [{"id": name, "object": "model", "created": self._started_s, "owned_by": "weir"} for name in names]
        return msgspec.json.encode({"object": "list", "data": data})

    async def _refuse(self, request: BaseRequest, refused: Refused) -> web.StreamResponse:
        self._metrics.refusals.labels(refused.reason.label).inc()
        response = web.Response(
            status=refused.reason.value.status,
            body=error_body(refused),
            headers={**self._own_headers(), **refusal_headers(refused)},
        )
        if refused.reason is Reason.WRONG_METHOD:
            response.headers["Allow"] = "GET" if _JOB.fullmatch(request.raw_path) else self._methods[request.raw_path]
        if request.can_read_body:
            response.force_close()  # the body was not read; what follows it on this connection cannot be trusted
        return response

    def _reply(self, body: bytes) -> web.Response:
        return web.Response(body=body, headers={**self._own_headers(), "Content-Type": JSON})

    def _own_headers(self) -> dict[str, str]:
        return {"Date": http_date(int(self._clock.wall_s())), "Server": "weir"}


async def _body(request: BaseRequest) -> bytes | Refused:
    if request.method == "GET":
        return b""
    if request.content_type != JSON:
        message = f"Send the body as Content-Type: {JSON}."
        return Refused(reason=Reason.WRONG_CONTENT_TYPE, message=message)
    if request.headers.get("Expect", "").lower() == "100-continue":
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


def _plan_chat(asked: Asked, body: bytes, identity: Identity) -> Call | Refused:
    request = chat.parse_request(body)
    if isinstance(request, Refused):
        return request
    refused = _may(asked, request.model, steering=request.steering is not None)
    return refused or chat.sanitise(request, asked.serving.models[request.model], identity, tenant=asked.tenant.name)


def _plan_completion(asked: Asked, body: bytes, identity: Identity) -> Call | Refused:
    request = completions.parse_request(body)
    if isinstance(request, Refused):
        return request
    refused = _may(asked, request.model, steering=request.steering is not None)
    return refused or completions.sanitise(
        request, asked.serving.models[request.model], identity, tenant=asked.tenant.name
    )


def _plan_extract(asked: Asked, body: bytes, identity: Identity) -> Call | Refused:
    request = steering.parse_extract(body)
    if isinstance(request, Refused):
        return request
    refused = _may(asked, request.model, steering=True)
    return refused or steering.extract_call(
        request, asked.serving.models[request.model], identity, tenant=asked.tenant.name
    )


def _plan_job(asked: Asked, job_id: str, mark: str) -> Call | Refused:
    for model in sorted(asked.tenant.models):
        if steering.model_mark(model) == mark:
            refused = _may(asked, model, steering=True)
            return refused or steering.job_call(job_id, asked.serving.models[model], tenant=asked.tenant.name)
    return Refused(reason=Reason.NOT_FOUND, message="There is no job with this id.")


def _may(asked: Asked, model: str, *, steering: bool) -> Refused | None:
    found = asked.serving.model(model, asked.tenant)
    if isinstance(found, Refused):
        return found
    if steering and not asked.tenant.steering:
        message = "Steering is not enabled for your key. The operator can set 'steering: true' for your tenant."
        return Refused(reason=Reason.STEERING_NOT_ALLOWED, message=message, param="steering")
    return None


class _Server(web.Server):
    """A server whose protocol answers malformed HTTP in the gateway's own words."""

    def __call__(self) -> RequestHandler:
        return _Handler(self, loop=self._loop, **self._kwargs)


class _Handler(RequestHandler):
    """aiohttp's protocol with OpenAI-shaped errors instead of pages that name the server's software."""

    __slots__ = ()

    def handle_error(
        self, request: BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """A request that could not be parsed, or a bug. Neither may say anything that is not fixed here."""
        if request.writer.output_size > 0:
            raise ConnectionError("a response has begun, so no other can be sent")
        if status >= 500:
            self.log_exception("error while handling a request", exc_info=exc)
            refused = Refused(reason=Reason.INTERNAL, message="The gateway failed to handle this request.")
        else:
            refused = Refused(reason=Reason.INVALID_REQUEST, message="This is not a valid HTTP/1.1 request.")
        response = web.Response(
            status=status, body=error_body(refused), headers={**refusal_headers(refused), "Server": "weir"}
        )
        response.force_close()
        return response


def _request(message, payload, protocol, writer, task) -> BaseRequest:  # type: ignore[no-untyped-def] # noqa: ANN001
    """aiohttp's request with our body limit. Its factory type is private, so the arguments stay untyped."""
    loop = asyncio.get_running_loop()
    return BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=REQUEST_BYTES_MAX)
