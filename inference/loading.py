"""From a path to everything one served model consists of."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from inference.chat import ChatTemplate
from inference.config import ModelConfig
from inference.model import Model
from inference.tokenizer import Tokenizer, bpe_from_gguf, tokenizer_from_json
from inference.weights import Source, open_source

_PLAIN_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
"""For base models without a template: roles as words."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model, the words around it, and its identity. `end_ids`: tokens that end an answer."""

    id: str
    digest_sha256: str
    config: ModelConfig
    model: Model
    tokenizer: Tokenizer
    template: ChatTemplate
    end_ids: frozenset[int]
    parameters: int
    base_digest_sha256: str | None = None  # of the model that this one was derived from

    @property
    def vectors_digest(self) -> str:
        """`model_digest` of the vectors that fit. A derived model has its base's residual space, and its vectors."""
        return self.base_digest_sha256 or self.digest_sha256


def load(path: Path, *, dtype: torch.dtype, device: torch.device, model_id: str | None = None) -> LoadedModel:
    """Load a model directory, a .safetensors file inside one, or a .gguf. Raises UnsupportedModelError, OSError."""
    return assemble(open_source(path), path=path, dtype=dtype, device=device, model_id=model_id)


def assemble(
    source: Source, *, path: Path, dtype: torch.dtype, device: torch.device, model_id: str | None = None
) -> LoadedModel:
    """Make the model of a source that was opened from `path`. Raises UnsupportedModelError, OSError."""
    config = source.config
    tokenizer, template_source = _words(source)
    bos, eos = config.bos_token_id, config.eos_token_ids[0] if config.eos_token_ids else None
    return LoadedModel(
        id=model_id or _model_id(path, source),
        digest_sha256=source.digest_sha256,
        config=config,
        model=Model(config, source.tensors, dtype=dtype, device=device),
        tokenizer=tokenizer,
        template=ChatTemplate(source=template_source, bos=tokenizer.token_text(bos), eos=tokenizer.token_text(eos)),
        end_ids=tokenizer.end_ids | frozenset(config.eos_token_ids),
        parameters=sum(tensor.numel() for tensor in source.tensors.values()),
    )


def _words(source: Source) -> tuple[Tokenizer, str]:
    """The tokenizer and the text of the chat template."""
    if source.gguf is not None:
        template = source.gguf.metadata.get("tokenizer.chat_template", _PLAIN_TEMPLATE)
        return Tokenizer(bpe_from_gguf(source.gguf.metadata)), template
    assert source.directory is not None
    tokenizer = tokenizer_from_json((source.directory / "tokenizer.json").read_text(encoding="utf-8"))
    jinja = source.directory / "chat_template.jinja"
    if jinja.exists():
        return tokenizer, jinja.read_text(encoding="utf-8")
    template = _read_json(source.directory / "tokenizer_config.json").get("chat_template")
    return tokenizer, template if isinstance(template, str) else _PLAIN_TEMPLATE


def _model_id(path: Path, source: Source) -> str:
    if source.directory is not None:
        named = _read_json(source.directory / "manifest.json").get("model_id")
        return named if isinstance(named, str) else source.directory.resolve().name.lower()
    return path.stem.lower()


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one if there is no such file."""
    if not path.exists():
        return {}
    document = json.loads(path.read_text(encoding="utf-8"))
    return document if isinstance(document, dict) else {}
