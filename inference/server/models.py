"""Models over HTTP: which are served, how a derived one is made, and its end."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from inference.derived.comparison import ablation
from inference.derived.job import orthogonalization
from inference.derived.models import DerivedModel, ModelExistsError, ModelsFullError
from inference.jobs.job import JobKind
from inference.server.body import read_body
from inference.server.errors import ApiError, bad_request, json_response
from inference.server.jobs import start_job
from inference.server.schema import OrthogonalizeRequest, decode
from inference.server.service import SERVICE, Service
from inference.steering.spec import SpecError
from inference.steering.vector import BadVectorError, Kind, StoredVector, check_fits, direction


async def list_models(request: web.Request) -> web.Response:
    """The base first, then the derived ones by id, with where they come from."""
    service = request.app[SERVICE]
    base = {"id": service.loaded.id, "object": "model", "created": 0, "owned_by": "weir"}
    derived = [_document(service, one) for one in service.derived.all()]
    return json_response({"object": "list", "data": [base, *derived]})


async def orthogonalize(request: web.Request) -> web.Response:
    """202 with a queued job, which makes a model that cannot write along some directions."""
    service = request.app[SERVICE]
    service.refuse_if_draining()
    body = decode(await read_body(request), OrthogonalizeRequest)
    try:
        service.derived.check_room(body.model)
    except ModelExistsError as error:
        raise ApiError(409, f"model {body.model!r} exists already", code="model_exists", param="model") from error
    except ModelsFullError as error:
        raise ApiError(507, str(error), code="models_full") from error
    vectors = [_direction(service, vector_id, f"vectors[{i}]") for i, vector_id in enumerate(body.vectors)]
    if len(set(body.vectors)) != len(vectors):
        raise bad_request("a vector stands twice", param="vectors")
    try:
        await asyncio.to_thread(ablation, service.loaded, vectors)  # what the job holds the new model to
    except SpecError as error:
        raise bad_request(str(error), param="vectors", code=error.code) from error
    work = orthogonalization(model_id=body.model, vectors=vectors, derived=service.derived)
    return await start_job(service, kind=JobKind.ORTHOGONALIZE, job_id=body.job_id, work=work)


async def delete_model(request: web.Request) -> web.Response:
    service, model_id = request.app[SERVICE], request.match_info["id"]
    if model_id == service.loaded.id:
        raise bad_request("only derived models can be deleted", code="not_derived")
    if not await asyncio.to_thread(service.derived.remove, model_id):
        raise ApiError(404, f"the model {model_id!r} does not exist", code="model_not_found")
    return json_response({"id": model_id, "object": "model", "deleted": True})


def _direction(service: Service, vector_id: str, param: str) -> StoredVector:
    vector = service.store.get(vector_id)
    if vector is None:
        raise bad_request(f"no steering vector {vector_id!r}", param=param, code="unknown_vector")
    if vector.kind is not Kind.DIRECTION:
        raise bad_request(f"{vector_id!r} is no direction", param=param, code="wrong_kind")
    if vector.metadata["model_digest"] not in (None, service.loaded.digest_sha256):
        raise bad_request(f"vector {vector_id!r} was made for another model", param=param, code="wrong_model")
    try:
        check_fits(vector, service.loaded.config)
    except BadVectorError as error:
        raise bad_request(str(error), param=param, code=error.code) from error
    return _of_one_layer(vector, param)


def _of_one_layer(vector: StoredVector, param: str) -> StoredVector:
    """The direction that no matrix shall write: the only one, or the one that extraction found best."""
    selected = vector.layers[0] if len(vector.layers) == 1 else vector.metadata.get("selected_layer")
    layer = next((own for own in vector.layers if own == selected), None)  # never the file's own 12.0 or true
    if layer is None:
        message = f"{vector.id!r} has {len(vector.layers)} directions and no selected_layer; extract it at one layer"
        raise bad_request(message, param=param, code="several_directions")
    return direction(id=vector.id, values={layer: vector.tensors[f"direction.{layer}"]}, metadata=vector.metadata)


def _document(service: Service, derived: DerivedModel) -> dict[str, Any]:
    recipe = derived.recipe
    head = {"id": recipe.id, "object": "model", "created": recipe.created_s, "owned_by": "weir"}
    return {**head, "derived": {"from": service.loaded.id, **recipe.provenance()}}
