"""The forward pass of Llama and Qwen2: RMSNorm, rotary embeddings, grouped-query attention, SwiGLU.

A step is a flat batch of tokens [tokens] cut into spans, one per sequence; everything but attention works on [tokens,
d_model]. Attention runs per span, so a sequence's result does not depend on its neighbours. At five points of each
block hooks may change rows. Source: Touvron et al. 2302.13971, Qwen2 2407.10671; held against transformers'
LlamaForCausalLM and Qwen2ForCausalLM in the tests.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from inference.config import ModelConfig
from inference.kv import KvCache
from inference.linear import ROWS_MIN, Linear, make_linear
from inference.steering.points import Hook, Hooks, LayerHooks


@dataclasses.dataclass(frozen=True, slots=True)
class Span:
    """The next `count` tokens of one sequence, written to `cache` behind its `length`, which grows by `count`."""

    cache: KvCache
    count: int


@dataclasses.dataclass(frozen=True, slots=True)
class _Block:
    norm_attention: Tensor  # [d_model]
    qkv: Linear  # [rows, d_model] → [rows, (n_heads + 2 n_kv_heads) d_head]
    out: Linear
    norm_feed_forward: Tensor  # [d_model]
    gate_up: Linear  # [rows, d_model] → [rows, 2 d_feed_forward]
    down: Linear


class Model:
    """Weights ready for use on one device. Not thread-safe with respect to a KvCache; otherwise read-only."""

    def __init__(
        self, config: ModelConfig, tensors: Mapping[str, Tensor], *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.config, self.dtype, self.device = config, dtype, device
        self.forward_passes = 0

        def tensor(name: str) -> Tensor:
            # A copy, so that nothing keeps the mapped file in memory once everything is packed.
            return tensors[name].to(device=device, dtype=dtype, copy=True)

        self._embedding = tensor("model.embed_tokens.weight")
        self._blocks = [_make_block(config, tensor, layer) for layer in range(config.n_layers)]
        self._norm = tensor("model.norm.weight")
        head = self._embedding if config.tie_word_embeddings else tensor("lm_head.weight")
        self._head = make_linear(head, None)
        self._cos, self._sin = _rotary_tables(config, device)  # [context, d_head / 2], float32

    def with_writers(self, *, embedding: Tensor, outs: Sequence[Linear], downs: Sequence[Linear]) -> Model:
        """A model with other matrices that write to the residual; it shares everything else with this one.

        embedding [vocab_size, d_model]; outs and downs per layer, from `linear`. The output head stays what it is here,
        so a tied one is untied.
        """
        blocks = zip(self._blocks, outs, downs, strict=True)
        other = copy.copy(self)
        other.config = dataclasses.replace(self.config, tie_word_embeddings=False)
        other.forward_passes = 0
        other._embedding = embedding.to(device=self.device, dtype=self.dtype)  # noqa: SLF001 - of this class
        other._blocks = [dataclasses.replace(block, out=out, down=down) for block, out, down in blocks]  # noqa: SLF001
        return other

    def linear(self, weight: Tensor) -> Linear:
        """A product with weight [d_out, d_in] as this model runs its own."""
        return make_linear(weight.to(device=self.device, dtype=self.dtype), None)

    @torch.inference_mode()
    def logits(
        self, token_ids: Tensor, spans: Sequence[Span], *, steering: Hooks | None = None, every: bool = False
    ) -> Tensor:
        """Run token_ids [tokens] cut into spans; return float32 logits of each span's last token [spans, vocab_size].

        `every` asks for all positions instead [tokens, vocab_size]. Caches grow; the caller has checked their capacity.
        """
        hidden = self._run(token_ids, spans, steering=steering, n_layers=self.config.n_layers)
        tokens = int(token_ids.shape[0])
        if not every and len(spans) < tokens:
            ends = torch.tensor([span.count for span in spans], device=self.device).cumsum(0) - 1
            hidden, tokens = hidden[ends], len(spans)
        return self.head(hidden)[:tokens]

    @torch.inference_mode()
    def hidden(self, token_ids: Tensor, spans: Sequence[Span], *, steering: Hooks | None = None) -> Tensor:
        """Residual stream [tokens, d_model] behind the last block, for callers that want few logits at a time, or none."""
        tokens = int(token_ids.shape[0])
        return self._run(token_ids, spans, steering=steering, n_layers=self.config.n_layers)[:tokens]

    @torch.inference_mode()
    def head(self, hidden: Tensor) -> Tensor:
        """Float32 logits [rows, vocab_size] of rows of `hidden` [rows, d_model]."""
        rows = hidden.shape[0]
        return self._head(self._normalise(_at_least(ROWS_MIN, hidden), self._norm))[:rows].float()

    @torch.inference_mode()
    def block_output(self, token_ids: Tensor, cache: KvCache, *, layer: int) -> Tensor:
        """Residual stream [tokens, d_model] after block `layer`: HF `hidden_states[layer + 1]`."""
        tokens = int(token_ids.shape[0])
        hidden = self._run(token_ids, [Span(cache, tokens)], steering=None, n_layers=layer + 1)
        return hidden[:tokens]

    @torch.inference_mode()
    def block_outputs(
        self, token_ids: Tensor, spans: Sequence[Span], *, layers: Collection[int], steering: Hooks | None = None
    ) -> dict[int, Tensor]:
        """Residual stream [tokens, d_model] after each of `layers`, as steering leaves it; runs no further than needed."""
        recorder = _Recorder(steering, layers, tokens=int(token_ids.shape[0]))
        self._run(token_ids, spans, steering=recorder, n_layers=max(layers) + 1)
        return recorder.outputs

    def _run(self, token_ids: Tensor, spans: Sequence[Span], *, steering: Hooks | None, n_layers: int) -> Tensor:
        self.forward_passes += 1
        attention = _Attention(self.config, spans, self._cos, self._sin)
        hidden = _at_least(ROWS_MIN, self._embedding[token_ids])
        for layer in range(n_layers):
            block = self._blocks[layer]
            hooks = _NO_HOOKS if steering is None else steering.at(layer) or _NO_HOOKS
            # Every tensor that a hook may change in place was made in this step and is nobody else's.
            if hooks.block_input is not None:
                hooks.block_input(hidden)
            heads = attention(layer, block.qkv(self._normalise(hidden, block.norm_attention)))
            if hooks.head_output is not None:
                hooks.head_output(heads)
            attended = block.out(heads)
            if hooks.attention_output is not None:
                hooks.attention_output(attended)
            hidden = hidden + attended
            gate, up = block.gate_up(self._normalise(hidden, block.norm_feed_forward)).chunk(2, dim=-1)
            fed = block.down(F.silu(gate).mul_(up))
            if hooks.mlp_output is not None:
                hooks.mlp_output(fed)
            hidden = hidden + fed
            if hooks.block_output is not None:
                hooks.block_output(hidden)
        for span in spans:
            span.cache.length += span.count
        return hidden

    def _normalise(self, hidden: Tensor, weight: Tensor) -> Tensor:
        wide = hidden.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.config.rms_norm_eps)
        return (wide * scale).to(self.dtype).mul_(weight)


_NO_HOOKS = LayerHooks()


class _Recorder:
    """Copies block outputs behind other hooks, if there are any."""

    def __init__(self, inner: Hooks | None, layers: Collection[int], *, tokens: int) -> None:
        self._inner, self._layers, self._tokens = inner, layers, tokens
        self.outputs: dict[int, Tensor] = {}

    def at(self, layer: int) -> LayerHooks | None:
        hooks = None if self._inner is None else self._inner.at(layer)
        if layer not in self._layers:
            return hooks
        hooks = hooks or _NO_HOOKS

        def record(hidden: Tensor, change: Hook | None = hooks.block_output) -> None:
            if change is not None:
                change(hidden)
            self.outputs[layer] = hidden[: self._tokens].clone()  # the next block's hooks change it in place

        return dataclasses.replace(hooks, block_output=record)


class _Attention:
    """Causal attention of one step: what all layers share (places, rotations, masks) is worked out once."""

    def __init__(self, config: ModelConfig, spans: Sequence[Span], cos: Tensor, sin: Tensor) -> None:
        self._config = config
        places = [torch.arange(span.cache.length, span.cache.length + span.count) for span in spans]
        rows = _at_least(ROWS_MIN, torch.cat(places)).to(cos.device)
        self._cos, self._sin = cos[rows].unsqueeze(1), sin[rows].unsqueeze(1)  # [rows, 1, d_head / 2]
        edges = [0]
        for span in spans:
            assert span.cache.length + span.count <= span.cache.capacity
            edges.append(edges[-1] + span.count)
        self._counts = [span.count for span in spans]
        self._padding = rows.shape[0] - edges[-1]
        self._spans = [_SpanView(span) for span in spans]
        # [n_layers][spans], each [2 n_kv_heads, count, d_head]: where a layer's new keys and values go.
        self._new = list(zip(*(view.new for view in self._spans), strict=True))

    def __call__(self, layer: int, qkv: Tensor) -> Tensor:
        """qkv [rows, (n_heads + 2 n_kv_heads) d_head] → [rows, n_heads d_head]; writes this layer's keys and values.

        Changes qkv: queries and keys are rotated where they lie.
        """
        n_heads, n_kv, d_head = self._config.n_heads, self._config.n_kv_heads, self._config.d_head
        rows = qkv.shape[0]
        heads = qkv.view(rows, n_heads + 2 * n_kv, d_head)
        self._rotate(heads[:, : n_heads + n_kv])
        queries = heads[:, :n_heads].split_with_sizes([*self._counts, self._padding])
        kept = heads[:, n_heads:].transpose(0, 1).split_with_sizes([*self._counts, self._padding], dim=1)
        # One call instead of one for every span.
        torch._foreach_copy_(self._new[layer], kept[:-1])
        mixed = [view.attend(layer, own) for view, own in zip(self._spans, queries, strict=False)]
        if self._padding:
            # Rows beyond the spans: nobody reads them, but they must not hold NaN from stale memory.
            mixed.append(qkv.new_zeros(self._padding, n_heads * d_head))
        return torch.cat(mixed) if len(mixed) > 1 else mixed[0]

    def _rotate(self, heads: Tensor) -> None:
        first, second = heads.float().chunk(2, dim=-1)
        turned = torch.cat((first * self._cos - second * self._sin, second * self._cos + first * self._sin), dim=-1)
        heads.copy_(turned)


class _SpanView:
    """One span's window on its cache: per layer, where this step writes and what it may read."""

    def __init__(self, span: Span) -> None:
        cache, past, total = span.cache, span.cache.length, span.cache.length + span.count
        self.new = cache.keys_values[:, :, past:total].unbind(0)
        self._keys = cache.keys[:, None, :, :total].unbind(0)  # each [1, n_kv_heads, total, d_head]
        self._values = cache.values[:, None, :, :total].unbind(0)
        self._is_causal = past == 0 and span.count > 1
        self._mask: Tensor | None = None
        if past > 0 and span.count > 1:
            device = cache.keys_values.device
            self._mask = torch.ones(span.count, total, dtype=torch.bool, device=device).tril(diagonal=past)

    def attend(self, layer: int, queries: Tensor) -> Tensor:
        """queries [count, n_heads, d_head] → [count, n_heads d_head], over everything this layer's cache holds."""
        keys, values = self._keys[layer], self._values[layer]
        count, n_heads, d_head = queries.shape
        if count == 1:
            # The queries that share a key-value head stand where a sequence of queries would: no copy of keys and
            # values.
            grouped = queries.view(1, keys.shape[1], -1, d_head)
            return F.scaled_dot_product_attention(grouped, keys, values).view(1, -1)
        mixed = F.scaled_dot_product_attention(
            queries.transpose(0, 1).unsqueeze(0),
            keys,
            values,
            attn_mask=self._mask,
            is_causal=self._is_causal,
            enable_gqa=True,
        )
        return mixed.squeeze(0).transpose(0, 1).reshape(count, n_heads * d_head)


def _make_block(config: ModelConfig, tensor: Callable[[str], Tensor], layer: int) -> _Block:
    prefix = f"model.layers.{layer}."

    def joined(*names: str) -> Tensor:
        return torch.cat([tensor(prefix + name) for name in names])

    qkv = [f"self_attn.{name}_proj" for name in ("q", "k", "v")]
    bias = joined(*(f"{name}.bias" for name in qkv)) if config.attention_bias else None
    return _Block(
        norm_attention=tensor(prefix + "input_layernorm.weight"),
        qkv=make_linear(joined(*(f"{name}.weight" for name in qkv)), bias),
        out=make_linear(joined("self_attn.o_proj.weight"), None),
        norm_feed_forward=tensor(prefix + "post_attention_layernorm.weight"),
        gate_up=make_linear(joined("mlp.gate_proj.weight", "mlp.up_proj.weight"), None),
        down=make_linear(joined("mlp.down_proj.weight"), None),
    )


def _rotary_tables(config: ModelConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    exponents = torch.arange(0, config.d_head, 2, dtype=torch.int64).float() / config.d_head
    frequencies = 1.0 / (config.rope_theta**exponents)  # [d_head / 2]
    angles = torch.outer(torch.arange(config.context_tokens, dtype=torch.float32), frequencies)
    return angles.cos().to(device), angles.sin().to(device)


def _at_least(rows_min: int, rows: Tensor) -> Tensor:
    """Repeat the last row of [rows, ...] until there are `rows_min`."""
    missing = rows_min - rows.shape[0]
    return rows if missing <= 0 else torch.cat((rows, rows[-1:].expand(missing, *rows.shape[1:])))
