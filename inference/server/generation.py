"""A generation request from its body to the engine: every check that must come before compute, then its pieces."""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
from collections.abc import AsyncGenerator

from inference.answer import Answer, LastPiece, Piece
from inference.chat import TemplateError
from inference.engine import Engine
from inference.limits import COMPLETION_TOKENS_DEFAULT
from inference.loading import LoadedModel
from inference.request import EndReason, EngineRequest, Refused, RefusedReason
from inference.sampling import SEED_MAX, TEMPERATURE_MIN, SamplingParams
from inference.server.compat import easysteer
from inference.server.compat.translation import Translation
from inference.server.errors import ApiError, bad_request
from inference.server.schema import ChatRequest, CompletionRequest, template_message, without_none
from inference.steering.applied import Applied
from inference.steering.compile import compile_spec
from inference.steering.objects import Vectors
from inference.steering.program import CompiledSteering
from inference.steering.spec import SpecError, SteeringSpec
from inference.tools import ToolChoice, declared


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ended:
    """The last thing a running answer yields."""

    last: LastPiece
    applied: Applied
    completion_tokens: int
    cached_tokens: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A checked request, ready for the engine."""

    prompt_ids: tuple[int, ...]
    max_tokens: int
    sampling: SamplingParams
    steering: CompiledSteering | None
    stop: tuple[str, ...]
    tools: ToolChoice | None
    cache_salt: str


def plan(
    body: ChatRequest | CompletionRequest, *, loaded: LoadedModel, store: Vectors, standing: SteeringSpec | None = None
) -> Plan:
    """Check a request completely. Raises ApiError. Tokenises, so it belongs in a thread; runs nothing on the model.

    `standing`: what applies to a request that says nothing of steering.
    """
    if body.stream_options is not None and not body.stream:
        raise bad_request("stream_options needs stream", param="stream_options")
    steering = _steering(body, loaded, store, standing)
    tools = _tools(body) if isinstance(body, ChatRequest) else None
    prompt_ids = _prompt_ids(body, tools, loaded)
    if not prompt_ids:  # possible: a vocabulary need not have a token for every byte
        raise bad_request("the prompt has no tokens", param="prompt", code="empty_prompt")
    return Plan(
        prompt_ids=prompt_ids,
        max_tokens=_max_tokens(body, len(prompt_ids), loaded.config.context_tokens),
        sampling=_sampling(body),
        steering=steering,
        stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
        tools=tools,
        cache_salt=body.cache_salt or "",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Over:
    """What the engine's thread says of the end."""

    last: LastPiece
    applied: Applied


async def run(plan: Plan, *, engine: Engine, loaded: LoadedModel) -> AsyncGenerator[Piece | Ended, None]:
    """Pieces as they become sure, then one Ended. Closing the iterator early cancels the request. Raises ApiError."""
    loop = asyncio.get_running_loop()
    # Bounded by max_tokens + 1 events, each of a few hundred bytes.
    events: asyncio.Queue[Piece | _Over | EndReason] = asyncio.Queue()
    answer = Answer(loaded.tokenizer, end_ids=loaded.end_ids, stop=plan.stop, tools=plan.tools)

    def tell(event: Piece | _Over | EndReason) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(events.put_nowait, event)

    def on_token(token_id: int) -> bool:
        piece = answer.push(token_id)
        if piece is not None:
            tell(piece)
        return answer.is_stopped

    def on_end(reason: EndReason, applied: Applied) -> None:
        if reason in (EndReason.STOPPED, EndReason.LENGTH):
            tell(_Over(last=answer.finish(), applied=applied))
        else:
            tell(reason)

    submitted = engine.submit(
        EngineRequest(
            prompt_ids=plan.prompt_ids,
            max_tokens=plan.max_tokens,
            sampling=plan.sampling,
            steering=plan.steering,
            on_token=on_token,
            on_end=on_end,
            cache_salt=plan.cache_salt,
        )
    )
    if isinstance(submitted, Refused):
        raise _refused(submitted)
    try:
        while True:
            event = await events.get()
            if isinstance(event, EndReason):
                raise _ended_badly(event)
            if isinstance(event, _Over):
                yield Ended(
                    last=event.last,
                    applied=event.applied,
                    completion_tokens=answer.token_count,
                    cached_tokens=submitted.cached_tokens,
                )
                return
            yield event
    finally:
        submitted.cancel()  # no effect on a request that is over


def _steering(
    body: ChatRequest | CompletionRequest, loaded: LoadedModel, store: Vectors, standing: SteeringSpec | None
) -> CompiledSteering | None:
    translation: Translation | None = None
    try:
        if body.steer_vector_request is not None:
            if body.steering is not None:
                raise bad_request("not beside steering", param=easysteer.FIELD)
            translation = easysteer.translate(body.steer_vector_request)
        spec = body.steering if translation is None else translation.spec
        if spec is None:
            return _standing(standing, loaded, store)
        return compile_spec(spec, store=store, config=loaded.config, model_digest=loaded.vectors_digest)
    except SpecError as error:
        param = error.param if translation is None else translation.theirs(error.param)
        raise bad_request(str(error), param=param, code=error.code) from error


def _standing(spec: SteeringSpec | None, loaded: LoadedModel, store: Vectors) -> CompiledSteering | None:
    if spec is None:
        return None
    try:
        return compile_spec(spec, store=store, config=loaded.config, model_digest=loaded.vectors_digest)
    except SpecError as error:  # no fault of this request: a vector has gone since it was set
        message = f"what POST /cvectors has set cannot be applied: {error}"
        raise ApiError(503, message, code="cvectors_unusable") from error


def _tools(body: ChatRequest) -> ToolChoice | None:
    try:
        return declared([without_none(tool) for tool in body.tools or ()], body.tool_choice)
    except ValueError as error:
        raise bad_request(str(error), param="tool_choice") from error


def _prompt_ids(
    body: ChatRequest | CompletionRequest, tools: ToolChoice | None, loaded: LoadedModel
) -> tuple[int, ...]:
    if isinstance(body, CompletionRequest):
        return tuple(loaded.tokenizer.encode(body.prompt, add_special_tokens=True))
    try:
        text = loaded.template.render([template_message(message) for message in body.messages], tools=tools)
    except TemplateError as error:
        raise bad_request(str(error), param="messages") from error
    return tuple(loaded.tokenizer.encode(text, add_special_tokens=False))


def _max_tokens(body: ChatRequest | CompletionRequest, prompt_tokens: int, context_tokens: int) -> int:
    wanted = body.max_tokens
    if isinstance(body, ChatRequest) and body.max_completion_tokens is not None:
        if wanted not in (None, body.max_completion_tokens):
            raise bad_request("max_tokens and max_completion_tokens differ", param="max_completion_tokens")
        wanted = body.max_completion_tokens
    room = context_tokens - prompt_tokens
    if room < 1 or (wanted is not None and wanted > room):
        message = (
            f"the model's context is {context_tokens} tokens; the prompt takes {prompt_tokens} "
            f"and {1 if wanted is None else wanted} were asked for"
        )
        raise bad_request(message, param="max_tokens", code="context_length_exceeded")
    return min(COMPLETION_TOKENS_DEFAULT, room) if wanted is None else wanted


def _sampling(body: ChatRequest | CompletionRequest) -> SamplingParams:
    seed = secrets.randbits(64) if body.seed is None else body.seed
    if not -(1 << 63) <= seed <= SEED_MAX:
        raise bad_request("seed must fit 64 bits", param="seed")
    temperature = 1.0 if body.temperature is None else body.temperature
    if 0 < temperature < TEMPERATURE_MIN:
        raise bad_request(f"temperature is 0 or at least {TEMPERATURE_MIN}", param="temperature")
    return SamplingParams(
        seed=seed & SEED_MAX,
        temperature=temperature,
        top_k=body.top_k or 0,
        top_p=1.0 if body.top_p is None else body.top_p,
    )


def _refused(refused: Refused) -> ApiError:
    if refused.reason is RefusedReason.KV_MEMORY:
        return bad_request(refused.message, param="max_tokens", code="kv_memory_exceeded")
    return ApiError(503, refused.message, code=refused.reason.value)


def _ended_badly(reason: EndReason) -> ApiError:
    if reason is EndReason.CANCELLED:
        return ApiError(503, "the server is shutting down", code="stopping")
    if reason is EndReason.DIVERGED:
        message = "steered like this, the activations left the range of numbers; use a smaller scale or fewer layers"
        return bad_request(message, param="steering", code="steering_diverged")
    return ApiError(500, "the model failed; the server's log has the reason", code="internal_error")
