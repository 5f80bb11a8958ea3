"""The steering endpoints: vectors and the jobs that make them. Tensors come in, never out."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import secrets
from typing import Any

import torch
from aiohttp import web

from inference.chat import TemplateError
from inference.extraction.chore import Extraction, extraction_chore
from inference.jobs.job import JobKind
from inference.jobs.table import JobExistsError, JobsFullError
from inference.limits import TEXT_BYTES_MAX, VECTOR_NORM_MAX
from inference.loading import LoadedModel
from inference.server.body import read_body
from inference.server.errors import ApiError, bad_request, json_response
from inference.server.schema import ExtractRequest, UploadRequest, decode
from inference.server.service import SERVICE
from inference.steering.store import ExistsError, StoreFullError
from inference.steering.vector import StoredVector, direction


async def extract(request: web.Request) -> web.Response:
    """202 with a queued job; everything that can be wrong with the request is found before."""
    service = request.app[SERVICE]
    service.refuse_if_draining()
    body = decode(await read_body(request), ExtractRequest)
    if service.store.get(body.id) is not None:
        raise _exists(body.id)
    extraction = await asyncio.to_thread(_extraction, body, service.loaded)
    try:
        job = service.jobs.open(body.job_id or f"job-{secrets.token_hex(8)}", kind=JobKind.EXTRACT)
    except JobExistsError as error:
        raise ApiError(409, f"job {body.job_id!r} exists already", code="job_exists", param="job_id") from error
    except JobsFullError as error:
        raise ApiError(503, "too many jobs are waiting; try again later", code="jobs_full") from error
    chore = extraction_chore(
        extraction, model=service.loaded.model, store=service.store, jobs=service.jobs, job_id=job.id
    )
    service.engine.add_chore(chore)
    return json_response(job.document(), status=202)


async def get_job(request: web.Request) -> web.Response:
    job = request.app[SERVICE].jobs.get(request.match_info["id"])
    if job is None:
        raise ApiError(404, "no such job", code="job_not_found")
    return json_response(job.document())


async def list_vectors(request: web.Request) -> web.Response:
    vectors = request.app[SERVICE].store.all()
    return json_response({"object": "list", "data": [_vector_document(vector) for vector in vectors]})


async def get_vector(request: web.Request) -> web.Response:
    vector = request.app[SERVICE].store.get(request.match_info["id"])
    if vector is None:
        raise _no_vector()
    return json_response(_vector_document(vector))


async def upload_vector(request: web.Request) -> web.Response:
    service = request.app[SERVICE]
    body = decode(await read_body(request), UploadRequest)
    values = _checked_values(body, service.loaded)
    vector = direction(
        id=body.id,
        values={body.layer: values},
        metadata={
            "method": "upload",
            "layer_convention": "block_output",
            "model_digest": service.loaded.digest_sha256,
            "norm": float(values.double().norm()),
        },
    )
    try:
        await asyncio.to_thread(service.store.add, vector)
    except ExistsError as error:
        raise _exists(body.id) from error
    except StoreFullError as error:
        raise ApiError(507, "the store holds as many vectors as it may", code="store_full") from error
    return json_response(_vector_document(vector), status=201)


async def delete_vector(request: web.Request) -> web.Response:
    vector_id = request.match_info["id"]
    if not await asyncio.to_thread(request.app[SERVICE].store.remove, vector_id):
        raise _no_vector()
    return json_response({"id": vector_id, "object": "steering.vector", "deleted": True})


def _extraction(body: ExtractRequest, loaded: LoadedModel) -> Extraction:
    if len(body.positive) != len(body.negative):
        counts = f"{len(body.positive)} positive, {len(body.negative)} negative"
        raise bad_request(f"as many positive as negative texts are needed, not {counts}", param="negative")
    _check_layer(body.layer, loaded)
    sides = {"positive": body.positive, "negative": body.negative}
    ids = {name: tuple(_token_ids(text, name, body, loaded) for text in side) for name, side in sides.items()}
    dataset = json.dumps([body.positive, body.negative], ensure_ascii=False, separators=(",", ":"))
    provenance = {
        "method": body.method,
        "layer_convention": "block_output",
        "token": body.token,
        "tokenisation": "chat_template" if body.chat else "plain_with_model_default_special_tokens",
        "dataset_digest": hashlib.sha256(dataset.encode()).hexdigest(),
        "model_digest": loaded.digest_sha256,
        "pairs": len(body.positive),
    }
    return Extraction(
        vector_id=body.id,
        layer=body.layer,
        token=body.token,
        positive=ids["positive"],
        negative=ids["negative"],
        provenance=provenance,
    )


def _token_ids(text: str, side: str, body: ExtractRequest, loaded: LoadedModel) -> tuple[int, ...]:
    if len(text.encode()) > TEXT_BYTES_MAX:
        raise bad_request(f"a text is longer than {TEXT_BYTES_MAX} bytes", param=side, code="text_too_long")
    try:
        shown = loaded.template.render([{"role": "user", "content": text}]) if body.chat else text
    except TemplateError as error:
        raise bad_request(str(error), param=side) from error
    ids = tuple(loaded.tokenizer.encode(shown, add_special_tokens=not body.chat))
    if not 1 <= len(ids) <= loaded.config.context_tokens:
        message = f"a text has {len(ids)} tokens, 1 to {loaded.config.context_tokens} are possible"
        raise bad_request(message, param=side, code="context_length_exceeded")
    return ids


def _checked_values(body: UploadRequest, loaded: LoadedModel) -> torch.Tensor:
    _check_layer(body.layer, loaded)
    d_model = loaded.config.d_model
    if len(body.vector) != d_model:
        message = f"the vector has {len(body.vector)} numbers, the model needs {d_model}"
        raise bad_request(message, param="vector", code="wrong_dimension")
    norm = math.sqrt(math.fsum(x * x for x in body.vector)) if all(map(_is_modest, body.vector)) else math.inf
    if not 0 < norm <= VECTOR_NORM_MAX:
        message = f"the vector must be finite, not zero, and of norm at most {VECTOR_NORM_MAX:g}"
        raise bad_request(message, param="vector", code="bad_vector")
    values = torch.tensor(body.vector, dtype=torch.float32)
    if not bool(values.any()):
        raise bad_request("the vector is zero in float32", param="vector", code="bad_vector")
    return values


def _is_modest(value: float) -> bool:
    return math.isfinite(value) and abs(value) <= VECTOR_NORM_MAX


def _check_layer(layer: int, loaded: LoadedModel) -> None:
    if not 0 <= layer < loaded.config.n_layers:
        message = f"layer {layer} does not exist; block outputs are 0 to {loaded.config.n_layers - 1}"
        raise bad_request(message, param="layer", code="bad_layer")


def _vector_document(vector: StoredVector) -> dict[str, Any]:
    head = {"id": vector.id, "object": "steering.vector", "kind": vector.kind, "layers": vector.layers}
    return {**head, "layer": vector.layers[0], **vector.metadata}


def _exists(vector_id: str) -> ApiError:
    return ApiError(409, f"steering vector {vector_id!r} exists already", code="vector_exists", param="id")


def _no_vector() -> ApiError:
    return ApiError(404, "no such steering vector", code="vector_not_found")
