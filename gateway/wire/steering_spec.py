"""The `steering` object of a request: its closed type, and the same spec in the tenant's own name space.

Whatever names a thing at the backend is a `Handle`, and `in_space` moves every one of them. Nothing that is not named here
passes. Another spelling of the same wishes would be translated into this type first, and then be treated alike.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from gateway.wire.handles import Handle, upstream_handle
from policy.limits import (
    STEERING_LAYER_MAX,
    STEERING_PLACES_MAX,
    STEERING_POSITION_MAX,
    STEERING_SCALE_MAX,
    STEERING_VALUE_MAX,
    STEERING_VECTORS_MAX,
    TOKEN_ID_MAX,
)
from policy.refusal import Reason, Refused

Op = Literal[
    "add",
    "ablate",
    "set_projection",
    "scale_projection",
    "cap",
    "replace",
    "rotate",
    "erase_mean",
    "leace",
    "sae",
    "head_add",
]
Point = Literal["block_input", "attention_output", "mlp_output", "block_output", "head_output", "all_writes"]

Layer = Annotated[int, Meta(ge=0, le=STEERING_LAYER_MAX)]
Layers = Annotated[list[Layer], Meta(min_length=1, max_length=STEERING_LAYER_MAX + 1)]
Scale = Annotated[float, Meta(ge=-STEERING_SCALE_MAX, le=STEERING_SCALE_MAX)]
Value = Annotated[float, Meta(ge=-STEERING_VALUE_MAX, le=STEERING_VALUE_MAX)]
Place = Annotated[int, Meta(ge=-STEERING_POSITION_MAX, le=STEERING_POSITION_MAX)]
MeanOfSide = Annotated[str, Meta(pattern=r"^mean:[a-z][a-z0-9_]{0,31}\Z")]

PARAMS: dict[Op, frozenset[str]] = {
    "add": frozenset({"normalize", "position"}),
    "ablate": frozenset({"also"}),
    "set_projection": frozenset({"value"}),
    "scale_projection": frozenset(),
    "cap": frozenset({"low", "high"}),
    "replace": frozenset({"to"}),
    "rotate": frozenset({"with", "degrees"}),
    "erase_mean": frozenset(),
    "leace": frozenset(),
    "sae": frozenset({"feature", "mode"}),
    "head_add": frozenset(),
}
REQUIRED: dict[Op, frozenset[str]] = {
    "set_projection": frozenset({"value"}),
    "replace": frozenset({"to"}),
    "rotate": frozenset({"with", "degrees"}),
    "sae": frozenset({"feature", "mode"}),
}


class Places(Struct, forbid_unknown_fields=True, omit_defaults=True, frozen=True):
    """A union of tokens by id, by position and in half-open windows."""

    tokens: Annotated[list[Annotated[int, Meta(ge=0, le=TOKEN_ID_MAX)]], Meta(max_length=STEERING_PLACES_MAX)] = []
    positions: Annotated[list[Place], Meta(max_length=STEERING_PLACES_MAX)] = []
    windows: Annotated[list[tuple[Place, Place]], Meta(max_length=STEERING_PLACES_MAX)] = []


Selector = Literal["all", "none"] | Places


class Excluded(Struct, forbid_unknown_fields=True, omit_defaults=True, frozen=True):
    """What is left out, whatever else picks it."""

    prompt: Selector | None = None
    generation: Selector | None = None


class Apply(Struct, forbid_unknown_fields=True, omit_defaults=True, frozen=True):
    """Which tokens a use is applied to."""

    prompt: Selector | None = None
    generation: Selector | None = None
    exclude: Excluded | None = None


class Gate(Struct, forbid_unknown_fields=True, omit_defaults=True, frozen=True):
    """Apply only if a score at the prompt is above, or below, a threshold. The answer says whether it was: one bit."""

    id: Handle
    layer: Layer
    above: Value | None = None
    below: Value | None = None
    token: Literal["mean", "last"] | None = None


class Params(Struct, forbid_unknown_fields=True, omit_defaults=True, frozen=True):
    """What some operations need beyond a scale. Which of them take which: `PARAMS`."""

    normalize: bool | None = None
    position: Place | None = None
    also: Annotated[list[Handle], Meta(max_length=STEERING_VECTORS_MAX)] | None = None
    value: Value | MeanOfSide | None = None
    low: Value | None = None
    high: Value | None = None
    to: Handle | None = None
    with_: Handle | None = field(default=None, name="with")
    degrees: Value | None = None
    feature: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    mode: Literal["add", "pin", "scale"] | None = None


class Use(Struct, forbid_unknown_fields=True, omit_defaults=True, frozen=True):
    """One vector of a spec, and what is done with it."""

    id: Handle
    op: Op = "add"
    scale: Scale | None = None
    layers: Layers | Literal["all"] | None = None
    point: Point | None = None
    apply: Apply | None = None
    when: Gate | None = None
    params: Params | None = None


class Steering(Struct, forbid_unknown_fields=True, omit_defaults=True, frozen=True):
    """The `steering` object: uses of vectors, and the derived model that answers instead of the one named."""

    vectors: Annotated[list[Use], Meta(max_length=STEERING_VECTORS_MAX)] | None = None
    conflict: Literal["sequential", "sum", "priority", "error"] | None = None
    model: Handle | None = None

    @property
    def gates(self) -> int:
        """How many of its uses have a gate: as many bits the answer's report has."""
        return sum(use.when is not None for use in self.vectors or ())


def contradiction(steering: Steering | None, *, param: str = "steering") -> Refused | None:
    """What a spec says against itself, as far as that needs no backend to see."""
    if steering is None:
        return None
    if steering.vectors is None and steering.model is None:
        return _invalid(param, "it needs 'vectors' or 'model'")
    for index, use in enumerate(steering.vectors or ()):
        where = f"{param}.vectors[{index}]"
        given = frozenset(_given(use.params))
        required = REQUIRED.get(use.op, frozenset())
        if unknown := sorted(given - PARAMS[use.op]):
            message = f"'{where}.params.{unknown[0]}' is not supported: '{use.op}' has no such parameter."
            return Refused(reason=Reason.UNSUPPORTED_FIELD, message=message, param=f"{where}.params.{unknown[0]}")
        if missing := sorted(required - given):
            return _invalid(f"{where}.params.{missing[0]}", f"'{use.op}' needs it")
        if use.op == "cap" and not given:
            return _invalid(f"{where}.params", "'cap' needs 'low' or 'high'")
        if use.when is not None and (use.when.above is None) == (use.when.below is None):
            return _invalid(f"{where}.when", "a gate has either 'above' or 'below'")
    return None


def in_space(steering: Steering | None, *, tenant: str) -> dict[str, Any] | None:
    """A spec as a backend gets it, every handle of it moved into the tenant's name space; None if it asks for no vector."""
    if steering is None or not steering.vectors:
        return None
    spec: dict[str, Any] = {"vectors": [_use(use, tenant) for use in steering.vectors]}
    if steering.conflict is not None:
        spec["conflict"] = steering.conflict
    return spec


def fingerprint_of(spec: dict[str, Any] | None, *, derived: str | None = None) -> str | None:
    """Names a spec as it was sent, and the derived model that it was sent to: SHA-256 of canonical JSON, 16 hex digits."""
    if spec is None:
        return None
    named = spec if derived is None else {"model": derived, **spec}
    return hashlib.sha256(msgspec.json.encode(named, order="sorted")).hexdigest()[:16]


def _use(use: Use, tenant: str) -> dict[str, Any]:
    fields: dict[str, Any] = {"id": upstream_handle(tenant, use.id), "op": use.op}
    if use.scale is not None:
        fields["scale"] = use.scale
    if use.layers is not None:
        fields["layers"] = use.layers
    if use.point is not None:
        fields["point"] = use.point
    if use.apply is not None:
        fields["apply"] = msgspec.to_builtins(use.apply)  # numbers and closed words: it names nothing
    if use.when is not None:
        fields["when"] = msgspec.to_builtins(use.when) | {"id": upstream_handle(tenant, use.when.id)}
    if use.params is not None:
        fields["params"] = _params(use.params, tenant)
    return fields


def _params(params: Params, tenant: str) -> dict[str, Any]:
    fields = _given(params)
    for name in ("to", "with"):
        if name in fields:
            fields[name] = upstream_handle(tenant, fields[name])
    if "also" in fields:
        fields["also"] = [upstream_handle(tenant, handle) for handle in fields["also"]]
    return fields


def _given(params: Params | None) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(params) if params is not None else {}
    return fields


def _invalid(param: str, why: str) -> Refused:
    return Refused(reason=Reason.INVALID_REQUEST, message=f"{param}: {why}.", param=param)
