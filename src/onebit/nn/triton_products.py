"""Products with packed codes in Triton: bytes are unpacked in registers, and no matrix of numbers is written.

int8 inputs are multiplied as int8 and added up in int32, which is exact. 16-bit floats are multiplied by codes, which
such floats hold, and added up in float32. For wider floats, which a GPU's matrix units would round, the codes are
unpacked and PyTorch multiplies.

Shape suffixes: T tokens, O outputs, I inputs, B bytes of a row, G groups of inputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from onebit.nn.triton_tiles import launch, load_matrix, load_numbers, store_matrix

__all__ = ["code_sums", "forward_product", "input_gradient", "unpack"]

_TILE = (4, 512)  # of kernels that wait for memory, as in `triton_pure`
# A program of a product makes 128 x 128 sums, 64 registers for each of 256 threads, or fewer rows for fewer tokens, and
# takes 64 terms at a time. How many terms there are is a constant of the kernel: a model has few widths, and Triton's
# interpreter cannot count to another number (3.6, with numpy 2.4).
_OUTPUTS = 128
_TOKENS = (16, 128)
_TERMS = 64


def unpack(codes_OB: Tensor, cols: int, dtype: torch.dtype, *, is_binary: bool) -> Tensor:
    """As `PureKernels.unpack`."""
    numbers_OI = codes_OB.new_empty(codes_OB.shape[0], cols, dtype=dtype)
    grid = triton.cdiv(codes_OB.shape[0], _TILE[0]), triton.cdiv(cols, _TILE[1])
    launch(_unpack, grid, codes_OB, numbers_OI, *numbers_OI.shape, codes_OB.shape[1], *_TILE, _per_byte(is_binary))
    return numbers_OI


def forward_product(x_TI: Tensor, codes_OB: Tensor, dtype: torch.dtype, *, is_binary: bool) -> Tensor:
    """As `PureKernels.forward_product`."""
    if x_TI.dtype != torch.int8:
        x_TI = x_TI.to(dtype)
        if dtype.itemsize > 2:
            return F.linear(x_TI, unpack(codes_OB, x_TI.shape[-1], dtype, is_binary=is_binary))
    return _product(_forward_product, x_TI, codes_OB, codes_OB.shape[0], dtype, is_binary)


def input_gradient(g_TO: Tensor, codes_OB: Tensor, cols: int, *, is_binary: bool) -> Tensor:
    """As `PureKernels.input_gradient`."""
    if g_TO.dtype.itemsize > 2:
        return g_TO @ unpack(codes_OB, cols, g_TO.dtype, is_binary=is_binary)
    return _product(_input_gradient, g_TO, codes_OB, cols, g_TO.dtype, is_binary)


def code_sums(g_OI: Tensor, codes_OB: Tensor, group_size: int, *, is_binary: bool) -> Tensor:
    """As `PureKernels.code_sums`; group_size: a multiple of 8."""
    rows, cols = g_OI.shape
    size = group_size or cols
    sums_OG = g_OI.new_empty(rows, triton.cdiv(cols, size), dtype=torch.float32)
    columns = min(_TILE[1], max(8, triton.next_power_of_2(size)))
    tile = _TILE[0] * _TILE[1] // columns, columns
    launch(
        _code_sums,
        (triton.cdiv(rows, tile[0]), sums_OG.shape[1]),
        g_OI.contiguous(),
        codes_OB,
        sums_OG,
        rows,
        cols,
        codes_OB.shape[1],
        size,
        *tile,
        _per_byte(is_binary),
    )
    return sums_OG


def _per_byte(is_binary: bool) -> int:
    return 8 if is_binary else 4


def _product(kernel: object, x_TK: Tensor, codes_OB: Tensor, width: int, dtype: torch.dtype, is_binary: bool) -> Tensor:
    """[T, width] of a kernel that adds up over K, the last axis of x."""
    x_NK = x_TK.reshape(-1, x_TK.shape[-1]).contiguous()
    y_NO = x_NK.new_empty(x_NK.shape[0], width, dtype=dtype)
    tokens = min(max(triton.next_power_of_2(x_NK.shape[0]), _TOKENS[0]), _TOKENS[1])
    # Neighbours in time share their rows of x, the larger side; the codes, an eighth of its bytes, stay in the cache.
    grid = triton.cdiv(width, _OUTPUTS), triton.cdiv(x_NK.shape[0], tokens)
    arguments = (x_NK, codes_OB, y_NO, *y_NO.shape, codes_OB.shape[1], x_NK.shape[1])
    launch(kernel, grid, *arguments, tokens, _OUTPUTS, _TERMS, _per_byte(is_binary), num_warps=8)
    return y_NO.view(*x_TK.shape[:-1], width)


@triton.jit
def _unpack(codes, out, rows, cols, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PER_BYTE: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    first = tl.program_id(1) * COLUMNS
    column = first + tl.arange(0, COLUMNS)
    _, _, numbers = load_numbers(codes, row, first, rows, width, PER_BYTE, COLUMNS)
    store_matrix(out, row, column, rows, cols, numbers.to(tl.float32))


@triton.jit
def _cast(numbers, kind: tl.constexpr):
    return numbers if kind == tl.int8 else numbers.to(tl.float32).to(kind)


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
    kind: tl.constexpr = x.dtype.element_ty
    sum_kind: tl.constexpr = tl.int32 if kind == tl.int8 else tl.float32
    sums = tl.zeros([TOKENS, OUTPUTS], sum_kind)
    for first in range(0, INPUTS, TERMS):
        x_part = load_matrix(x, token, first + tl.arange(0, TERMS), tokens, INPUTS)
        _, _, numbers = load_numbers(codes, output, first, outputs, width, PER_BYTE, TERMS)
        sums = tl.dot(x_part, tl.trans(_cast(numbers, kind)), sums, out_dtype=sum_kind)
    store_matrix(y, token, output, tokens, outputs, sums.to(tl.float32))


@triton.jit
def _input_gradient(
    g,
    codes,
    gradient,
    tokens,
    inputs,
    width,
    OUTPUTS: tl.constexpr,
    TOKENS: tl.constexpr,
    INPUTS: tl.constexpr,
    TERMS: tl.constexpr,
    PER_BYTE: tl.constexpr,
):
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    first_input = tl.program_id(0) * INPUTS
    kind: tl.constexpr = g.dtype.element_ty
    sums = tl.zeros([TOKENS, INPUTS], tl.float32)
    for first in range(0, OUTPUTS, TERMS):
        output = first + tl.arange(0, TERMS)
        g_part = load_matrix(g, token, output, tokens, OUTPUTS)
        _, _, numbers = load_numbers(codes, output, first_input, OUTPUTS, width, PER_BYTE, INPUTS)
        sums = tl.dot(g_part, _cast(numbers, kind), sums)
    store_matrix(gradient, token, first_input + tl.arange(0, INPUTS), tokens, inputs, sums)


@triton.jit
def _code_sums(
    g,
    codes,
    sums,
    rows,
    cols,
    width,
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
    tl.store(sums + row * tl.num_programs(1) + tl.program_id(1), tl.sum(total, 1), row < rows)
