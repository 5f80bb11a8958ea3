"""The table of routes, and the plain questions: is it alive, is it ready, what can it do."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from inference import limits
from inference.datasets import NAMES
from inference.extraction.evaluation import Metric
from inference.extraction.methods import Method
from inference.extraction.selection import By
from inference.server import completions, datasets, evaluation, extraction, jobs, models, vectors
from inference.server.compat import llama_cpp, neuronpedia
from inference.server.errors import ApiError, errors_as_json, json_response
from inference.server.metrics import METRICS, ServerMetrics, counted, page
from inference.server.service import SERVICE, Service
from inference.steering.building import ALL_WRITES, OPERATIONS
from inference.steering.points import Point
from inference.steering.program import Conflict
from inference.steering.vector import Kind

SAMPLING_DEFINITION = "gumbel_max_philox4x32_10_v1"
"""Name of the definition in `inference/sampling.py`; it changes when the same seed would give other tokens."""


def make_app(service: Service) -> web.Application:
    app = web.Application(middlewares=[counted, errors_as_json], client_max_size=limits.BODY_BYTES_MAX)
    app[SERVICE] = service
    app[METRICS] = ServerMetrics(service)
    app.add_routes(
        [
            web.get("/livez", _livez, allow_head=False),
            web.get("/readyz", _readyz, allow_head=False),
            web.get("/metrics", page, allow_head=False),
            web.get("/v1/capabilities", _capabilities, allow_head=False),
            web.post("/v1/chat/completions", completions.chat_completions),
            web.post("/v1/completions", completions.completions),
            web.post("/v1/steer/completion", neuronpedia.completion),
            web.post("/v1/steer/completion-chat", neuronpedia.completion_chat),
            web.get("/cvectors", llama_cpp.list_control_vectors, allow_head=False),
            web.post("/cvectors", llama_cpp.set_control_vectors),
            web.get("/v1/models", models.list_models, allow_head=False),
            web.delete("/v1/models/{id}", models.delete_model),
            web.post("/v1/steering/orthogonalize", models.orthogonalize),
            web.post("/v1/steering/extract", extraction.extract_vector),
            web.post("/v1/steering/select", extraction.select_vector),
            web.post("/v1/steering/calibrate", evaluation.calibrate_steering),
            web.post("/v1/steering/evaluate", evaluation.evaluate_steering),
            web.get("/v1/steering/datasets", datasets.list_datasets, allow_head=False),
            web.get("/v1/jobs", jobs.list_jobs, allow_head=False),
            web.get("/v1/jobs/{id}", jobs.get_job, allow_head=False),
            web.delete("/v1/jobs/{id}", jobs.cancel_job),
            web.get("/v1/jobs/{id}/events", jobs.follow_job, allow_head=False),
            web.get("/v1/steering/vectors", vectors.list_vectors, allow_head=False),
            web.post("/v1/steering/vectors", vectors.upload_vector),
            web.post("/v1/steering/vectors/import", vectors.import_file),
            web.post("/v1/steering/vectors/combine", vectors.combine_vectors),
            web.get("/v1/steering/vectors/{id}", vectors.get_vector, allow_head=False),
            web.patch("/v1/steering/vectors/{id}", vectors.describe_vector),
            web.delete("/v1/steering/vectors/{id}", vectors.delete_vector),
            web.get("/v1/steering/vectors/{id}/file", vectors.export_file, allow_head=False),
        ]
    )
    return app


async def _livez(request: web.Request) -> web.Response:
    if request.app[SERVICE].has_failed:
        raise ApiError(503, "the engine has failed; the server's log has the reason", code="engine_failed")
    return json_response({"status": "ok"})


async def _readyz(request: web.Request) -> web.Response:
    if request.app[SERVICE].is_draining:
        raise ApiError(503, "the server is shutting down", code="stopping")
    return json_response({"status": "ok"})


async def _capabilities(request: web.Request) -> web.Response:
    loaded = request.app[SERVICE].loaded
    config = loaded.config
    document: dict[str, Any] = {
        "object": "capabilities",
        "model": {
            "id": loaded.id,
            "architecture": config.architecture,
            "parameters": loaded.parameters,
            "layers": config.n_layers,
            "d_model": config.d_model,
            "vocab_size": config.vocab_size,
            "context_tokens": config.context_tokens,
            "dtype": str(loaded.model.dtype).removeprefix("torch."),
            "digest": loaded.digest_sha256,
        },
        "sampling": {"definition": SAMPLING_DEFINITION, "fields": ["temperature", "top_p", "top_k", "seed"]},
        "tools": {"template_renders_tools": loaded.template.renders_tools},
        "steering": {
            "ops": list(OPERATIONS),
            "points": [*(point.value for point in Point), ALL_WRITES],
            "conflicts": [conflict.value for conflict in Conflict],
            "layer_convention": "block_output",
            "scale_abs_max": limits.SCALE_ABS_MAX,
            "vectors_max": limits.SPEC_VECTORS_MAX,
        },
        "store": {
            "kinds": list(Kind),
            "formats": ["gguf", "safetensors"],
            "import_bytes_max": limits.IMPORT_BYTES_MAX,
            "derived_models_max": limits.DERIVED_MODELS_MAX,
        },
        "datasets": list(NAMES),
        "extraction": {
            "methods": list(Method),
            "tokens": ["last", "mean", "post_instruction", "all"],
            "selections": list(By),
            "metrics": list(Metric),
            "pairs_max": limits.PAIRS_MAX,
        },
    }
    return json_response(document)
