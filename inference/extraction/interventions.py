"""Steering with directions that are not stored: what judging a candidate does to the model."""

from __future__ import annotations

from torch import Tensor

from inference.config import ModelConfig
from inference.steering.compile import compile_spec
from inference.steering.program import CompiledSteering
from inference.steering.spec import SteeringSpec, VectorUse
from inference.steering.vector import direction

_ID = "candidate"


class Interventions:
    """Of one model. Directions are [d_model], `layer` the block output they belong to."""

    def __init__(self, *, config: ModelConfig, model_digest: str) -> None:
        self._config, self._model_digest = config, model_digest

    def ablate(self, vector: Tensor, layer: int) -> CompiledSteering:
        """At every place that the residual stream is written, in all blocks."""
        return self._compiled("ablate", vector, layer)

    def add(self, vector: Tensor, layer: int) -> CompiledSteering:
        """Once, at its own block output."""
        return self._compiled("add", vector, layer)

    def _compiled(self, op: str, vector: Tensor, layer: int) -> CompiledSteering:
        metadata = {"model_digest": self._model_digest}
        stored = direction(id=_ID, values={layer: vector.float()}, metadata=metadata)
        spec = SteeringSpec(vectors=[VectorUse(id=_ID, op=op)])
        return compile_spec(spec, store={_ID: stored}, config=self._config, model_digest=self._model_digest)
