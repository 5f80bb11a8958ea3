"""`GET` and `POST /cvectors`: control vectors for the whole server, as llama.cpp's server handles adapters.

llama.cpp itself had no such route when this was written: its server takes control vectors on the command line
(`--control-vector-scaled FILE:SCALE`). An open pull request (ggml-org/llama.cpp#24740) names the routes and follows its
`/lora-adapters`: a list of `{"id", "scale"}` that replaces the one before. That is what is understood here, with the ids
of stored directions in place of numbers.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from aiohttp import web
from msgspec import Meta

from inference.limits import SPEC_VECTORS_MAX
from inference.server.body import read_body
from inference.server.compat.translation import Translation
from inference.server.errors import bad_request, from_validation, json_response
from inference.server.schema import Strict
from inference.server.service import SERVICE, Service
from inference.steering.compile import compile_spec
from inference.steering.spec import SpecError, SteeringSpec, VectorUse
from inference.steering.vector import Kind


class ControlVector(Strict, frozen=True, kw_only=True):
    id: str
    scale: float


_CONTROL_VECTORS = msgspec.json.Decoder(Annotated[list[ControlVector], Meta(max_length=SPEC_VECTORS_MAX)])


async def list_control_vectors(request: web.Request) -> web.Response:
    return json_response(_listed(request.app[SERVICE]))


async def set_control_vectors(request: web.Request) -> web.Response:
    """From now on, for every request that says nothing of steering; those that are not listed are off."""
    service = request.app[SERVICE]
    body = await read_body(request)
    try:
        wanted = _CONTROL_VECTORS.decode(body)
    except msgspec.ValidationError as error:
        raise from_validation(error) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise bad_request(f"the body is not JSON: {error}", code="invalid_json") from error
    if len({one.id for one in wanted}) < len(wanted):
        raise bad_request("each control vector once", param="id")
    for index, one in enumerate(wanted):
        stored = service.store.get(one.id)
        if stored is not None and stored.kind is not Kind.DIRECTION:
            message = f"{one.id!r} is a {stored.kind.value}, not a direction"
            raise bad_request(message, param=f"[{index}].id", code="wrong_kind")
    translation = translate(wanted)
    try:  # against the base model, of whose size all others are
        loaded = service.loaded
        compile_spec(translation.spec, store=service.store, config=loaded.config, model_digest=loaded.vectors_digest)
    except SpecError as error:
        raise bad_request(str(error), param=translation.theirs(error.param), code=error.code) from error
    acting = [use for use in translation.spec.vectors if use.scale != 0]
    service.standing = SteeringSpec(vectors=acting) if acting else None
    return json_response(_listed(service))


def translate(wanted: list[ControlVector]) -> Translation:
    """Added to the outputs of the blocks that a vector has, prompt and answer."""
    return Translation(
        spec=SteeringSpec(vectors=[VectorUse(id=one.id, op="add", scale=one.scale) for one in wanted]),
        params={"steering.vectors": ""},
    )


def _listed(service: Service) -> list[dict[str, object]]:
    """Every stored direction, those that are off with scale 0."""
    spec = service.standing
    scales = {} if spec is None else {use.id: use.scale for use in spec.vectors}
    directions = (vector for vector in service.store.all() if vector.kind is Kind.DIRECTION)
    return [{"id": vector.id, "scale": scales.get(vector.id, 0.0)} for vector in directions]
