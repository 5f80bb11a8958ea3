"""EasySteer's `steer_vector_request`, as its fork of vLLM takes it in the body of a chat or text completion.

Source: `SteerVectorRequestParam` in `vllm/steer_vectors/request.py` and the `algorithms/` next to it, in the repository
ZJU-REAL/EasySteer-vllm-v1 on GitHub. A path names a file there and a stored object's id here. `steer_vector_name` and
`steer_vector_int_id` are labels in both: they decide nothing.
"""

from __future__ import annotations

from typing import Literal

from inference.limits import CONTEXT_TOKENS_MAX
from inference.server.compat.translation import Translation
from inference.steering.spec import Apply, Excluded, Selected, Selector, SpecError, SteeringSpec, Strict, VectorUse

FIELD = "steer_vector_request"
_EVERY = -1
"""Among trigger tokens: all of them."""


class VectorConfig(Strict, frozen=True, kw_only=True):
    """One vector, and which tokens trigger it. None and absent mean the same."""

    scale: float | None = None
    target_layers: list[int] | None = None
    prefill_trigger_tokens: list[int] | None = None
    prefill_trigger_positions: list[int] | None = None
    prefill_exclude_tokens: list[int] | None = None
    prefill_exclude_positions: list[int] | None = None
    generate_trigger_tokens: list[int] | None = None
    generate_first_k_tokens: int | None = None
    generate_after_k_tokens: int | None = None
    algorithm: str | None = None
    normalize: bool | None = None


class OneOfMany(VectorConfig, frozen=True, kw_only=True):
    path: str


class SteerVectorRequest(VectorConfig, frozen=True, kw_only=True):
    """Either one vector, described here, or several in `vector_configs`."""

    steer_vector_name: str | None = None
    steer_vector_int_id: int | None = None
    steer_vector_local_path: str | None = None
    debug: bool | None = None
    conflict_resolution: Literal["error", "priority", "sequential"] | None = None
    vector_configs: list[OneOfMany] | None = None


def translate(request: SteerVectorRequest) -> Translation:
    """Raises SpecError, in EasySteer's words."""
    if request.debug:
        raise _bad("a forward pass is not logged", "debug")
    if request.vector_configs is None:
        if not request.steer_vector_local_path:
            raise _bad("it names no vector", "steer_vector_local_path")
        named: list[tuple[VectorConfig, str, str, str]] = [
            (request, request.steer_vector_local_path, FIELD, "steer_vector_local_path")
        ]
    else:
        _refuse_both(request)
        named = [
            (config, config.path, f"{FIELD}.vector_configs[{index}]", "path")
            for index, config in enumerate(request.vector_configs)
        ]
    uses, params = [], {"steering": FIELD, "steering.conflict": f"{FIELD}.conflict_resolution"}
    params["steering.vectors"] = f"{FIELD}.vector_configs"
    for index, (config, vector_id, place, id_field) in enumerate(named):
        uses.append(_use(config, vector_id, place))
        params |= _params(f"steering.vectors[{index}]", place, id_field)
    return Translation(
        spec=SteeringSpec(vectors=uses, conflict=request.conflict_resolution or "priority"), params=params
    )


def _refuse_both(request: SteerVectorRequest) -> None:
    """What describes one vector means nothing beside a list of them."""
    for name in (*VectorConfig.__struct_fields__, "steer_vector_local_path"):
        if getattr(request, name) is not None:
            raise _bad("each of vector_configs has its own", name)
    if not request.vector_configs:
        raise _bad("the list is empty", "vector_configs")


def _use(config: VectorConfig, vector_id: str, place: str) -> VectorUse:
    layers, apply = config.target_layers, _apply(config, place)
    scale = 1.0 if config.scale is None else config.scale
    if config.algorithm in (None, "direct"):
        params = {"normalize": True} if config.normalize else None
        return VectorUse(id=vector_id, op="add", scale=scale, layers=layers, apply=apply, params=params)
    if config.algorithm == "erase":
        if scale != 1:
            raise _bad("'erase' takes all of a direction away, at every scale", "scale", place)
        if config.normalize:
            raise _bad("after 'erase' no length is restored here", "normalize", place)
        return VectorUse(id=vector_id, op="ablate", layers=layers, point="block_output", apply=apply)
    message = f"algorithm {config.algorithm!r} is not known here; 'direct' and 'erase' are"
    raise SpecError(message, param=f"{place}.algorithm", code="unknown_algorithm")


def _apply(config: VectorConfig, place: str) -> Apply:
    prompt = _picked(config.prefill_trigger_tokens, config.prefill_trigger_positions)
    generation = _picked(config.generate_trigger_tokens, None)
    first, after = config.generate_first_k_tokens, config.generate_after_k_tokens
    if first is not None and after is not None:
        raise _bad("not beside generate_first_k_tokens", "generate_after_k_tokens", place)
    left_out: Selected | None = None
    for name, k, is_first in (("generate_first_k_tokens", first, True), ("generate_after_k_tokens", after, False)):
        if k is None:
            continue
        if not 0 <= k < CONTEXT_TOKENS_MAX:
            raise _bad(f"a number of tokens is 0 to {CONTEXT_TOKENS_MAX - 1}", name, place)
        # With no tokens named, these say which ones; with some, they narrow them.
        generation = generation or "all"
        window = (k, CONTEXT_TOKENS_MAX) if is_first else (0, k)
        left_out = Selector(windows=[window]) if window[0] < window[1] else None
    if prompt is None and generation is None:
        raise _bad("it triggers on no token; [-1] means all of them", "prefill_trigger_tokens", place)
    prompt_left_out = _left_out(config.prefill_exclude_tokens, config.prefill_exclude_positions)
    exclude = Excluded(prompt=prompt_left_out, generation=left_out) if prompt_left_out or left_out else None
    return Apply(prompt=prompt or "none", generation=generation or "none", exclude=exclude)


def _picked(tokens: list[int] | None, positions: list[int] | None) -> Selected | None:
    return "all" if _EVERY in (tokens or ()) else _left_out(tokens, positions)


def _left_out(tokens: list[int] | None, positions: list[int] | None) -> Selected | None:
    return Selector(tokens=tokens, positions=positions) if tokens or positions else None


def _params(ours: str, place: str, id_field: str) -> dict[str, str]:
    names = {
        "id": id_field,
        "layers": "target_layers",
        "apply.prompt.tokens": "prefill_trigger_tokens",
        "apply.prompt.positions": "prefill_trigger_positions",
        "apply.exclude.prompt.tokens": "prefill_exclude_tokens",
        "apply.exclude.prompt.positions": "prefill_exclude_positions",
        "apply.generation.tokens": "generate_trigger_tokens",
        "apply.prompt": "prefill_trigger_tokens",
        "apply.exclude.prompt": "prefill_exclude_tokens",
        "apply.generation": "generate_trigger_tokens",
        "params.normalize": "normalize",
    }
    return {ours: place} | {f"{ours}.{name}": f"{place}.{theirs}" for name, theirs in names.items()}


def _bad(message: str, name: str, place: str = FIELD) -> SpecError:
    return SpecError(f"{name}: {message}", param=f"{place}.{name}", code="invalid_value")
