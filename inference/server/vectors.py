"""Stored steering objects over HTTP: list, show, upload, describe, combine, import, export, delete."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import torch
from aiohttp import web
from msgspec import UNSET

from inference.limits import IMPORT_BYTES_MAX, VECTOR_NORM_MAX
from inference.loading import LoadedModel
from inference.server.body import read_body, read_file
from inference.server.errors import ApiError, bad_request, json_response
from inference.server.schema import CombineRequest, DescribeRequest, UploadRequest, decode, is_identifier
from inference.server.service import SERVICE, Service
from inference.steering.combining import combine
from inference.steering.importing import Format, export_vector, import_vector
from inference.steering.safetensors_file import FileError
from inference.steering.store import ExistsError, StoreFullError
from inference.steering.vector import BadVectorError, StoredVector, direction

_FORMATS: dict[str, Format] = {"gguf": "gguf", "safetensors": "safetensors"}


async def list_vectors(request: web.Request) -> web.Response:
    _check_query(request, {"prefix"})
    prefix = request.query.get("prefix", "")
    vectors = [vector for vector in request.app[SERVICE].store.all() if vector.id.startswith(prefix)]
    return json_response({"object": "list", "data": [vector_document(vector) for vector in vectors]})


async def get_vector(request: web.Request) -> web.Response:
    return json_response(vector_document(_vector(request)))


async def upload_vector(request: web.Request) -> web.Response:
    service = request.app[SERVICE]
    body = decode(await read_body(request), UploadRequest)
    values = _checked_values(body, service.loaded)
    metadata = {
        "method": "upload",
        "layer_convention": "block_output",
        "model_digest": service.loaded.digest_sha256,
        "norm": float(values.double().norm()),
    }
    try:
        vector = direction(id=body.id, values={body.layer: values}, metadata=metadata)
    except BadVectorError as error:
        raise bad_request(str(error), param="vector", code=error.code) from error
    return await _added(service, vector)


async def describe_vector(request: web.Request) -> web.Response:
    """Change what people read: a description, and the scale to begin with. null takes one away."""
    vector_id = _vector(request).id
    body = decode(await read_body(request), DescribeRequest)
    changes = {
        name: value
        for name, value in (("description", body.description), ("scale_default", body.scale_default))
        if value is not UNSET
    }
    try:
        vector = await asyncio.to_thread(request.app[SERVICE].store.describe, vector_id, changes)
    except BadVectorError as error:
        raise bad_request(str(error), code=error.code) from error
    if vector is None:
        raise _no_vector()
    return json_response(vector_document(vector))


async def combine_vectors(request: web.Request) -> web.Response:
    service = request.app[SERVICE]
    body = decode(await read_body(request), CombineRequest)
    refuse_existing(service, body.id)
    terms = [(_known(service, term.id, f"terms[{i}].id"), term.weight) for i, term in enumerate(body.terms)]
    away = [_known(service, vector_id, f"orthogonal_to[{i}]") for i, vector_id in enumerate(body.orthogonal_to)]
    try:
        vector = await asyncio.to_thread(combine, body.id, terms, orthogonal_to=away, normalize=body.normalize)
    except BadVectorError as error:
        raise bad_request(str(error), param="terms", code=error.code) from error
    return await _added(service, vector)


async def import_file(request: web.Request) -> web.Response:
    service = request.app[SERVICE]
    _check_query(request, {"id", "format"})
    vector_id, form = request.query.get("id", ""), _format(request)
    if not is_identifier(vector_id):
        raise bad_request("id must be 1 to 100 of a-z, 0-9, dot, dash and underscore", param="id")
    refuse_existing(service, vector_id)
    async with service.imports:  # what is read here is the largest thing that a client can put into memory
        content = await read_file(request, bytes_max=IMPORT_BYTES_MAX)
        config = service.loaded.config
        try:
            vector = await asyncio.to_thread(import_vector, content, vector_id=vector_id, form=form, config=config)
        except BadVectorError as error:
            raise bad_request(str(error), code=error.code) from error
        except FileError as error:
            raise bad_request(str(error), code="bad_file") from error
        return await _added(service, vector)


async def export_file(request: web.Request) -> web.Response:
    vector = _vector(request)
    _check_query(request, {"format"})
    form = _format(request)
    try:
        content = await asyncio.to_thread(export_vector, vector, form=form, config=request.app[SERVICE].loaded.config)
    except FileError as error:
        raise bad_request(str(error), param="format", code="not_expressible") from error
    return web.Response(
        body=content,
        content_type="application/octet-stream",
        headers={"Content-Disposition": f'attachment; filename="{vector.id}.{form}"'},
    )


async def delete_vector(request: web.Request) -> web.Response:
    vector_id = request.match_info["id"]
    if not await asyncio.to_thread(request.app[SERVICE].store.remove, vector_id):
        raise _no_vector()
    return json_response({"id": vector_id, "object": "steering.vector", "deleted": True})


def refuse_existing(service: Service, vector_id: str) -> None:
    """Raises ApiError 409 if a vector has that id."""
    if service.store.get(vector_id) is not None:
        raise _exists(vector_id)


def check_layer(layer: int, loaded: LoadedModel) -> None:
    """Raises ApiError 400 unless `layer` is a block output."""
    if not 0 <= layer < loaded.config.n_layers:
        message = f"layer {layer} does not exist; block outputs are 0 to {loaded.config.n_layers - 1}"
        raise bad_request(message, param="layer", code="bad_layer")


def vector_document(vector: StoredVector) -> dict[str, Any]:
    """What is known about a vector, never its numbers. `layer` is the first of `layers`."""
    head = {"id": vector.id, "object": "steering.vector", "kind": vector.kind}
    return {**vector.metadata, **head, "layers": vector.layers, "layer": vector.layers[0]}


async def _added(service: Service, vector: StoredVector) -> web.Response:
    try:
        await asyncio.to_thread(service.store.add, vector)
    except ExistsError as error:
        raise _exists(vector.id) from error
    except StoreFullError as error:
        raise ApiError(507, str(error), code="store_full") from error
    return json_response(vector_document(vector), status=201)


def _vector(request: web.Request) -> StoredVector:
    vector = request.app[SERVICE].store.get(request.match_info["id"])
    if vector is None:
        raise _no_vector()
    return vector


def _known(service: Service, vector_id: str, param: str) -> StoredVector:
    vector = service.store.get(vector_id)
    if vector is None:
        raise bad_request(f"no steering vector {vector_id!r}", param=param, code="unknown_vector")
    return vector


def _check_query(request: web.Request, known: set[str]) -> None:
    """Raises ApiError 400 for a key that is not known, or stands twice."""
    for key in request.query:
        if key not in known or len(request.query.getall(key)) != 1:
            raise bad_request(f"query parameter {key!r} is unknown, or stands twice", param=key, code="unknown_field")


def _format(request: web.Request) -> Format:
    form = _FORMATS.get(request.query.get("format", ""))
    if form is None:
        raise bad_request(f"format must be one of {', '.join(_FORMATS)}", param="format")
    return form


def _checked_values(body: UploadRequest, loaded: LoadedModel) -> torch.Tensor:
    check_layer(body.layer, loaded)
    d_model = loaded.config.d_model
    if len(body.vector) != d_model:
        message = f"the vector has {len(body.vector)} numbers, the model needs {d_model}"
        raise bad_request(message, param="vector", code="wrong_dimension")
    if not all(math.isfinite(value) and abs(value) <= VECTOR_NORM_MAX for value in body.vector):
        # Found here, since the larger ones are infinite in float32.
        message = f"the vector must be finite and of norm at most {VECTOR_NORM_MAX:g}"
        raise bad_request(message, param="vector", code="bad_vector")
    return torch.tensor(body.vector, dtype=torch.float32)


def _exists(vector_id: str) -> ApiError:
    return ApiError(409, f"steering vector {vector_id!r} exists already", code="vector_exists", param="id")


def _no_vector() -> ApiError:
    return ApiError(404, "no such steering vector", code="vector_not_found")
