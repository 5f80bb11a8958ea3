"""The two generation endpoints: read, plan, run, and write the answer whole or as server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time

from aiohttp import web

from inference.answer import Piece
from inference.limits import WRITE_TIMEOUT_S
from inference.server.body import read_body
from inference.server.errors import ApiError, json_response
from inference.server.generation import Ended, Plan, plan, run
from inference.server.metrics import METRICS
from inference.server.render import SSE_DONE, Document, Rendering, Usage, sse_event, steering_document
from inference.server.schema import ChatRequest, CompletionRequest, decode
from inference.server.service import SERVICE, Served

_log = logging.getLogger("inference.server")
_STREAM_HEADERS = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-store"}


async def chat_completions(request: web.Request) -> web.StreamResponse:
    return await _answer(request, decode(await read_body(request), ChatRequest))


async def completions(request: web.Request) -> web.StreamResponse:
    return await _answer(request, decode(await read_body(request), CompletionRequest))


async def _answer(request: web.Request, body: ChatRequest | CompletionRequest) -> web.StreamResponse:
    service = request.app[SERVICE]
    service.refuse_if_draining()
    # Templates and tokenizers take milliseconds for long prompts: not in the event loop.
    served = service.served(body.model)
    planned = await asyncio.to_thread(plan, body, loaded=served.loaded, store=service.store, standing=service.standing)
    rendering = Rendering(
        id=("chatcmpl-" if isinstance(body, ChatRequest) else "cmpl-") + secrets.token_hex(12),
        created=int(time.time()),
        model=served.loaded.id,
        is_chat=isinstance(body, ChatRequest),
        with_token_ids=bool(body.return_token_ids),
    )
    if body.stream:
        with_usage = body.stream_options is not None and body.stream_options.include_usage
        return await _stream(request, served, planned, rendering, with_usage=with_usage)
    return await _whole(request, served, planned, rendering)


async def _whole(request: web.Request, served: Served, planned: Plan, rendering: Rendering) -> web.Response:
    pieces, ended = await to_end(served, planned)
    usage, steering = booked(request, planned, rendering.id, ended)
    return json_response(rendering.whole(pieces, ended.last, usage, steering))


async def to_end(served: Served, planned: Plan) -> tuple[list[Piece], Ended]:
    """Run it, and wait for all of its answer. Raises ApiError."""
    pieces: list[Piece] = []
    async with contextlib.aclosing(run(planned, engine=served.engine, loaded=served.loaded)) as events:
        async for event in events:
            if isinstance(event, Ended):
                return pieces, event
            pieces.append(event)
    raise AssertionError("run ends with Ended or raises")


def booked(request: web.Request, planned: Plan, answer_id: str, ended: Ended) -> tuple[Usage, Document | None]:
    """Usage and steering of a whole answer, logged and counted."""
    usage, steering = _usage(planned, ended), _steering(planned, ended)
    _log.info("answered", extra={"request": answer_id, "finish_reason": ended.last.finish_reason, **usage.document()})
    request.app[METRICS].answered(usage, steering)
    return usage, steering


async def _stream(
    request: web.Request, served: Served, planned: Plan, rendering: Rendering, *, with_usage: bool
) -> web.StreamResponse:
    async with contextlib.aclosing(run(planned, engine=served.engine, loaded=served.loaded)) as events:
        # The first event decides between an error status and a stream: a refusal must not arrive as 200.
        event = await anext(events)
        response = web.StreamResponse(headers=_STREAM_HEADERS)
        await response.prepare(request)
        await _write(response, rendering.opening())
        try:
            while isinstance(event, Piece):
                await _write(response, [rendering.piece(event)])
                event = await anext(events)
        except ApiError as error:
            await _write(response, [error.document()])  # no [DONE] behind it: the answer is not complete
            return response
        usage, steering = booked(request, planned, rendering.id, event)
        await _write(
            response,
            rendering.closing(event.last, usage if with_usage else None, steering),
            end=SSE_DONE,
        )
        return response


async def _write(response: web.StreamResponse, documents: list[Document], *, end: bytes = b"") -> None:
    data = b"".join(map(sse_event, documents)) + end
    if data:
        async with asyncio.timeout(WRITE_TIMEOUT_S):
            await response.write(data)


def _usage(planned: Plan, ended: Ended) -> Usage:
    return Usage(
        prompt_tokens=len(planned.prompt_ids),
        completion_tokens=ended.completion_tokens,
        cached_tokens=ended.cached_tokens,
    )


def _steering(planned: Plan, ended: Ended) -> Document | None:
    if planned.steering is None:
        return None
    return steering_document(planned.steering.fingerprint, ended.applied)
