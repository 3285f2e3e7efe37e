"""The moments of a gradient in Triton: `pure_deposit`'s, in three launches, of which none waits for a number.

Sums of squares are exact, as the reference's are. The means of moments are float64, added up in an order of their own:
factors, float32, are the reference's but for the rare one whose rounding hangs on float64's last place.

Shape suffixes: O outputs, I inputs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from onebit.nn.triton_tiles import grid_of, launch, load_matrix
from onebit.optim.pure_deposit import MOMENT_DECAY, MOMENT_FLOOR, SMALLEST_MOMENT, Factors

__all__ = ["add_squares", "new_factors", "peak_of", "square_sums", "update_moments"]

_SQUARES = (32, 128)  # rows, columns of a tile of float64: 32 numbers, 64 registers, a thread
_VECTOR = 1024  # numbers of a vector that the one program of `_update_moments` takes at once


def peak_of(g_OI: Tensor) -> Tensor:
    """As `PureKernels.peak_of`."""
    peak: Tensor = torch.linalg.vector_norm(g_OI, torch.inf, dtype=torch.float32)
    return peak


def square_sums(g_OI: Tensor, peak: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """As `PureKernels.square_sums`."""
    sums = g_OI.new_zeros(sum(g_OI.shape), dtype=torch.float64)
    add_squares(g_OI.contiguous(), sums, peak, rows)
    row_O, column_I = sums.split_with_sizes(g_OI.shape)
    return row_O, column_I


def add_squares(g_OI: Tensor, sums: Tensor, peak: Tensor, rows: int) -> None:
    """`square_sums` of a contiguous g_OI, added to those of rows, then of columns, in one vector."""
    bits = (max(rows, g_OI.shape[1]) - 1).bit_length()  # log2 of the next power of two
    numbers = (bits, *g_OI.shape, *_SQUARES)
    launch(_square_sums, grid_of(g_OI.shape, _SQUARES), (g_OI, sums, peak), numbers)


def update_moments(moments: tuple[Tensor, Tensor], sums: tuple[Tensor, Tensor], peak: Tensor, step: Tensor) -> Factors:
    """As `PureKernels.update_moments`."""
    by_row_O, by_column_I, is_finite = new_factors(moments, torch.cat(sums), peak, step).split_with_sizes(
        (moments[0].shape[0], moments[1].shape[0], 1)
    )
    return Factors(by_row_O.unsqueeze(1), by_column_I, is_finite.squeeze(0) > 0.0)


def new_factors(
    moments: tuple[Tensor, Tensor], sums: Tensor, peak: Tensor, step: Tensor, *, counts: bool = False
) -> Tensor:
    """`update_moments` with factors in one vector: of rows, of columns, and 1 for a finite gradient or 0.

    sums: those of rows, then of columns; more may follow. counts: step does not have this deposit yet, and gets it.
    """
    rows, cols = moments[0].shape[0], moments[1].shape[0]
    factors = peak.new_empty(rows + cols + 1)
    launch(
        _update_moments,
        (1, 1, 1),
        (*moments, sums, peak, step, factors),
        (rows, cols, counts, _VECTOR, MOMENT_DECAY, MOMENT_FLOOR, SMALLEST_MOMENT),
        num_warps=8,
    )
    return factors


@triton.jit
def _square_shift(peak, bits):
    """`pure_deposit.square_shift` of float32 [] and log2 of the count: 1.5 times a power of two, made of its bits."""
    INFINITY: tl.constexpr = float("inf")
    squared = tl.where(tl.abs(peak) < INFINITY, peak, 0.0).to(tl.float64)
    squared = squared * squared
    field = (squared.to(tl.int64, bitcast=True) >> 52) & 0x7FF
    exponent = tl.where(squared > 0, field - 1022, 0)  # frexp's
    return (((exponent + bits + 1023) << 52) | (1 << 51)).to(tl.float64, bitcast=True)


@triton.jit(do_not_specialize=["bits"])
def _square_sums(g, sums, peak, bits, rows, cols, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    x = load_matrix(g, row, column, rows, cols).to(tl.float64)
    by = _square_shift(tl.load(peak), bits)
    squares = x * x + by - by  # of a number that is not there: by - by, 0
    tl.atomic_add(sums + row, tl.sum(squares, 1), row < rows, sem="relaxed")
    tl.atomic_add(sums + rows + column, tl.sum(squares, 0), column < cols, sem="relaxed")


@triton.jit
def _move(moments, sums, COUNT: tl.constexpr, at, SIZE: tl.constexpr, is_finite, DECAY: tl.constexpr):
    """New moments [BLOCK], stored, as float64; 0 where nothing is."""
    before = tl.load(moments + at, at < SIZE, other=0.0)
    mean = tl.load(sums + at, at < SIZE, other=0.0) / COUNT
    after = (before.to(tl.float64) * DECAY + mean * (1.0 - DECAY)).to(tl.float32)
    after = tl.where(is_finite, after, before)
    tl.store(moments + at, after, at < SIZE)
    return after.to(tl.float64)


@triton.jit
def _power(base: tl.constexpr, exponent):
    """base^exponent, float64 []; exponent: int64 [] in [0, 2^40)."""
    power = tl.full((), 1.0, tl.float64)
    square = tl.full((), base, tl.float64)
    for _ in range(40):
        power = tl.where(exponent & 1 == 1, power * square, power)
        square = square * square
        exponent = exponent >> 1
    return power


@triton.jit
def _update_moments(
    row,
    column,
    sums,
    peak,
    step,
    factors,
    ROWS: tl.constexpr,  # as constants: Triton's interpreter cannot count to another number (3.6, with numpy 2.4)
    COLS: tl.constexpr,
    COUNTS: tl.constexpr,
    BLOCK: tl.constexpr,
    DECAY: tl.constexpr,
    FLOOR: tl.constexpr,
    SMALLEST: tl.constexpr,
):
    largest = tl.load(peak)
    INFINITY: tl.constexpr = float("inf")
    is_finite = largest * largest < INFINITY
    tl.store(factors + ROWS + COLS, is_finite.to(tl.float32))
    deposits = tl.load(step)
    if COUNTS:
        deposits += 1
        tl.store(step, deposits)
    settled = 1.0 - _power(DECAY, deposits)
    row_total = tl.zeros([BLOCK], tl.float64)
    for first in range(0, ROWS, BLOCK):
        row_total += _move(row, sums, COLS, first + tl.arange(0, BLOCK), ROWS, is_finite, DECAY)
    column_total = tl.zeros([BLOCK], tl.float64)
    for first in range(0, COLS, BLOCK):
        moments = _move(column, sums + ROWS, ROWS, first + tl.arange(0, BLOCK), COLS, is_finite, DECAY)
        column_total += moments / settled
    row_mean = tl.maximum(tl.sum(row_total) / ROWS, SMALLEST)
    column_floor = tl.maximum(tl.sum(column_total) / COLS * FLOOR, SMALLEST)
    tl.debug_barrier()  # what follows reads what other threads may have stored
    for first in range(0, ROWS, BLOCK):
        at = first + tl.arange(0, BLOCK)
        share = tl.load(row + at, at < ROWS, other=0.0).to(tl.float64) / row_mean
        tl.store(factors + at, (1.0 / tl.sqrt(tl.maximum(share, FLOOR))).to(tl.float32), at < ROWS)
    for first in range(0, COLS, BLOCK):
        at = first + tl.arange(0, BLOCK)
        size = tl.load(column + at, at < COLS, other=0.0).to(tl.float64) / settled
        tl.store(factors + ROWS + at, (1.0 / tl.sqrt(tl.maximum(size, column_floor))).to(tl.float32), at < COLS)
