"""What all routes share: the models with their engines, the vectors, the jobs, and whether the server is leaving."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Protocol

from aiohttp import web

from inference.derived.models import DerivedModels
from inference.engine import Engine
from inference.jobs.table import JobTable
from inference.limits import IMPORTS_AT_ONCE_MAX
from inference.loading import LoadedModel
from inference.server.errors import ApiError
from inference.steering.spec import SteeringSpec
from inference.steering.store import VectorStore


class Served(Protocol):
    """A model that answers, and the engine it answers with."""

    @property
    def loaded(self) -> LoadedModel: ...

    @property
    def engine(self) -> Engine: ...


@dataclasses.dataclass(kw_only=True)
class Service:
    """`loaded` and `engine` are the base model's; extraction and every other job runs there."""

    loaded: LoadedModel
    engine: Engine
    store: VectorStore
    jobs: JobTable
    derived: DerivedModels
    standing: SteeringSpec | None = None  # what applies to requests that say nothing of steering (POST /cvectors)
    is_draining: bool = False
    imports: asyncio.Semaphore = dataclasses.field(default_factory=lambda: asyncio.Semaphore(IMPORTS_AT_ONCE_MAX))

    @property
    def worker(self) -> Service:
        """All engines together; see `start`, `stop` and `active_requests`."""
        return self

    @property
    def model_id(self) -> str:
        return self.loaded.id

    def served(self, model_id: str) -> Served:
        """The model of that id. Raises ApiError 404."""
        served: Served | None = self if model_id == self.loaded.id else self.derived.get(model_id)
        if served is None:
            raise ApiError(404, f"the model {model_id!r} does not exist", code="model_not_found", param="model")
        return served

    def start(self) -> None:
        self.engine.start()
        self.derived.start()

    def stop(self) -> None:
        """The base first: its jobs may add a derived model."""
        self.engine.stop()
        self.derived.stop()

    @property
    def has_failed(self) -> bool:
        return self.engine.has_failed or self.derived.has_failed

    @property
    def active_requests(self) -> int:
        return self.engine.active_requests + self.derived.active_requests

    def refuse_if_draining(self) -> None:
        if self.is_draining:
            raise ApiError(503, "the server is shutting down", code="stopping")


SERVICE: web.AppKey[Service] = web.AppKey("service", Service)
