"""Products with packed codes in Triton, and the codes as numbers.

For few tokens a product waits for the weights, of which packed ones are an eighth of the bytes: a kernel multiplies
them by int8 inputs as they come out of their bytes, and adds up in int32. For many it is bound by arithmetic, where the
vendor's product of 16-bit floats is 1.8 to 2.5 times as fast as Triton's of codes (H100, 4096 tokens): the codes are
unpacked, and PyTorch multiplies. Both are exact: 16-bit floats hold integers up to 256, float32 their sums. Wider
floats would be rounded by a GPU's matrix units, so that int8 stays int8 there, however many tokens there are.

Shape suffixes: T tokens, O outputs, I inputs, B bytes of a row, G groups of inputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from onebit.nn.triton_tiles import grid_of, launch, load_matrix, load_numbers, store_matrix

__all__ = ["forward_product", "input_gradient", "scale_gradient", "unpack"]

_TILE = (4, 512)  # of kernels that wait for memory, as in `triton_pure`
# Tokens, outputs and terms at a time of a program of the product, for few tokens and for many: the fastest of 12 shapes
# on an H100. How many terms there are is a constant of the kernel: a model has few widths, and Triton's interpreter
# cannot count to another number (3.6, with numpy 2.4).
_FEW, _MANY, _TERMS = (16, 64), (128, 128), 128
_FEW_TOKENS = 64


def unpack(codes_OB: Tensor, cols: int, dtype: torch.dtype, *, is_binary: bool) -> Tensor:
    """As `PureKernels.unpack`."""
    numbers_OI = codes_OB.new_empty(codes_OB.shape[0], cols, dtype=dtype)
    constants = (*numbers_OI.shape, codes_OB.shape[1], *_TILE, _per_byte(is_binary))
    launch(_unpack, grid_of(numbers_OI.shape, _TILE), (codes_OB, numbers_OI), constants)
    return numbers_OI


def forward_product(x_TI: Tensor, codes_OB: Tensor, dtype: torch.dtype, *, is_binary: bool) -> Tensor:
    """As `PureKernels.forward_product`."""
    cols, rows = x_TI.shape[-1], codes_OB.shape[0]
    tokens = x_TI.numel() // cols
    if x_TI.dtype != torch.int8 or (dtype.itemsize == 2 and tokens > _FEW_TOKENS):
        return F.linear(x_TI.to(dtype), unpack(codes_OB, cols, dtype, is_binary=is_binary))
    y_TO = x_TI.new_empty(*x_TI.shape[:-1], rows, dtype=dtype)
    tile = _FEW if tokens <= _FEW_TOKENS else _MANY
    # Neighbours in time share their rows of x, the larger side; the codes, an eighth of its bytes, stay in the cache.
    grid = grid_of((rows, tokens), tile[::-1])
    numbers = (tokens, rows, codes_OB.shape[1], cols, *tile, _TERMS, _per_byte(is_binary))
    launch(_forward_product, grid, (x_TI.contiguous(), codes_OB, y_TO), numbers, num_warps=8)
    return y_TO


def input_gradient(g_TO: Tensor, codes_OB: Tensor, cols: int, *, is_binary: bool) -> Tensor:
    """As `PureKernels.input_gradient`."""
    return g_TO @ unpack(codes_OB, cols, g_TO.dtype, is_binary=is_binary)


def scale_gradient(g_OI: Tensor, codes_OB: Tensor, scale: Tensor, group_size: int, *, is_binary: bool) -> Tensor:
    """As `PureKernels.scale_gradient`."""
    rows, cols = g_OI.shape
    size = group_size or cols
    sums_OG = g_OI.new_empty(rows, -(-cols // size), dtype=torch.float32)
    columns = min(_TILE[1], max(8, 1 << (size - 1).bit_length()))
    tile = _TILE[0] * _TILE[1] // columns, columns
    launch(
        _scale_gradient,
        grid_of(sums_OG.shape, (tile[0], 1)),
        (g_OI.contiguous(), codes_OB, scale, sums_OG),
        (rows, cols, codes_OB.shape[1], scale.ndim, size, *tile, _per_byte(is_binary)),
    )
    return sums_OG.sum(1) if scale.ndim == 2 else sums_OG.squeeze(1) if scale.ndim else sums_OG.sum()


def _per_byte(is_binary: bool) -> int:
    return 8 if is_binary else 4


@triton.jit
def _unpack(codes, out, rows, cols, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PER_BYTE: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    first = tl.program_id(1) * COLUMNS
    column = first + tl.arange(0, COLUMNS)
    _, _, numbers = load_numbers(codes, row, first, rows, width, PER_BYTE, COLUMNS)
    store_matrix(out, row, column, rows, cols, numbers.to(tl.float32))


@triton.jit
def _forward_product(
    x,
    codes,
    y,
    tokens,
    outputs,
    width,
    INPUTS: tl.constexpr,
    TOKENS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    TERMS: tl.constexpr,
    PER_BYTE: tl.constexpr,
):
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    sums = tl.zeros([TOKENS, OUTPUTS], tl.int32)
    for first in range(0, INPUTS, TERMS):
        x_part = load_matrix(x, token, first + tl.arange(0, TERMS), tokens, INPUTS)
        _, _, numbers = load_numbers(codes, output, first, outputs, width, PER_BYTE, TERMS)
        sums = tl.dot(x_part, tl.trans(numbers), sums, out_dtype=tl.int32)
    store_matrix(y, token, output, tokens, outputs, sums.to(tl.float32))


@triton.jit
def _scale_gradient(
    g,
    codes,
    scale,
    sums,
    rows,
    cols,
    width,
    SCALE_NDIM: tl.constexpr,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PER_BYTE: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    start = tl.program_id(1) * SIZE
    end = tl.minimum(start + SIZE, cols)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, SIZE, COLUMNS):
        column = start + first + tl.arange(0, COLUMNS)
        inside = (row < rows)[:, None] & (column < end)[None, :]
        g_part = tl.load(g + row[:, None].to(tl.int64) * cols + column[None, :], inside, other=0.0).to(tl.float32)
        _, _, numbers = load_numbers(codes, row, start + first, rows, width, PER_BYTE, COLUMNS)
        total += g_part * numbers.to(tl.float32)
    group = row * tl.num_programs(1) + tl.program_id(1)
    size = tl.load(scale + (row * 0 if SCALE_NDIM == 0 else row if SCALE_NDIM == 1 else group), row < rows)
    tl.store(sums + group, tl.sum(total, 1) * size, row < rows)
