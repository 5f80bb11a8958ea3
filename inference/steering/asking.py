"""One use of a spec, checked and looked up: its operation, objects, numbers, point, layers and kernels per layer."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import msgspec
from msgspec import UNSET

from inference.limits import ABLATED_DIRECTIONS_MAX, ACTIVATION_ABS_MAX, DEGREES_ABS_MAX, SCALE_ABS_MAX
from inference.steering.building import (
    ALL_WRITES,
    OPERATIONS,
    AblateParams,
    AddParams,
    Asked,
    Operation,
    SaeParams,
    SetProjectionParams,
    resolved_params,
)
from inference.steering.kernels import Kernel
from inference.steering.objects import Objects, digest, own_layer
from inference.steering.points import Point, Site
from inference.steering.spec import SpecError, VectorUse
from inference.steering.vector import Kind, StoredVector

_WRITES = (Point.BLOCK_INPUT, Point.ATTENTION_OUTPUT, Point.MLP_OUTPUT)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answered:
    """kernels: what to do at each site, empty where that is nothing. `identity`: content and numbers, no ids."""

    identity: list[Any]
    kernels: dict[Site, tuple[Kernel, ...]]
    prompt_window: tuple[int, int] | None


def answer(use: VectorUse, objects: Objects, *, param: str) -> Answered:
    """Raises SpecError."""
    operation = OPERATIONS.get(use.op)
    if operation is None:
        known = ", ".join(OPERATIONS)
        raise SpecError(f"unknown op {use.op!r}; this server knows {known}", param=f"{param}.op", code="unknown_op")
    stored = objects.find(use.id, operation.kinds, param=f"{param}.id")
    params = _params(use, operation, stored, objects, param=f"{param}.params")
    scale = _scale(use, operation, params, param=f"{param}.scale")
    others = tuple(
        (f"{param}.params.{path}", objects.find(other, {Kind.DIRECTION}, param=f"{param}.params.{path}"))
        for path, other in operation.others(params).items()
    )
    asked = Asked(stored=stored, scale=scale, params=params, param=param, others=others)
    points = _points(use, operation, param=f"{param}.point")
    layers = _layers(use, stored, points, objects, param=f"{param}.layers")
    kernels = _kernels(asked, operation, layers)
    if isinstance(params, SetProjectionParams) and isinstance(params.value, str):
        _check_measured(stored, params.value, points, layers, param=f"{param}.params.value")
    window = None
    if stored.kind is Kind.POSITIONAL:
        window = (params.position, params.position + stored.tensors[f"direction.{stored.layers[0]}"].shape[0])
    digests = [digest(stored), *(digest(other) for _, other in others)]
    return Answered(
        identity=[use.op, scale, layers, [point.value for point in points], resolved_params(asked), digests],
        kernels={Site(layer, point): kernels[layer] for layer in layers for point in points},
        prompt_window=window,
    )


def _params(use: VectorUse, operation: Operation, stored: StoredVector, objects: Objects, *, param: str) -> Any:
    try:
        params = msgspec.convert(use.params or {}, operation.params, strict=True)
    except msgspec.ValidationError as error:
        raise _from_validation(error, param) from error
    for name in params.__struct_fields__:
        number = getattr(params, name)
        limit = DEGREES_ABS_MAX if name == "degrees" else ACTIVATION_ABS_MAX
        if isinstance(number, float) and not abs(number) <= limit:  # NaN too
            message = f"{name} must be a finite number of magnitude at most {limit:g}"
            raise SpecError(message, param=f"{param}.{name}", code="bad_params")
    if isinstance(params, AddParams):
        _check_position(params.position, stored, objects, param=f"{param}.position")
    if isinstance(params, AblateParams) and len(params.also) >= ABLATED_DIRECTIONS_MAX:
        message = f"at most {ABLATED_DIRECTIONS_MAX} directions are ablated together"
        raise SpecError(message, param=f"{param}.also", code="too_many_operations")
    return params


def _check_position(position: int, stored: StoredVector, objects: Objects, *, param: str) -> None:
    if position != 0 and stored.kind is not Kind.POSITIONAL:
        message = f"{stored.id!r} has one vector for all tokens; use apply to choose tokens"
        raise SpecError(message, param=param, code="bad_params")
    if not 0 <= position < objects.config.context_tokens:
        message = f"positions are 0 to {objects.config.context_tokens - 1}"
        raise SpecError(message, param=param, code="bad_params")


def _check_measured(
    stored: StoredVector, value: str, points: tuple[Point, ...], layers: list[int], *, param: str
) -> None:
    """A mean is that of one block output: elsewhere the same number is no average, and would steer wrongly."""
    own = stored.layers[0] if len(stored.layers) == 1 else stored.metadata.get("selected_layer")
    if points != (Point.BLOCK_OUTPUT,) or layers != [own]:
        message = f"{value} was measured at block output {own}, so it can be set there only; elsewhere give a number"
        raise SpecError(message, param=param, code="unknown_mean")


def _scale(use: VectorUse, operation: Operation, params: Any, *, param: str) -> float:
    needed = operation.scale == "needed" or (isinstance(params, SaeParams) and params.mode != "add")
    if use.scale is UNSET:
        if needed:
            raise SpecError(f"{use.op} needs a scale", param=param, code="bad_scale")
        return 1.0
    is_activation = isinstance(params, SaeParams) and params.mode != "scale"
    limit = ACTIVATION_ABS_MAX if is_activation else SCALE_ABS_MAX
    if not abs(use.scale) <= limit:  # NaN too
        message = f"scale must be a finite number of magnitude at most {limit:g}"
        raise SpecError(message, param=param, code="bad_scale")
    if operation.scale == "none" and use.scale != 1:
        raise SpecError(f"{use.op} has no scale: leave it out", param=param, code="bad_scale")
    return float(use.scale)


def _points(use: VectorUse, operation: Operation, *, param: str) -> tuple[Point, ...]:
    name = operation.default_point if use.point is None else use.point
    if name != ALL_WRITES and name not in {point.value for point in Point}:
        known = ", ".join([*(point.value for point in Point), ALL_WRITES])
        raise SpecError(f"unknown point {name!r}; there are {known}", param=param, code="unknown_point")
    points = _WRITES if name == ALL_WRITES else (Point(name),)
    if not operation.points.issuperset(points):
        raise SpecError(f"{use.op} does not work at {name}", param=param, code="bad_point")
    return points


def _layers(
    use: VectorUse, stored: StoredVector, points: tuple[Point, ...], objects: Objects, *, param: str
) -> list[int]:
    n_layers = objects.config.n_layers
    if use.layers is None:
        # Writing to the residual stream happens in every block: a direction without a layer of its own is meant for all.
        is_everywhere = points == _WRITES and len(stored.layers) == 1
        layers = list(range(n_layers)) if is_everywhere else list(stored.layers)
    else:
        layers = list(range(n_layers)) if use.layers == "all" else sorted(use.layers)
    if not layers or len(set(layers)) != len(layers):
        raise SpecError("layers must be distinct, at least one", param=param, code="bad_layers")
    for layer in (layers[0], layers[-1]):
        if not 0 <= layer < n_layers:
            message = f"layer {layer} does not exist; block outputs are 0 to {n_layers - 1}"
            raise SpecError(message, param=param, code="bad_layers")
    return layers


def _kernels(asked: Asked, operation: Operation, layers: list[int]) -> dict[int, tuple[Kernel, ...]]:
    built: dict[tuple[int | None, ...], tuple[Kernel, ...]] = {}
    kernels = {}
    for layer in layers:
        key = tuple(own_layer(stored, layer) for stored in (asked.stored, *(other for _, other in asked.others)))
        if key not in built:
            built[key] = operation.build(asked, layer)
        kernels[layer] = built[key]
    return kernels


def _from_validation(error: msgspec.ValidationError, param: str) -> SpecError:
    """msgspec ends its messages with the place: "… - at `$.also[0]`"."""
    text = str(error)
    place = re.search(r" - at `\$(.*)`$", text)
    message = text[: place.start()] if place else text
    unknown = re.search(r"unknown field `(.+)`", message)
    where = param + (place.group(1) if place else "") + (f".{unknown.group(1)}" if unknown else "")
    return SpecError(message, param=where, code="unknown_field" if unknown else "bad_params")
