"""The derived models that are served: their recipes on disk, each with an engine of its own in memory.

An engine of its own is the simplest thing that is right: caches, batches and the prefix cache of two models can never
meet. Each gets `KV_SHARE` of the base model's key-value memory *beside* that, so that a derived model never takes room
from the base and the sum is bounded: with all `DERIVED_MODELS_MAX` in use, twice the base's. An idle engine's thread
sleeps and costs nothing; two busy ones share the cores.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from inference.derived.orthogonalize import orthogonalized
from inference.derived.recipe import Recipe, recipe_of
from inference.durable import open_directory, remove_file, set_aside, write_file
from inference.engine import Engine
from inference.limits import DERIVED_MODELS_MAX, DRAIN_S, IMPORT_BYTES_MAX
from inference.loading import LoadedModel
from inference.model import Model
from inference.steering.safetensors_file import FileError

_SUFFIX = ".safetensors"
_POLL_S = 0.05
_log = logging.getLogger("inference.derived")

KV_SHARE = 0.25
"""Of the base model's key-value memory, for each derived model."""


class ModelExistsError(Exception):
    """A model of that id is served already."""


class ModelsFullError(Exception):
    """`DERIVED_MODELS_MAX` derived models are there."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DerivedModel:
    loaded: LoadedModel
    engine: Engine
    recipe: Recipe


class DerivedModels:
    """Thread-safe; what changes it is durable when it returns. `start` and `stop` those of the engines.

    path: of the base model's weights. engine_for: makes the engine of a derived model, not started.
    """

    def __init__(
        self, directory: Path, *, base: LoadedModel, path: Path, engine_for: Callable[[Model], Engine]
    ) -> None:
        self.base, self.path = base, path
        self._directory, self._engine_for = directory, engine_for
        self._writing = threading.Lock()  # held across disk writes
        self._lock = threading.Lock()  # guards what follows
        self._models: dict[str, DerivedModel] = {}
        self._leaving: list[Engine] = []  # of deleted models, until their last answer has ended
        self._is_started = False
        open_directory(directory)
        for recipe in _read_all(directory):
            self._rebuild(recipe)

    def get(self, model_id: str) -> DerivedModel | None:
        with self._lock:
            return self._models.get(model_id)

    def all(self) -> list[DerivedModel]:
        """By id."""
        with self._lock:
            return [self._models[model_id] for model_id in sorted(self._models)]

    def check_room(self, model_id: str) -> None:
        """Raises ModelExistsError or ModelsFullError if `add` would now."""
        with self._lock:
            if model_id == self.base.id or model_id in self._models:
                raise ModelExistsError(model_id)
            if len(self._models) >= DERIVED_MODELS_MAX:
                raise ModelsFullError(f"{DERIVED_MODELS_MAX} derived models are kept at most; delete one")

    def add(self, recipe: Recipe, model: Model) -> None:
        """Keep and serve a model made after `recipe`. Raises ModelExistsError, ModelsFullError or OSError."""
        with self._writing:
            self.check_room(recipe.id)
            write_file(self._path(recipe.id), recipe.file_content())
            self._serve(recipe, model)

    def remove(self, model_id: str) -> bool:
        """Forget a model; False if there is none. Its running answers may end, for `DRAIN_S` at most."""
        with self._writing:
            derived = self.get(model_id)
            if derived is None:
                return False
            remove_file(self._path(model_id))
            with self._lock:
                del self._models[model_id]
                if self._is_started:
                    self._leaving.append(derived.engine)
                    threading.Thread(target=self._drain, args=(derived.engine,), daemon=True).start()
            return True

    def start(self) -> None:
        with self._lock:
            self._is_started = True
            engines = [derived.engine for derived in self._models.values()]
        for engine in engines:
            engine.start()

    def stop(self) -> None:
        """End what the engines do, as `Engine.stop`."""
        with self._lock:
            engines = [*(derived.engine for derived in self._models.values()), *self._leaving]
            started, self._is_started = self._is_started, False
            self._leaving.clear()
        for engine in engines if started else ():
            engine.stop()

    @property
    def has_failed(self) -> bool:
        """Whether the engine of any that is served has ended by a fault."""
        return any(derived.engine.has_failed for derived in self.all())

    @property
    def active_requests(self) -> int:
        with self._lock:
            engines = [*(derived.engine for derived in self._models.values()), *self._leaving]
        return sum(engine.active_requests for engine in engines)

    def _rebuild(self, recipe: Recipe) -> None:
        if recipe.base_digest_sha256 != self.base.digest_sha256 or recipe.basis.shape[1] != self.base.config.d_model:
            # The operator serves another model today; the file stays for the day of its return.
            _log.warning("a derived model of another base is left out", extra={"model": recipe.id})
            return
        if len(self._models) >= DERIVED_MODELS_MAX or recipe.id == self.base.id:
            _log.error("a derived model has no room, or the base's id, and is left out", extra={"model": recipe.id})
            return
        work = orthogonalized(self.base.model, self.path, recipe.basis)
        while True:
            try:
                next(work)
            except StopIteration as end:
                self._serve(recipe, end.value)
                return

    def _serve(self, recipe: Recipe, model: Model) -> None:
        base = self.base
        loaded = dataclasses.replace(
            base,
            id=recipe.id,
            digest_sha256=recipe.digest_sha256,
            base_digest_sha256=base.digest_sha256,
            config=model.config,
            model=model,
        )
        derived = DerivedModel(loaded=loaded, engine=self._engine_for(model), recipe=recipe)
        with self._lock:
            self._models[recipe.id] = derived
            started = self._is_started
        if started:
            derived.engine.start()

    def _drain(self, engine: Engine) -> None:
        deadline = time.monotonic() + DRAIN_S
        while engine.active_requests and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        with self._lock:
            if engine not in self._leaving:
                return  # `stop` was faster
            self._leaving.remove(engine)
        engine.stop()

    def _path(self, model_id: str) -> Path:
        return self._directory / f"{model_id}{_SUFFIX}"


def _read_all(directory: Path) -> list[Recipe]:
    found = []
    for path in sorted(directory.glob(f"*{_SUFFIX}")):
        try:
            if path.stat().st_size > IMPORT_BYTES_MAX:
                raise FileError("the file is too large for a recipe")
            found.append(recipe_of(path.read_bytes(), model_id=path.name.removesuffix(_SUFFIX)))
        except (OSError, FileError) as error:
            _log.error(
                "a derived model cannot be read and is left out", extra={"file": str(path), "reason": str(error)}
            )
            with contextlib.suppress(OSError):  # then it is reported at every start
                set_aside(path)
    return found
