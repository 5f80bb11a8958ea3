"""What all routes share: the loaded model, its engine, the vectors, the jobs, and whether the server is leaving."""

from __future__ import annotations

import dataclasses

from aiohttp import web

from inference.engine import Engine
from inference.jobs.table import JobTable
from inference.loading import LoadedModel
from inference.server.errors import ApiError
from inference.steering.store import VectorStore


@dataclasses.dataclass(kw_only=True)
class Service:
    loaded: LoadedModel
    engine: Engine
    store: VectorStore
    jobs: JobTable
    is_draining: bool = False

    @property
    def worker(self) -> Engine:
        return self.engine

    @property
    def model_id(self) -> str:
        return self.loaded.id

    def refuse_if_draining(self) -> None:
        if self.is_draining:
            raise ApiError(503, "the server is shutting down", code="stopping")


SERVICE: web.AppKey[Service] = web.AppKey("service", Service)
