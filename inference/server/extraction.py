"""The endpoints that make vectors from texts: everything that can be wrong is found before a job exists."""

from __future__ import annotations

import asyncio
import hashlib
import json

from aiohttp import web

from inference.chat import TemplateError
from inference.extraction.chore import Extraction, extraction_work
from inference.jobs.job import JobKind
from inference.limits import TEXT_BYTES_MAX
from inference.loading import LoadedModel
from inference.server.body import read_body
from inference.server.errors import bad_request
from inference.server.jobs import start_job
from inference.server.schema import ExtractRequest, decode
from inference.server.service import SERVICE
from inference.server.vectors import check_layer, refuse_existing


async def extract(request: web.Request) -> web.Response:
    """202 with a queued job."""
    service = request.app[SERVICE]
    service.refuse_if_draining()
    body = decode(await read_body(request), ExtractRequest)
    refuse_existing(service, body.id)
    extraction = await asyncio.to_thread(_extraction, body, service.loaded)
    work = extraction_work(extraction, model=service.loaded.model, store=service.store)
    return await start_job(service, kind=JobKind.EXTRACT, job_id=body.job_id, work=work)


def _extraction(body: ExtractRequest, loaded: LoadedModel) -> Extraction:
    if len(body.positive) != len(body.negative):
        counts = f"{len(body.positive)} positive, {len(body.negative)} negative"
        raise bad_request(f"as many positive as negative texts are needed, not {counts}", param="negative")
    check_layer(body.layer, loaded)
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
