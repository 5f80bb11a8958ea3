"""From a path to a service ready to score: the model in float32, its digest, the scorer."""

from __future__ import annotations

from pathlib import Path

import torch

from inference.config import UnsupportedModelError
from inference.loading import assemble
from inference.score.app import ScoreService
from inference.score.digest import digest, measure_document
from inference.score.scorer import Scorer
from inference.weights import open_source


def open_service(path: Path, *, batch_tokens_max: int) -> ScoreService:
    """Load what `path` holds. Raises UnsupportedModelError, OSError."""
    source = open_source(path)
    loaded = assemble(source, path=path, dtype=torch.float32, device=torch.device("cpu"))
    if not loaded.end_ids or any(map(loaded.tokenizer.token_bytes, loaded.end_ids)):
        # A token that is text and end at once would be counted twice, and the masses would sum to more than 1.
        raise UnsupportedModelError("the model has no special token that ends an answer, or one that is also text")
    document = measure_document(loaded, source.tensors)
    scorer = Scorer(loaded, batch_tokens_max=batch_tokens_max)
    return ScoreService(loaded=loaded, scorer=scorer, code=digest(document), document=document)
