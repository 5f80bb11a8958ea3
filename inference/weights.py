"""Where weights come from: a directory or file of safetensors in HF layout, or a GGUF file."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from inference.config import ModelConfig, UnsupportedModelError, config_from_hf
from inference.gguf_file import GgufFile


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A model on disk: its configuration, its tensors by HF name, and the files they came from."""

    config: ModelConfig
    tensors: dict[str, torch.Tensor]
    digest_sha256: str
    gguf: GgufFile | None
    directory: Path | None


def open_source(path: Path) -> Source:
    """Load `path`: an HF directory, a .safetensors in one, or a .gguf. Raises UnsupportedModelError, OSError."""
    if path.is_file() and path.suffix == ".gguf":
        file = GgufFile(path)
        tensors = dict(file.tensors())
        _check_shapes(file.config, tensors)
        return Source(config=file.config, tensors=tensors, digest_sha256=digest_of(path), gguf=file, directory=None)
    directory = path.parent if path.is_file() and path.suffix == ".safetensors" else path
    if not directory.is_dir():
        raise UnsupportedModelError(f"{path} is neither a model directory, a .safetensors nor a .gguf file")
    files = [path] if path.is_file() else sorted(directory.glob("*.safetensors"))
    if not files:
        raise UnsupportedModelError(f"{directory} holds no .safetensors file")
    config = config_from_hf(json.loads((directory / "config.json").read_text(encoding="utf-8")))
    tensors = {name: tensor for file in files for name, tensor in _read_safetensors(file)}
    _check_shapes(config, tensors)
    digest = _digest_of_all(directory, files)
    return Source(config=config, tensors=tensors, digest_sha256=digest, gguf=None, directory=directory)


def read_tensors(path: Path, names: Container[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Some tensors of a model that `open_source` opened, one at a time. Raises OSError."""
    if path.is_file() and path.suffix == ".gguf":
        yield from GgufFile(path).tensors(names)
        return
    for file in [path] if path.is_file() else sorted(path.glob("*.safetensors")):
        yield from _read_safetensors(file, names)


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a model and its shape, under HF names. `lm_head.weight` only if it is not tied."""
    d, ff = config.d_model, config.d_feed_forward
    q, kv = config.n_heads * config.d_head, config.n_kv_heads * config.d_head
    block: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (d,),
        "post_attention_layernorm.weight": (d,),
        "self_attn.q_proj.weight": (q, d),
        "self_attn.k_proj.weight": (kv, d),
        "self_attn.v_proj.weight": (kv, d),
        "self_attn.o_proj.weight": (d, q),
        "mlp.gate_proj.weight": (ff, d),
        "mlp.up_proj.weight": (ff, d),
        "mlp.down_proj.weight": (d, ff),
    }
    if config.attention_bias:
        block |= {f"self_attn.{name}_proj.bias": (size,) for name, size in (("q", q), ("k", kv), ("v", kv))}
    shapes: dict[str, tuple[int, ...]] = {
        f"model.layers.{layer}.{name}": shape for layer in range(config.n_layers) for name, shape in block.items()
    }
    shapes |= {"model.embed_tokens.weight": (config.vocab_size, d), "model.norm.weight": (d,)}
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, d)
    return shapes


def _check_shapes(config: ModelConfig, tensors: dict[str, torch.Tensor]) -> None:
    for name, shape in expected_shapes(config).items():
        if name not in tensors:
            raise UnsupportedModelError(f"tensor {name} is missing")
        if tuple(tensors[name].shape) != shape:
            raise UnsupportedModelError(f"tensor {name} has shape {tuple(tensors[name].shape)}, not {shape}")


def _read_safetensors(path: Path, names: Container[str] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
    with safe_open(path, framework="pt", device="cpu") as file:
        for name in file.keys():  # noqa: SIM118 - safe_open is not a mapping
            if names is None or name in names:
                yield name, file.get_tensor(name)


def _digest_of_all(directory: Path, files: list[Path]) -> str:
    # `prepare` has written the digest beside the file; hashing half a gigabyte again would cost half of the start-up.
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        manifest: dict[str, Any] = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
        if len(files) == 1 and manifest["outputs"][files[0].name]["bytes"] == files[0].stat().st_size:
            return str(manifest["outputs"][files[0].name]["sha256"])
    digests = [digest_of(file) for file in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
