"""The name of a measure: a digest of everything that the bits of a text depend on, but for the request."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping

import torch

from inference import limits
from inference.loading import LoadedModel
from inference.score import measure, windows


def measure_document(loaded: LoadedModel, tensors: Mapping[str, torch.Tensor]) -> dict[str, object]:
    """What the digest is taken of. Reads all weights, about half a second for half a gigabyte.

    The values as they are used count, not the file they came from: a GGUF and its conversion may be the same measure.
    """
    return {
        "rules": {
            "version": measure.RULES_VERSION,
            "end_floor": measure.END_FLOOR,
            "escape_mass": measure.ESCAPE_MASS,
            "logit_error_max": measure.LOGIT_ERROR_MAX,
            "surcharge_bits": measure.SURCHARGE_BITS,
            "window_tokens_max": windows.WINDOW_TOKENS_MAX,
            "prompt_chars_max": limits.SCORE_PROMPT_CHARS_MAX,
            "text_bytes_max": limits.SCORE_TEXT_BYTES_MAX,
        },
        "model": dataclasses.asdict(loaded.config),
        "weights_sha256": _weights_sha256(tensors),
        "tokenizer_sha256": _sha256(loaded.tokenizer.document),
        "template_sha256": _sha256(json.dumps([loaded.template.source, loaded.template.bos, loaded.template.eos])),
        "end_ids": sorted(loaded.end_ids),
        "dtype": "float32",
    }


def digest(document: Mapping[str, object]) -> str:
    """SHA-256, in hexadecimal, of the document as JSON with sorted keys and no spaces."""
    return _sha256(json.dumps(document, sort_keys=True, separators=(",", ":")))


def _weights_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    running = hashlib.sha256()
    for name in sorted(tensors):
        values = tensors[name].float().contiguous()
        running.update(f"{name} {list(values.shape)}\n".encode())
        running.update(values.numpy().data.cast("B"))
    return running.hexdigest()


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
