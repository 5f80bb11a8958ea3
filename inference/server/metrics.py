"""`/metrics`: what the server counts about itself, for Prometheus. Labels hold names of its own only, nothing of a request.

Whoever reads this page reads what an inference server says, at its own words: behind a gateway it is a way out like any
other, and stays unreachable from where the answers go.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Iterator

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, Info, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from inference.jobs.job import Status
from inference.server.errors import Handler
from inference.server.render import Document, Usage
from inference.server.service import Service

DURATION_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
UNKNOWN_ROUTE = "other"  # a path is the client's words


class ServerMetrics:
    """One registry for one service; docs/metrics.md lists what is here, and a test holds the two together."""

    def __init__(self, service: Service) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        model = Info("weir_inference_model", "The model that is served.", registry=r)
        model.info(
            {
                "id": service.loaded.id,
                "digest": service.loaded.digest_sha256,
                "dtype": str(service.loaded.model.dtype).removeprefix("torch."),
            }
        )
        self.requests = Counter(
            "weir_inference_requests",
            "Requests; `status` 499: nobody waited for the answer any more.",
            ["route", "status"],
            registry=r,
        )
        self.duration = Histogram(
            "weir_inference_request_duration_seconds",
            "From a request's head to its answer's last byte.",
            ["route"],
            buckets=DURATION_BUCKETS_S,
            registry=r,
        )
        self.prompt_tokens = Counter(
            "weir_inference_prompt_tokens", "Prompt tokens of answers that were finished.", registry=r
        )
        self.cached_tokens = Counter(
            "weir_inference_cached_prompt_tokens",
            "Prompt tokens of finished answers that the prefix cache knew.",
            registry=r,
        )
        self.generated_tokens = Counter(
            "weir_inference_generated_tokens", "Generated tokens of answers that were finished.", registry=r
        )
        self.steered_tokens = Counter(
            "weir_inference_steered_tokens",
            "Tokens that steering changed, as counted in the forward pass; `part` is `prompt` or `generated`.",
            ["part"],
            registry=r,
        )
        for part in ("prompt", "generated"):
            self.steered_tokens.labels(part)
        r.register(_State(service))

    def answered(self, usage: Usage, steering: Document | None) -> None:
        """An answer is whole. `steering` as the client sees it; None for a plain one."""
        self.prompt_tokens.inc(usage.prompt_tokens)
        self.cached_tokens.inc(usage.cached_tokens)
        self.generated_tokens.inc(usage.completion_tokens)
        if steering is not None:
            for part in ("prompt", "generated"):
                self.steered_tokens.labels(part).inc(steering["applied"][f"{part}_tokens"])


class _State(Collector):
    """How things stand when somebody asks. Batch and memory are the base model's; jobs run there, too."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        engine, store = self._service.engine, self._service.store
        for name, text, value in (
            ("requests_waiting", "Requests that wait for a place in the batch.", engine.waiting_requests),
            ("batch_rows", "Requests that run.", engine.running_requests),
            ("batch_rows_max", "How many requests run at once at most (`--max-batch`).", engine.batch_rows_max),
            ("kv_tokens_reserved", "Tokens of key-value memory held by running requests.", engine.kv_tokens_reserved),
            ("kv_tokens_max", "Tokens of key-value memory there are.", engine.kv_tokens_max),
            (
                "prefix_tokens",
                "Tokens of key-value memory held by the prefix cache, which gives way to running requests.",
                engine.prefix_tokens,
            ),
            ("vectors_stored", "Steering vectors in the store.", len(store.all())),
            ("models_derived", "Derived models that are served beside the base.", len(self._service.derived.all())),
        ):
            yield GaugeMetricFamily(f"weir_inference_{name}", text, value)
        jobs = GaugeMetricFamily("weir_inference_jobs", "Jobs that are remembered, by state.", labels=["status"])
        states = collections.Counter(job.status for job in self._service.jobs.all())
        for status in Status:
            jobs.add_metric([status], states[status])
        yield jobs


METRICS: web.AppKey[ServerMetrics] = web.AppKey("metrics", ServerMetrics)


@web.middleware
async def counted(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Outside of what makes errors into answers, so that it sees the status that leaves; 499 where nobody waits for it."""
    metrics, began_s = request.app[METRICS], time.monotonic()
    resource = request.match_info.route.resource
    route, status = resource.canonical if resource is not None else UNKNOWN_ROUTE, 499
    try:
        response = await handler(request)
        status = response.status
        return response
    finally:
        metrics.requests.labels(route, str(status)).inc()
        metrics.duration.labels(route).observe(time.monotonic() - began_s)


async def page(request: web.Request) -> web.Response:
    """In Prometheus's text format."""
    body = generate_latest(request.app[METRICS].registry)
    return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})
