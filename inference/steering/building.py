"""From an operation's name and numbers to kernels: the table of all operations.

A builder returns, for one block, the kernels of one use; an empty tuple is an operation that does nothing. Tensors of
`Add` are float64 here, so that additions to one site can be summed before they are rounded; `compile.py` rounds them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import msgspec
import torch
from torch import Tensor

from inference.limits import ACTIVATION_ABS_MAX, VECTOR_NORM_MIN
from inference.steering.kernels import Add, Affine, Kernel, Rotate, TopFeature
from inference.steering.objects import direction_at
from inference.steering.points import Point
from inference.steering.spec import SpecError, Strict
from inference.steering.vector import Kind, StoredVector

_DEPENDENT = (
    1e-5  # of a unit vector, what is left beside the others: less is their rounding in float32, not a direction
)
RESIDUAL_POINTS = frozenset({Point.BLOCK_INPUT, Point.ATTENTION_OUTPUT, Point.MLP_OUTPUT, Point.BLOCK_OUTPUT})
ALL_WRITES = "all_writes"
"""In place of a point: block input, attention output and MLP output, every place the residual stream is written."""


class NoParams(Strict, frozen=True, kw_only=True):
    pass


class AddParams(Strict, frozen=True, kw_only=True):
    normalize: bool = False
    position: int = 0


class AblateParams(Strict, frozen=True, kw_only=True):
    also: tuple[str, ...] = ()


class SetProjectionParams(Strict, frozen=True, kw_only=True):
    value: float | str


class CapParams(Strict, frozen=True, kw_only=True):
    low: float | None = None
    high: float | None = None


class ReplaceParams(Strict, frozen=True, kw_only=True):
    to: str


class RotateParams(Strict, frozen=True, kw_only=True, rename={"other": "with"}):
    other: str
    degrees: float


class SaeParams(Strict, frozen=True, kw_only=True):
    feature: int
    mode: Literal["add", "pin", "scale"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """One use, its objects looked up. `param` is its JSON path; `others` are those its params name, with their paths."""

    stored: StoredVector
    scale: float
    params: Any  # of the operation's own type
    param: str
    others: tuple[tuple[str, StoredVector], ...]


Builder = Callable[[Asked, int], tuple[Kernel, ...]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operation:
    """scale: "free"; "needed", since the default 1 would do nothing; or "none", it must be 1 or absent."""

    kinds: frozenset[Kind]
    params: type[Strict]
    scale: Literal["free", "needed", "none"]
    build: Builder
    points: frozenset[Point] = RESIDUAL_POINTS
    default_point: str = Point.BLOCK_OUTPUT.value
    others: Callable[[Any], dict[str, str]] = lambda _: {}  # path in params → id of the other directions it names


def resolved_params(asked: Asked) -> dict[str, Any]:
    """The numbers of a use: without ids, and with a mean in place of its name. Raises SpecError."""
    numbers: dict[str, Any] = msgspec.to_builtins(asked.params)
    for name in ("also", "to", "with"):  # ids; the digests of their objects stand elsewhere
        numbers.pop(name, None)
    if isinstance(numbers.get("value"), str):
        numbers["value"] = _mean(asked, numbers["value"])
    return numbers


def _add(asked: Asked, layer: int) -> tuple[Kernel, ...]:
    params: AddParams = asked.params
    vectors = direction_at(asked.stored, layer, param=f"{asked.param}.layers") * asked.scale
    if asked.scale == 0:
        return ()
    first = params.position if asked.stored.kind is Kind.POSITIONAL else 0
    return (Add(vectors=_matrix(vectors), first=first, keeps_norm=params.normalize),)


def _ablate(asked: Asked, layer: int) -> tuple[Kernel, ...]:
    basis: list[Tensor] = []
    for param, stored in ((f"{asked.param}.id", asked.stored), *asked.others):
        basis.append(_new_direction(basis, direction_at(stored, layer, param=f"{asked.param}.layers"), param=param))
    if asked.scale == 0:
        return ()
    return tuple(_along(u, slope=1 - asked.scale) for u in basis)


def _set_projection(asked: Asked, layer: int) -> tuple[Kernel, ...]:
    value = asked.params.value
    u = _unit(asked, layer)
    return (_along(u, slope=0.0, offset=_mean(asked, value) if isinstance(value, str) else value),)


def _mean(asked: Asked, value: str) -> float:
    """A mean that the object brings along; it may come from somebody's file."""
    param = f"{asked.param}.params.value"
    name = value.removeprefix("mean:")
    means = asked.stored.metadata.get("projection_means")
    known = means if isinstance(means, dict) else {}
    mean = known.get(name)
    if name == value or isinstance(mean, bool) or not isinstance(mean, (int, float)):
        message = f'value is a number or "mean:" and one of {sorted(known)}, not {value!r}'
        raise SpecError(message, param=param, code="unknown_mean")
    if abs(mean) > ACTIVATION_ABS_MAX:
        raise SpecError(f"this mean is above {ACTIVATION_ABS_MAX:g}", param=param, code="bad_params")
    return float(mean)


def _scale_projection(asked: Asked, layer: int) -> tuple[Kernel, ...]:
    u = _unit(asked, layer)
    return () if asked.scale == 1 else (_along(u, slope=asked.scale),)


def _cap(asked: Asked, layer: int) -> tuple[Kernel, ...]:
    params: CapParams = asked.params
    if params.low is None and params.high is None:
        raise SpecError("cap needs low, high or both", param=f"{asked.param}.params", code="bad_params")
    low = -math.inf if params.low is None else params.low
    high = math.inf if params.high is None else params.high
    if low > high:
        raise SpecError("low is above high", param=f"{asked.param}.params.low", code="bad_params")
    u = _unit(asked, layer).float()
    return (Affine(read=u, write=u, low=low, high=high),)


def _replace(asked: Asked, layer: int) -> tuple[Kernel, ...]:
    [(_, other)] = asked.others
    layers = f"{asked.param}.layers"
    old, new = direction_at(asked.stored, layer, param=layers), direction_at(other, layer, param=layers)
    if torch.equal(old, new):
        return ()
    return (Affine(read=(old / (old @ old)).float(), write=(new - old).float(), slope=2.0),)


def _rotate(asked: Asked, layer: int) -> tuple[Kernel, ...]:
    [(param, other)] = asked.others
    first = _unit(asked, layer)
    second = _new_direction([first], direction_at(other, layer, param=f"{asked.param}.layers"), param=param)
    radians = math.radians(asked.params.degrees)
    return (Rotate(first=first.float(), second=second.float(), cosine=math.cos(radians), sine=math.sin(radians)),)


def _erase(asked: Asked, layer: int) -> tuple[Kernel, ...]:
    tensors = asked.stored.tensors
    if layer not in asked.stored.layers:
        message = f"{asked.stored.id!r} was fitted at {list(asked.stored.layers)} and means nothing at layer {layer}"
        raise SpecError(message, param=f"{asked.param}.layers", code="bad_layers")
    read, write, mean = (tensors[f"{name}.{layer}"] for name in ("read", "write", "mean"))
    return (Affine(read=read, write=write, bias=-float(read.double() @ mean.double()), slope=0.0),)


def _sae(asked: Asked, layer: int) -> tuple[Kernel, ...]:
    del layer  # one dictionary serves wherever it is asked for
    params: SaeParams = asked.params
    tensors, metadata = asked.stored.tensors, asked.stored.metadata
    if not 0 <= params.feature < tensors["encoder"].shape[0]:
        message = f"feature {params.feature} does not exist; there are {tensors['encoder'].shape[0]}"
        raise SpecError(message, param=f"{asked.param}.params.feature", code="bad_feature")
    write = tensors["decoder"][params.feature]
    if float(write.double().norm()) < VECTOR_NORM_MIN:
        message = f"feature {params.feature} writes nothing: its decoder row is zero, or too small to have a direction"
        raise SpecError(message, param=f"{asked.param}.params.feature", code="bad_feature")
    if params.mode == "add":
        return () if asked.scale == 0 else (Add(vectors=_matrix(write.double() * asked.scale)),)
    if params.mode == "scale" and asked.scale == 1:
        return ()
    slope, offset = (0.0, asked.scale) if params.mode == "pin" else (asked.scale, 0.0)
    if metadata["activation"] == "topk":
        encoder, bias = tensors["encoder"], tensors["encoder_bias"]
        k = int(metadata["k"])
        return (
            TopFeature(
                encoder=encoder, bias=bias, feature=params.feature, k=k, write=write, slope=slope, offset=offset
            ),
        )
    # ReLU is the jump at zero.
    threshold = float(tensors["threshold"][params.feature]) if metadata["activation"] == "jumprelu" else 0.0
    read, bias_of_one = tensors["encoder"][params.feature], float(tensors["encoder_bias"][params.feature])
    return (Affine(read=read, write=write, bias=bias_of_one, threshold=threshold, slope=slope, offset=offset),)


def _head_add(asked: Asked, layer: int) -> tuple[Kernel, ...]:
    if layer not in asked.stored.layers:
        message = f"{asked.stored.id!r} has heads at {list(asked.stored.layers)}, not at layer {layer}"
        raise SpecError(message, param=f"{asked.param}.layers", code="bad_layers")
    flat = asked.stored.tensors[f"heads.{layer}"].double().reshape(1, -1) * asked.scale
    return () if asked.scale == 0 else (Add(vectors=flat),)


def _unit(asked: Asked, layer: int) -> Tensor:
    v = direction_at(asked.stored, layer, param=f"{asked.param}.layers")
    unit: Tensor = v / v.norm()
    return unit


def _matrix(vectors: Tensor) -> Tensor:
    """[width] as [1, width]; [m, width] as it is."""
    return vectors.reshape(-1, vectors.shape[-1])


def _along(u: Tensor, *, slope: float, offset: float = 0.0) -> Affine:
    return Affine(read=u.float(), write=u.float(), slope=slope, offset=offset)


def _new_direction(basis: list[Tensor], v: Tensor, *, param: str) -> Tensor:
    """The part of v that `basis` (orthonormal) lacks, of length 1. Raises SpecError if there is none."""
    rest: Tensor = v / v.norm()
    for _ in range(2):  # once more for what rounding left
        for u in basis:
            rest = rest - (rest @ u) * u
        if float(rest.norm()) < _DEPENDENT:
            message = "this direction depends linearly on the ones before it"
            raise SpecError(message, param=param, code="dependent_directions")
        rest = rest / rest.norm()
    return rest


_DIRECTION = frozenset({Kind.DIRECTION})
_ERASER = Operation(kinds=frozenset({Kind.ERASER}), params=NoParams, scale="none", build=_erase)

OPERATIONS: dict[str, Operation] = {
    "add": Operation(kinds=frozenset({Kind.DIRECTION, Kind.POSITIONAL}), params=AddParams, scale="free", build=_add),
    "ablate": Operation(
        kinds=_DIRECTION,
        params=AblateParams,
        scale="free",
        build=_ablate,
        default_point=ALL_WRITES,
        others=lambda params: {f"also[{i}]": vector_id for i, vector_id in enumerate(params.also)},
    ),
    "set_projection": Operation(kinds=_DIRECTION, params=SetProjectionParams, scale="none", build=_set_projection),
    "scale_projection": Operation(kinds=_DIRECTION, params=NoParams, scale="needed", build=_scale_projection),
    "cap": Operation(kinds=_DIRECTION, params=CapParams, scale="none", build=_cap),
    "replace": Operation(
        kinds=_DIRECTION, params=ReplaceParams, scale="none", build=_replace, others=lambda params: {"to": params.to}
    ),
    "rotate": Operation(
        kinds=_DIRECTION, params=RotateParams, scale="none", build=_rotate, others=lambda params: {"with": params.other}
    ),
    "erase_mean": _ERASER,
    "leace": _ERASER,
    "sae": Operation(kinds=frozenset({Kind.SAE}), params=SaeParams, scale="free", build=_sae),
    "head_add": Operation(
        kinds=frozenset({Kind.HEADS}),
        params=NoParams,
        scale="free",
        build=_head_add,
        points=frozenset({Point.HEAD_OUTPUT}),
        default_point=Point.HEAD_OUTPUT.value,
    ),
}
"""Every operation by the name that requests use."""
