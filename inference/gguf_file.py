"""What a GGUF file holds, as HF would name it: metadata, dequantised tensors, tokenizer parts.

Source: the GGUF specification and llama.cpp's `convert_hf_to_gguf.py`, whose tensor names and permutation this undoes.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from inference.config import ModelConfig, config_from_gguf

_BLOCK_NAMES = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_q.bias": "self_attn.q_proj.bias",
    "attn_k.bias": "self_attn.k_proj.bias",
    "attn_v.bias": "self_attn.v_proj.bias",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
_TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


class GgufFile:
    """An open GGUF file. Tensors are dequantised one at a time: memory holds one more than the caller keeps."""

    def __init__(self, path: Path) -> None:
        self._reader = gguf.GGUFReader(path)
        self.metadata: dict[str, Any] = {name: field.contents() for name, field in self._reader.fields.items()}
        names = {tensor.name for tensor in self._reader.tensors}
        self.config: ModelConfig = config_from_gguf(self.metadata, has_output_head="output.weight" in names)

    @property
    def tensor_count(self) -> int:
        return len(self._reader.tensors)

    def tensors(self, names: Container[str] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (HF name, float32 tensor in HF layout), all or those of `names`.

        Raises ValueError for a tensor that has no place.
        """
        for tensor in self._reader.tensors:
            name = _hf_name(tensor.name)
            if names is not None and name not in names:
                continue
            values = np.asarray(gguf.quants.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
            if self.config.architecture == "llama":
                values = self._undo_permutation(name, values)
            yield name, torch.from_numpy(np.array(values))  # a copy: the file is mapped read-only

    def _undo_permutation(self, name: str, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        # llama.cpp rotates neighbouring pairs, HF rotates halves, so its converter interleaves the rows of q and k.
        if name.endswith("q_proj.weight"):
            heads = self.config.n_heads
        elif name.endswith("k_proj.weight"):
            heads = self.config.n_kv_heads
        else:
            return values
        rows, columns = values.shape
        pairs = values.reshape(heads, rows // heads // 2, 2, columns)  # [head, pair, half, d_model]
        return pairs.swapaxes(1, 2).reshape(rows, columns)


def _hf_name(name: str) -> str:
    if name in _TOP_NAMES:
        return _TOP_NAMES[name]
    prefix, _, rest = name.partition(".")
    layer, _, suffix = rest.partition(".")
    if prefix != "blk" or suffix not in _BLOCK_NAMES:
        raise ValueError(f"tensor {name!r} has no place in this architecture")
    return f"model.layers.{int(layer)}.{_BLOCK_NAMES[suffix]}"
