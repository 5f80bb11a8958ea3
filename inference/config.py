"""What a decoder-only model looks like: its sizes, read from HF `config.json` keys or from GGUF metadata."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from inference.limits import CONTEXT_TOKENS_MAX

_ARCHITECTURES = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2"}


class UnsupportedModelError(Exception):
    """The file is not a model this server can run faithfully; the message says which property is the reason."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes of one model. `d_` are vector widths, `n_` counts, token ids are non-negative integers."""

    architecture: str  # "llama" or "qwen2"
    vocab_size: int
    d_model: int
    d_feed_forward: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    context_tokens: int
    rope_theta: float
    rms_norm_eps: float
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
    tie_word_embeddings: bool
    attention_bias: bool

    def __post_init__(self) -> None:
        sizes = (self.vocab_size, self.d_model, self.d_feed_forward, self.n_layers, self.n_heads, self.n_kv_heads)
        if min(*sizes, self.d_head, self.context_tokens) < 1:
            raise UnsupportedModelError("every size of a model must be at least 1")
        if self.n_heads % self.n_kv_heads:
            raise UnsupportedModelError(f"{self.n_heads} heads cannot share {self.n_kv_heads} key-value heads")
        if self.d_head % 2:
            raise UnsupportedModelError(f"rotary embeddings need an even head width, not {self.d_head}")

    @property
    def kv_values_per_token(self) -> int:
        """Numbers kept per token: keys and values of every layer."""
        return 2 * self.n_layers * self.n_kv_heads * self.d_head


def config_from_hf(document: Mapping[str, Any]) -> ModelConfig:
    """Read the keys of an HF `config.json`. Raises UnsupportedModelError for what the forward pass would get wrong."""
    name = (document.get("architectures") or ["none"])[0]
    if name not in _ARCHITECTURES:
        raise UnsupportedModelError(f"architecture {name!r} is not one of {sorted(_ARCHITECTURES)}")
    _refuse_unsupported(document)
    rope = document.get("rope_parameters") or {}
    d_model, n_heads = int(document["hidden_size"]), int(document["num_attention_heads"])
    eos = document.get("eos_token_id")
    eos_ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
    architecture = _ARCHITECTURES[name]
    return ModelConfig(
        architecture=architecture,
        vocab_size=int(document["vocab_size"]),
        d_model=d_model,
        d_feed_forward=int(document["intermediate_size"]),
        n_layers=int(document["num_hidden_layers"]),
        n_heads=n_heads,
        n_kv_heads=int(document.get("num_key_value_heads") or n_heads),
        d_head=int(document.get("head_dim") or d_model // n_heads),
        context_tokens=min(int(document["max_position_embeddings"]), CONTEXT_TOKENS_MAX),
        rope_theta=float(rope.get("rope_theta") or document.get("rope_theta") or 10_000.0),
        rms_norm_eps=float(document["rms_norm_eps"]),
        bos_token_id=document.get("bos_token_id"),
        eos_token_ids=tuple(int(i) for i in eos_ids),
        pad_token_id=document.get("pad_token_id"),
        tie_word_embeddings=bool(document.get("tie_word_embeddings", False)),
        attention_bias=architecture == "qwen2",
    )


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` that transformers (and `config_from_hf`) reads back as the same model."""
    names = {short: name for name, short in _ARCHITECTURES.items()}
    eos = config.eos_token_ids
    return {
        "architectures": [names[config.architecture]],
        "model_type": config.architecture,
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_feed_forward,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.d_head,
        "hidden_act": "silu",
        "max_position_embeddings": config.context_tokens,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.rms_norm_eps,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": eos[0] if len(eos) == 1 else list(eos),
        "pad_token_id": config.pad_token_id,
        "tie_word_embeddings": config.tie_word_embeddings,
        "attention_bias": config.attention_bias,
        "mlp_bias": False,
        "torch_dtype": "float32",
    }


def config_from_gguf(metadata: Mapping[str, Any], *, has_output_head: bool) -> ModelConfig:
    """Read GGUF metadata (`general.architecture` llama or qwen2). Raises UnsupportedModelError otherwise."""
    architecture = metadata.get("general.architecture")
    if architecture not in _ARCHITECTURES.values():
        raise UnsupportedModelError(f"GGUF architecture {architecture!r} is not llama or qwen2")
    assert isinstance(architecture, str)
    if f"{architecture}.rope.scaling.type" in metadata or f"{architecture}.expert_count" in metadata:
        raise UnsupportedModelError("scaled rotary embeddings and mixtures of experts are not supported")

    def value(key: str) -> Any:
        return metadata[f"{architecture}.{key}"]

    n_heads, d_model = int(value("attention.head_count")), int(value("embedding_length"))
    eos = metadata.get("tokenizer.ggml.eos_token_id")
    return ModelConfig(
        architecture=architecture,
        vocab_size=len(metadata["tokenizer.ggml.tokens"]),
        d_model=d_model,
        d_feed_forward=int(value("feed_forward_length")),
        n_layers=int(value("block_count")),
        n_heads=n_heads,
        n_kv_heads=int(metadata.get(f"{architecture}.attention.head_count_kv", n_heads)),
        d_head=int(metadata.get(f"{architecture}.rope.dimension_count", d_model // n_heads)),
        context_tokens=min(int(value("context_length")), CONTEXT_TOKENS_MAX),
        rope_theta=float(metadata.get(f"{architecture}.rope.freq_base", 10_000.0)),
        # GGUF keeps float32: 9.999999747378752e-06 is 1e-05 again at seven digits.
        rms_norm_eps=float(f"{value('attention.layer_norm_rms_epsilon'):.7g}"),
        bos_token_id=metadata.get("tokenizer.ggml.bos_token_id"),
        eos_token_ids=() if eos is None else (int(eos),),
        pad_token_id=metadata.get("tokenizer.ggml.padding_token_id"),
        tie_word_embeddings=not has_output_head,
        attention_bias=architecture == "qwen2",
    )


def _refuse_unsupported(document: Mapping[str, Any]) -> None:
    rope = document.get("rope_parameters") or {}
    if document.get("rope_scaling") or rope.get("rope_type", "default") != "default":
        raise UnsupportedModelError("scaled rotary embeddings are not supported")
    if document.get("use_sliding_window"):
        raise UnsupportedModelError("sliding window attention is not supported")
    if document.get("mlp_bias") or (document.get("attention_bias") and document.get("model_type") == "llama"):
        raise UnsupportedModelError("Llama models with biases are not supported")
    if document.get("hidden_act", "silu") != "silu":
        raise UnsupportedModelError(f"activation {document['hidden_act']!r} is not silu")
