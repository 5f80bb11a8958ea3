"""Matrix products with fixed weights: packed once by oneDNN on the CPU, plain elsewhere.

On two cores of an AVX-512 machine the packed product takes 10 to 14 ms for all of SmolLM2-135M's blocks at 1 to 16
rows, the unpacked one 24 to 40 ms (float32; `docs/inference.md` has the table). It also computes each row in the same
order whatever the other rows are, from two rows up; one row alone takes another kernel, which is why `Model` never
runs fewer than `ROWS_MIN` rows.
"""

from __future__ import annotations

import platform
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS_MIN = 2
"""Fewest rows for which the packed product is the same, bit for bit, as inside a larger batch (measured, tested)."""

_ROWS_HINT = 256
"""Number of rows the packing is laid out for; 8 to 256 gave the same speed, 1 was slower at every size."""

_X86 = ("x86_64", "AMD64")

Linear = Callable[[Tensor], Tensor]
"""x [rows, d_in] → x Wᵀ + b [rows, d_out]."""


def make_linear(weight: Tensor, bias: Tensor | None) -> Linear:
    """Prepare weight [d_out, d_in] and bias [d_out] for repeated use; the caller drops its own reference."""
    if weight.device.type == "cpu" and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return _packed(weight, bias)
    return lambda x: F.linear(x, weight, bias)


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 itself. oneDNN takes it on others too, and converts: slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if platform.machine() in _X86:
        is_supported = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()  # noqa: SLF001
    else:
        is_supported = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # noqa: SLF001
    return bool(is_supported)


def _packed(weight: Tensor, bias: Tensor | None) -> Linear:
    # The operators torch.compile itself emits for CPU linears; torch is pinned, so that their signature is known.
    with torch.no_grad():
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _ROWS_HINT)  # noqa: SLF001
    product = torch.ops.mkldnn._linear_pointwise  # noqa: SLF001

    def apply(x: Tensor) -> Tensor:
        result: Tensor = product(x, packed, bias, "none", [], "")
        return result

    return apply
