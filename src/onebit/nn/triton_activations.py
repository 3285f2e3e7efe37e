"""A layer's inputs as int8 in Triton: one read of them instead of the dozen operations of `quantize_activations`.

Bit for bit what those give: the division is rounded as PyTorch's, and no product is fused with a sum.

Shape suffixes: T tokens (any leading dimensions), I inputs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from onebit.nn.triton_tiles import grid_of, launch, load_matrix, store_matrix
from onebit.quant.spec import SCALE_FLOOR

__all__ = ["input_codes"]

_ROWS = 4
_COLUMNS = 512


def input_codes(x_TI: Tensor) -> tuple[Tensor, Tensor]:
    """As `PureKernels.input_codes`."""
    x_TI = x_TI.detach().contiguous()
    cols = x_TI.shape[-1]
    codes_TI = torch.empty_like(x_TI, dtype=torch.int8)
    scale_T1 = x_TI.new_empty(*x_TI.shape[:-1], 1, dtype=torch.float32)
    tokens = scale_T1.numel()
    numbers = (tokens, cols, SCALE_FLOOR, _ROWS, _COLUMNS)
    launch(_input_codes, grid_of((tokens, 1), (_ROWS, 1)), (x_TI, codes_TI, scale_T1), numbers)
    return codes_TI, scale_T1


@triton.jit
def _input_codes(
    x,
    codes,
    scales,
    tokens,
    INPUTS: tl.constexpr,  # as a constant: Triton's interpreter cannot count to another number (3.6, with numpy 2.4)
    FLOOR: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    INFINITY: tl.constexpr = float("inf")
    ROUND: tl.constexpr = 12582912.0  # 1.5 * 2^23: added and taken away, it leaves an integer, ties to even
    peaks = tl.full([ROWS, COLUMNS], FLOOR, tl.float32)
    for first in range(0, INPUTS, COLUMNS):
        size = tl.abs(load_matrix(x, token, first + tl.arange(0, COLUMNS), tokens, INPUTS).to(tl.float32))
        peaks = tl.maximum(peaks, tl.where(size <= INFINITY, size, INFINITY))  # NaN must not pass unseen
    peak = tl.max(peaks, 1)
    tl.store(scales + token, tl.div_rn(peak, 127.0), token < tokens)
    factor = tl.div_rn(127.0, peak)
    for first in range(0, INPUTS, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        scaled = load_matrix(x, token, column, tokens, INPUTS).to(tl.float32) * factor[:, None]
        store_matrix(codes, token, column, tokens, INPUTS, scaled + ROUND - ROUND)
