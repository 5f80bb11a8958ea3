"""The `steering` field of a request: every field that exists, and its type. `compile.py` gives it a meaning."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Frozen; a key it does not know is an error."""


class Selector(Strict, frozen=True, kw_only=True):
    """A union of token ids, positions and half-open windows [from, to). In a prompt negative ones count from its end."""

    tokens: list[int] | None = None
    positions: list[int] | None = None
    windows: list[tuple[int, int]] | None = None


Selected = Literal["all", "none"] | Selector


class Excluded(Strict, frozen=True, kw_only=True):
    """What is left out whatever the rest says."""

    prompt: Selected | None = None
    generation: Selected | None = None


class Apply(Strict, frozen=True, kw_only=True):
    """Which tokens. Naming one of prompt and generation leaves the other out; naming neither means both, all of them."""

    prompt: Selected | None = None
    generation: Selected | None = None
    exclude: Excluded | None = None


class When(Strict, frozen=True, kw_only=True):
    """A gate: the score of vector `id` at block output `layer` is above, or is not above (`below`), a threshold."""

    id: str
    layer: int
    above: float | None = None
    below: float | None = None
    token: Literal["mean", "last"] = "mean"  # noqa: S105 - a position, no password


class VectorUse(Strict, frozen=True, kw_only=True):
    """One operation with a stored object. `params` has the operation's own fields, see `building.py`."""

    id: str
    op: str
    scale: float | UnsetType = UNSET
    layers: list[int] | Literal["all"] | None = None
    point: str | None = None
    apply: Apply | None = None
    when: When | None = None
    params: dict[str, Any] | None = None


class SteeringSpec(Strict, frozen=True, kw_only=True):
    """All operations of one request, in the order in which they work."""

    vectors: list[VectorUse]
    conflict: str = "sequential"


class SpecError(ValueError):
    """The spec asks for something that does not exist or is out of bounds. `param` is the JSON path of the culprit.

    `code` is stable. Nothing was computed on the model.
    """

    def __init__(self, message: str, *, param: str, code: str) -> None:
        super().__init__(message)
        self.param, self.code = param, code
