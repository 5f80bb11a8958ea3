"""Vectors and derived models through the gateway: a tenant's own handles, and what kind of thing is at which layers.

No tensor passes in either direction: there is no upload, no file and no export here. Which handles a backend lists is its
own choice, whatever was stored; so the handles of a list are charged as text, byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import MappingProxyType
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from gateway.wire.dialect import Call, Decoder, Identity, ModelRules, Renderer
from gateway.wire.fields import Request, Unlisted, parse
from gateway.wire.fixed_point import Record, Subset, Word
from gateway.wire.handles import HANDLE_CHARS_MAX, Handle, own_handle, upstream_handle
from policy.canonical import Event, Finish, Malformed, Numbers, TextDelta
from policy.limits import (
    COMBINED_VECTORS_MAX,
    STEERING_LAYER_MAX,
    STEERING_SCALE_MAX,
    VECTOR_BODY_BYTES_MAX,
    VECTORS_BODY_BYTES_MAX,
    VECTORS_LISTED_MAX,
    WIRE_BASE_BYTES,
)
from policy.refusal import Reason, Refused
from policy.release import Outcome, Release

VECTORS_PATH = "/v1/steering/vectors"
COMBINE_PATH = "/v1/steering/vectors/combine"
DERIVED_PATH = "/v1/steering/models"
UPSTREAM_MODELS_PATH = "/v1/models"

KINDS = ("direction", "positional", "heads", "eraser", "sae")
_VECTOR = Record(MappingProxyType({"kind": Word(KINDS), "layers": Subset(below=STEERING_LAYER_MAX + 1)}))
_DERIVED = Record(MappingProxyType({}))  # nothing but its handle

Sort = Literal["vectors", "models"]
_UPSTREAM = {"vectors": VECTORS_PATH, "models": UPSTREAM_MODELS_PATH}
_ONES_OWN = {"vectors": "?prefix={}", "models": ""}  # how a list is narrowed; of derived models there are few
_OBJECT = {"vectors": "steering.vector", "models": "steering.model"}
_LAYOUT = {"vectors": _VECTOR, "models": _DERIVED}

Weight = Annotated[float, Meta(ge=-STEERING_SCALE_MAX, le=STEERING_SCALE_MAX)]
Handles = Annotated[list[Handle], Meta(max_length=COMBINED_VECTORS_MAX)]


class Term(Struct, forbid_unknown_fields=True):
    """A vector and its weight."""

    id: Handle
    weight: Weight = 1.0


class CombineRequest(Request, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """The allow-list of `POST /v1/steering/vectors/combine`."""

    id: Handle
    terms: Annotated[list[Term], Meta(min_length=1, max_length=COMBINED_VECTORS_MAX)]
    orthogonal_to: Handles = []  # noqa: RUF012  msgspec copies it
    normalize: bool = False

    @property
    def steers(self) -> bool:
        """See `Request.steers`."""
        return True


class _Vector(Struct, kw_only=True):
    kind: Any = None
    layers: Any = None

    @property
    def fields(self) -> dict[str, Any]:
        return {"kind": self.kind, "layers": self.layers}


class _Named(_Vector, kw_only=True):
    id: str


class _List(Struct):
    data: list[_Named]


_REQUEST = msgspec.json.Decoder(CombineRequest)
_UNLISTED = Unlisted(reasons={}, harmless={}, dropped=frozenset())
_LIST = msgspec.json.Decoder(_List)
_ONE = msgspec.json.Decoder(_Vector)


def parse_combine(body: bytes) -> CombineRequest | Refused:
    """A client's body as a checked request, or what is wrong with it."""
    return parse(body, _REQUEST, _UNLISTED)


def combine_call(request: CombineRequest, rules: ModelRules, identity: Identity, *, tenant: str) -> Call | Refused:
    """A new vector from others. The answer is what a question for it would be answered with."""
    if request.id in {term.id for term in request.terms}:
        message = "id: a combination cannot be one of its own terms."
        return Refused(reason=Reason.INVALID_REQUEST, message=message, param="id")
    fields = {
        "id": upstream_handle(tenant, request.id),
        "terms": [{"id": upstream_handle(tenant, term.id), "weight": term.weight} for term in request.terms],
        "orthogonal_to": [upstream_handle(tenant, handle) for handle in request.orthogonal_to],
        "normalize": request.normalize,
    }
    body = msgspec.json.encode(fields)
    return _call(rules, "POST", COMBINE_PATH, VectorDecoder(), VectorRenderer(request.id), body=body, status=201)


def vector_call(handle: str, rules: ModelRules, *, tenant: str) -> Call:
    """What a vector is."""
    path = f"{VECTORS_PATH}/{upstream_handle(tenant, handle)}"
    return _call(rules, "GET", path, VectorDecoder(), VectorRenderer(handle))


def list_call(sort: Sort, rules: ModelRules, *, tenant: str) -> Call:
    """All of a tenant's vectors, or of the models that it has derived.

    The backend is asked for the tenant's own, so that those of others cannot make the list too long to be read; that it
    lists no more is not relied on.
    """
    decoder, renderer = HandlesDecoder(sort, tenant=tenant), HandlesRenderer(sort)
    listed_bytes_max = VECTORS_LISTED_MAX * (HANDLE_CHARS_MAX + 1)
    path = _UPSTREAM[sort] + _ONES_OWN[sort].format(upstream_handle(tenant, ""))
    return _call(rules, "GET", path, decoder, renderer, answer_bytes_max=listed_bytes_max)


def delete_call(sort: Sort, handle: str, rules: ModelRules, *, tenant: str) -> Call:
    """Delete a vector or a derived model. That it is gone is all that the answer says."""
    path = f"{_UPSTREAM[sort]}/{upstream_handle(tenant, handle)}"
    return _call(rules, "DELETE", path, DoneDecoder(), DeletedRenderer(sort, handle))


def _call(
    rules: ModelRules,
    method: str,
    path: str,
    decoder: Decoder,
    renderer: Renderer,
    *,
    body: bytes = b"",
    answer_bytes_max: int = 0,
    status: int = 200,
) -> Call:
    return Call(
        model=rules.name,
        stream=False,
        upstream_method=method,
        upstream_path=path,
        upstream_body=body,
        answer_bytes_max=answer_bytes_max,
        tools_declared=frozenset(),
        decoder=decoder,
        renderer=renderer,
        status=status,
        stateful=True,
    )


class _Collector:
    """A whole body of bounded size."""

    def __init__(self, *, body_bytes_max: int = WIRE_BASE_BYTES) -> None:
        self._chunks: list[bytes] = []
        self._room_bytes = body_bytes_max

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """Collects. Raises `Malformed` over the bound."""
        self._room_bytes -= len(chunk)
        if self._room_bytes < 0:
            raise Malformed("more bytes than this answer needs")
        self._chunks.append(chunk)
        return iter(())

    @property
    def body(self) -> bytes:
        return b"".join(self._chunks)


class VectorDecoder(_Collector):
    """One vector as numbers: its kind, its layers."""

    def __init__(self) -> None:
        super().__init__(body_bytes_max=VECTOR_BODY_BYTES_MAX)

    def eof(self) -> Iterator[Event]:
        """Raises `Malformed`."""
        one: _Vector = _decoded(_ONE, self.body)
        return iter((Numbers(tuple(_VECTOR.pack(one.fields))), Finish(Outcome.STOP)))


class HandlesDecoder(_Collector):
    """A list as text and numbers: the tenant's own handles in order, a line each, then what each is.

    Names outside of the tenant's space, and those that are no handles, are passed over unread.
    """

    def __init__(self, sort: Sort, *, tenant: str) -> None:
        super().__init__(body_bytes_max=VECTORS_BODY_BYTES_MAX)
        self._layout = _LAYOUT[sort]
        self._tenant = tenant

    def eof(self) -> Iterator[Event]:
        """Raises `Malformed`, also for a handle that stands there twice."""
        body: _List = _decoded(_LIST, self.body)
        found = [(own_handle(self._tenant, named.id), named) for named in body.data]
        own = {handle: named for handle, named in found if handle is not None}
        if len(own) < sum(handle is not None for handle, _ in found):
            raise Malformed("a handle that is listed twice")
        if len(own) > VECTORS_LISTED_MAX:
            raise Malformed(f"more than {VECTORS_LISTED_MAX} handles of one tenant")
        handles = sorted(own)
        numbers = [number for handle in handles for number in self._layout.pack(own[handle].fields)]
        yield TextDelta("\n".join(handles))
        yield Numbers(tuple(numbers))
        yield Finish(Outcome.STOP)


class DoneDecoder(_Collector):
    """An answer that is not read: that there is one is all it says."""

    def eof(self) -> Iterator[Event]:
        """The end."""
        return iter((Finish(Outcome.STOP),))


class _JsonRenderer:
    content_type = "application/json"


class VectorRenderer(_JsonRenderer):
    """A vector by the handle that the client knows it by."""

    def __init__(self, handle: str) -> None:
        self._handle = handle

    def release(self, release: Release) -> bytes:
        """The whole body."""
        assert release.ending is not None
        assert release.ending.numbers is not None
        return msgspec.json.encode(_body("vectors", self._handle, _VECTOR.unpack(iter(release.ending.numbers))))


class HandlesRenderer(_JsonRenderer):
    """A list of them."""

    def __init__(self, sort: Sort) -> None:
        self._sort: Sort = sort

    def release(self, release: Release) -> bytes:
        """The whole body."""
        assert release.ending is not None
        assert release.ending.numbers is not None
        numbers = iter(release.ending.numbers)
        handles = release.text.split("\n") if release.text else []
        data = [_body(self._sort, handle, _LAYOUT[self._sort].unpack(numbers)) for handle in handles]
        return msgspec.json.encode({"object": "list", "data": data})


class DeletedRenderer(_JsonRenderer):
    """That something is gone."""

    def __init__(self, sort: Sort, handle: str) -> None:
        self._sort: Sort = sort
        self._handle = handle

    def release(self, release: Release) -> bytes:
        """The whole body."""
        assert release.ending is not None
        return msgspec.json.encode(_body(self._sort, self._handle, {"deleted": True}))


def _body(sort: Sort, handle: str, fields: dict[str, Any]) -> dict[str, Any]:
    return {"id": handle, "object": _OBJECT[sort], **fields}


def _decoded(decoder: msgspec.json.Decoder[Any], body: bytes) -> Any:
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
        raise Malformed(f"not the JSON that was asked for: {type(fault).__name__}") from fault
