"""`steer_vector_request`, EasySteer's spelling of steering in the body of a chat or text completion, read into our own.

A path is a vector's handle here. What cannot be said in our own spelling is refused by name; nothing of this reaches a backend.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from gateway.wire.handles import Handle
from gateway.wire.steering_spec import Apply, Excluded, Layers, Params, Place, Places, Scale, Selector, Steering, Use
from policy.limits import STEERING_ANSWER_TOKENS_MAX, STEERING_PLACES_MAX, STEERING_VECTORS_MAX, TOKEN_ID_MAX
from policy.refusal import Reason, Refused

FIELD = "steer_vector_request"
EVERY = -1  # among trigger tokens: all of them

_Numbers = Meta(max_length=STEERING_PLACES_MAX)
Tokens = Annotated[list[Annotated[int, Meta(ge=0, le=TOKEN_ID_MAX)]], _Numbers]
Triggers = Annotated[list[Annotated[int, Meta(ge=EVERY, le=TOKEN_ID_MAX)]], _Numbers]
Positions = Annotated[list[Place], _Numbers]
Count = Annotated[int, Meta(ge=0, lt=STEERING_ANSWER_TOKENS_MAX)]


class VectorConfig(Struct, forbid_unknown_fields=True, omit_defaults=True, frozen=True, kw_only=True):
    """One vector, and which tokens trigger it. None and absent mean the same."""

    scale: Scale | None = None
    target_layers: Layers | None = None
    prefill_trigger_tokens: Triggers | None = None
    prefill_trigger_positions: Positions | None = None
    prefill_exclude_tokens: Tokens | None = None
    prefill_exclude_positions: Positions | None = None
    generate_trigger_tokens: Triggers | None = None
    generate_first_k_tokens: Count | None = None
    generate_after_k_tokens: Count | None = None
    algorithm: Literal["direct", "erase"] | None = None
    normalize: bool | None = None


class OneOfMany(VectorConfig, forbid_unknown_fields=True, omit_defaults=True, frozen=True, kw_only=True):
    """A vector of a list."""

    path: Handle


class SteerVectorRequest(VectorConfig, forbid_unknown_fields=True, omit_defaults=True, frozen=True, kw_only=True):
    """Either one vector, described here, or several in `vector_configs`. Name and number are labels: they decide nothing."""

    steer_vector_name: Annotated[str, Meta(max_length=256)] | None = None
    steer_vector_int_id: int | None = None
    steer_vector_local_path: Handle | None = None
    debug: bool | None = None
    conflict_resolution: Literal["error", "priority", "sequential"] | None = None
    vector_configs: Annotated[list[OneOfMany], Meta(min_length=1, max_length=STEERING_VECTORS_MAX)] | None = None


def translate(request: SteerVectorRequest) -> Steering | Refused:
    """The same wish as our own type, all of whose handles are moved into the tenant's name space later."""
    if request.debug:
        return _refused(f"{FIELD}.debug", "a forward pass is not logged")
    if request.vector_configs is None:
        if request.steer_vector_local_path is None:
            return _refused(f"{FIELD}.steer_vector_local_path", "it names no vector")
        found = [_use(request, request.steer_vector_local_path, FIELD)]
    else:
        for name in (*VectorConfig.__struct_fields__, "steer_vector_local_path"):
            if getattr(request, name) is not None:
                return _refused(f"{FIELD}.{name}", "each of 'vector_configs' has its own")
        found = [
            _use(config, config.path, f"{FIELD}.vector_configs[{index}]")
            for index, config in enumerate(request.vector_configs)
        ]
    uses: list[Use] = []
    for use in found:
        if isinstance(use, Refused):
            return use
        uses.append(use)
    return Steering(vectors=uses, conflict=request.conflict_resolution or "priority")


def _use(config: VectorConfig, handle: Handle, place: str) -> Use | Refused:
    apply = _apply(config, place)
    if isinstance(apply, Refused):
        return apply
    if config.algorithm == "erase":
        if config.scale not in (None, 1.0):
            return _refused(f"{place}.scale", "'erase' takes all of a direction away, at every scale")
        if config.normalize:
            return _refused(f"{place}.normalize", "after 'erase' no length is restored")
        return Use(id=handle, op="ablate", layers=config.target_layers, point="block_output", apply=apply)
    params = Params(normalize=True) if config.normalize else None
    return Use(id=handle, op="add", scale=config.scale, layers=config.target_layers, apply=apply, params=params)


def _apply(config: VectorConfig, place: str) -> Apply | Refused:
    prompt = _triggered(config.prefill_trigger_tokens, config.prefill_trigger_positions)
    generation = _triggered(config.generate_trigger_tokens, None)
    first, after = config.generate_first_k_tokens, config.generate_after_k_tokens
    if first is not None and after is not None:
        return _refused(f"{place}.generate_after_k_tokens", "not beside 'generate_first_k_tokens'")
    window = None
    if first is not None:
        window = (first, STEERING_ANSWER_TOKENS_MAX)
    elif after:
        window = (0, after)
    if first is not None or after is not None:
        generation = generation or "all"  # with no tokens named, these say which ones; with some, they narrow them
    if prompt is None and generation is None:
        return _refused(f"{place}.prefill_trigger_tokens", "it triggers on no token; [-1] means all of them")
    prompt_left_out = _places(config.prefill_exclude_tokens, config.prefill_exclude_positions)
    left_out = None if window is None else Places(windows=[window])
    exclude = Excluded(prompt=prompt_left_out, generation=left_out) if prompt_left_out or left_out else None
    return Apply(prompt=prompt or "none", generation=generation or "none", exclude=exclude)


def _triggered(tokens: list[int] | None, positions: list[int] | None) -> Selector | None:
    return "all" if EVERY in (tokens or ()) else _places(tokens, positions)


def _places(tokens: list[int] | None, positions: list[int] | None) -> Places | None:
    return Places(tokens=tokens or [], positions=positions or []) if tokens or positions else None


def _refused(param: str, why: str) -> Refused:
    return Refused(reason=Reason.INVALID_REQUEST, message=f"{param}: {why}.", param=param)
