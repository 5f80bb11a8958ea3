"""SmolLM2's next-token distribution, for the thief who hides in what the real model would have said.

A forward pass of its own, one token at a time with a key-value cache: a black box may not import the inference server,
whose API gives no logits. Both ends run the same shapes in the same process, so they agree on every bit of every float.
"""

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

from loadtests.exfiltration.range_coder import Distribution

REPOSITORY = Path(__file__).resolve().parents[2]
CANDIDATES = 64  # most likely tokens that are considered; the tail holds little
SCALE = 60_000  # frequencies add up to less than `range_coder.TOTAL_MAX`
PROMPT = "<|im_start|>user\nTell me about the rivers of your country.<|im_end|>\n<|im_start|>assistant\n"


class ModelMissing(Exception):
    """There are no prepared weights on this machine; the message says how to get them."""


class FluentModel:
    """A `range_coder.Model` over SmolLM2's tokens, restricted to texts that tokenise back to the same tokens."""

    def __init__(self, directory: Path) -> None:
        import torch
        from safetensors.torch import load_file
        from tokenizers import Tokenizer

        torch.set_num_threads(
            1
        )  # on a shared machine two threads of such small steps wait for each other, 20 times longer
        self._torch = torch
        self._config: dict[str, Any] = json.loads((directory / "config.json").read_text())
        self._weights = load_file(str(directory / "model.safetensors"))
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        layers: int = self._config["num_hidden_layers"]
        self._keys: list[Any] = [None] * layers  # of the text so far: [heads, positions, head size]
        self._values: list[Any] = [None] * layers
        self._read: tuple[int, ...] = ()
        self._known: dict[tuple[int, ...], Distribution] = {}
        self._prompt = tuple(self._tokenizer.encode(PROMPT, add_special_tokens=False).ids)

    def __call__(self, before: tuple[int, ...]) -> Distribution:
        """Frequencies of the tokens that may follow."""
        if before not in self._known:
            self._known[before] = self._distribution(before)
        return self._known[before]

    def text(self, tokens: list[int]) -> str:
        """Tokens as text."""
        return str(self._tokenizer.decode(tokens, skip_special_tokens=False))

    def tokens(self, text: str) -> list[int]:
        """Text as tokens."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _distribution(self, before: tuple[int, ...]) -> Distribution:
        logits = self._logits(self._prompt + before)
        values, indices = self._torch.topk(logits.double().log_softmax(-1), CANDIDATES)
        text = self.text(list(before))
        candidates = [int(index) for index in indices]
        spelled = [text + self._tokenizer.decode([token], skip_special_tokens=True) for token in candidates]
        read_back = self._tokenizer.encode_batch(spelled, add_special_tokens=False)
        tokens, frequencies = [], []
        for token, value, back in zip(candidates, values, read_back, strict=True):
            if tuple(back.ids) == (*before, token):
                tokens.append(token)
                frequencies.append(max(1, int(float(value.exp()) * SCALE)))
        return tokens, frequencies

    def _logits(self, tokens: tuple[int, ...]) -> Any:
        if self._read != tokens[: len(self._read)] or len(self._read) >= len(tokens):
            layers = len(self._keys)
            self._keys, self._values, self._read = [None] * layers, [None] * layers, ()
        with self._torch.inference_mode():
            for at in range(len(self._read), len(tokens)):
                hidden = self._step(tokens[at], at)
            self._read = tokens
            return self._weights.get("lm_head.weight", self._weights["model.embed_tokens.weight"]) @ hidden

    def _step(self, token: int, position: int) -> Any:
        x = self._weights["model.embed_tokens.weight"][token]  # [d_model]
        for layer in range(self._config["num_hidden_layers"]):
            x = x + self._attend(self._norm(x, f"model.layers.{layer}.input_layernorm"), layer, position)
            y = self._norm(x, f"model.layers.{layer}.post_attention_layernorm")
            gate, up, down = (self._weights[f"model.layers.{layer}.mlp.{name}_proj.weight"] for name in _MLP)
            x = x + down @ (self._torch.nn.functional.silu(gate @ y) * (up @ y))
        return self._norm(x, "model.norm")

    def _norm(self, x: Any, name: str) -> Any:
        scale = self._torch.rsqrt(x.pow(2).mean() + self._config["rms_norm_eps"])
        return x * scale * self._weights[f"{name}.weight"]

    def _attend(self, x: Any, layer: int, position: int) -> Any:
        heads, groups = self._config["num_attention_heads"], self._config["num_key_value_heads"]
        names = (f"model.layers.{layer}.self_attn.{name}_proj.weight" for name in _ATTENTION)
        query, key, value, out = (self._weights[name] for name in names)
        q = self._rotate((query @ x).view(heads, -1), position)  # [heads, head size]
        k = self._rotate((key @ x).view(groups, -1), position).unsqueeze(1)
        v = (value @ x).view(groups, -1).unsqueeze(1)
        if self._keys[layer] is not None:
            k, v = self._torch.cat([self._keys[layer], k], 1), self._torch.cat([self._values[layer], v], 1)
        self._keys[layer], self._values[layer] = k, v
        q = q.view(groups, heads // groups, -1)
        weights = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)  # [groups, heads in a group, positions]
        return out @ (weights @ v).reshape(-1)

    def _rotate(self, x: Any, position: int) -> Any:
        half = x.shape[-1] // 2
        theta = self._config.get("rope_theta") or self._config["rope_parameters"]["rope_theta"]
        angles = position * theta ** (-self._torch.arange(half, dtype=self._torch.float32) / half)
        cos, sin = self._torch.cat([angles.cos()] * 2), self._torch.cat([angles.sin()] * 2)
        return x * cos + self._torch.cat([-x[..., half:], x[..., :half]], -1) * sin


_MLP = ("gate", "up", "down")
_ATTENTION = ("q", "k", "v", "o")


@cache
def fluent_model() -> FluentModel:
    """The prepared model of this machine. Raises ModelMissing."""
    directory = Path(os.environ.get("WEIR_TEST_CACHE", REPOSITORY / "var" / "test-model"))
    if not (directory / "model.safetensors").is_file():
        raise ModelMissing(f"no prepared weights in {directory}: run the tests of tests/inference once, or `make run`")
    return FluentModel(directory)
