"""The kernels of pure training in plain PyTorch: what the others are held to, and what runs where there is no other.

A matrix is worked on in parts of rows, so that temporaries of several times a part's size stay small.

Shape suffixes: T tokens, O outputs, I inputs, B bytes of a row, G groups of inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onebit.nn.pure_kernels import Firing
from onebit.nn.pure_storage import pack_codes, pack_counters, unpack_codes, unpack_counters
from onebit.optim.pure_deposit import (
    Factors,
    deposit_counts,
    deposit_rule,
    peak_of,
    row_chunks,
    square_sums,
    update_energy,
    update_moments,
)
from onebit.quant import counters as quant_counters
from onebit.quant.activations import quantize_activations
from onebit.quant.counters import Counter

__all__ = [
    "deposit",
    "deposit_whole",
    "fire",
    "forward_product",
    "input_codes",
    "input_gradient",
    "peak_of",
    "scale_gradient",
    "square_sums",
    "unpack",
    "update_energy",
    "update_moments",
]


def deposit(
    counters_OB: Tensor,
    g_OI: Tensor,
    factors: Factors,
    eta: float,
    mean_square: Tensor,
    counter: Counter,
    *,
    seed: int,
    tensor: int,
    step: Tensor,
    first_row: int = 0,
) -> None:
    """As `PureKernels.deposit`."""
    rows, cols = g_OI.shape
    coefficient, power = deposit_rule(counter, eta, mean_square)
    for part in row_chunks(rows, cols, g_OI.device):
        added = deposit_counts(
            g_OI,
            factors,
            coefficient,
            power,
            seed=seed,
            tensor=tensor,
            step=step,
            part=part,
            first_row=first_row,
        )
        counts = unpack_counters(counters_OB[part], cols, counter)
        counts = added.add_(counts).clamp_(-counter.bound, counter.bound).to(torch.int8)
        counters_OB[part] = pack_counters(counts, counter)


def deposit_whole(*_: Any, **__: Any) -> bool:
    """As `PureKernels.deposit_whole`, which these take in steps."""
    return False


def fire(matrices: Sequence[Firing], counter: Counter, *, is_binary: bool) -> Tensor:
    """As `PureKernels.fire`."""
    moves_N = torch.zeros(len(matrices), dtype=torch.int64, device=matrices[0][0].device)
    for moves, (codes_OB, counters_OB, cols) in zip(moves_N, matrices, strict=True):
        for part in row_chunks(codes_OB.shape[0], cols, codes_OB.device):
            codes = unpack_codes(codes_OB[part], cols, is_binary=is_binary)
            counts = unpack_counters(counters_OB[part], cols, counter)
            codes, counts, moved = quant_counters.fire(codes, counts, counter, is_binary=is_binary)
            codes_OB[part] = pack_codes(codes, is_binary=is_binary)
            counters_OB[part] = pack_counters(counts, counter)
            moves += moved
    return moves_N


def input_codes(x_TI: Tensor) -> tuple[Tensor, Tensor]:
    """As `PureKernels.input_codes`."""
    return quantize_activations(x_TI, "int8")


def unpack(codes_OB: Tensor, cols: int, dtype: torch.dtype, *, is_binary: bool) -> Tensor:
    """As `PureKernels.unpack`."""
    return unpack_codes(codes_OB, cols, is_binary=is_binary).to(dtype)


def forward_product(x_TI: Tensor, codes_OB: Tensor, dtype: torch.dtype, *, is_binary: bool) -> Tensor:
    """As `PureKernels.forward_product`."""
    return F.linear(x_TI.to(dtype), unpack(codes_OB, x_TI.shape[-1], dtype, is_binary=is_binary))


def input_gradient(g_TO: Tensor, codes_OB: Tensor, cols: int, *, is_binary: bool) -> Tensor:
    """As `PureKernels.input_gradient`."""
    return g_TO @ unpack(codes_OB, cols, g_TO.dtype, is_binary=is_binary)


def scale_gradient(g_OI: Tensor, codes_OB: Tensor, scale: Tensor, group_size: int, *, is_binary: bool) -> Tensor:
    """As `PureKernels.scale_gradient`."""
    rows, cols = g_OI.shape
    size = group_size or cols
    sums_OG = g_OI.new_empty(rows, -(-cols // size), dtype=torch.float32)
    for part in row_chunks(rows, cols, g_OI.device):
        products = g_OI[part] * unpack_codes(codes_OB[part], cols, is_binary=is_binary)
        padded = F.pad(products, (0, -cols % size))
        sums_OG[part] = padded.unflatten(1, (-1, size)).sum(2, dtype=torch.float32)
    return scale_gradient_of(sums_OG, scale)


def scale_gradient_of(sums_OG: Tensor, scale: Tensor) -> Tensor:
    """dL/dlog_scale from the sums of dL/dW times the codes over each group of a row."""
    if scale.ndim == 2:
        return (sums_OG * scale).sum(1)
    return (sums_OG.squeeze(1) if scale.ndim else sums_OG.sum()) * scale
