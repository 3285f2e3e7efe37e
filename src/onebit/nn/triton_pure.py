"""The kernels of pure training in Triton, for CUDA tensors: `PureKernels`, held to `torch_pure`.

Where the reference's integers and sums are exact, so are these, bit for bit: squares of floats fit float64 without
rounding, their sums are of multiples of one number and so the same in any order, atomic additions included, and the
float32 arithmetic of a deposit is the reference's operation by operation (`triton_tiles.launch` forbids fusing them).
A deposit reads the gradient once and reads and writes the counters once.

A GPU does these matrices faster than Python asks for them. So what PyTorch would do in dozens of small operations on
vectors and scalars is part of a kernel here, and nothing waits for a number from the GPU.

Block sizes are fixed: these kernels wait for memory, and a tile of 2048 to 4096 numbers for 128 threads gives each
thread loads of 16 bytes and enough of them at once. Moments are in `triton_moments`, products in `triton_products`,
inputs in `triton_activations`.

Shape suffixes: O outputs, I inputs, B bytes of a row.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from onebit.nn.triton_activations import input_codes
from onebit.nn.triton_moments import add_squares, peak_of, square_sums, update_moments
from onebit.nn.triton_products import code_sums, forward_product, input_gradient, unpack
from onebit.nn.triton_tiles import grid_of, kronecker16, launch, load_matrix, load_numbers, pack_numbers
from onebit.optim.pure_deposit import CLIP, ENERGY_SHIFT, LARGEST_SQUARE, Factors
from onebit.quant.counters import Counter

__all__ = [
    "code_sums",
    "deposit",
    "deposit_whole",
    "fire",
    "forward_product",
    "input_codes",
    "input_gradient",
    "peak_of",
    "square_sums",
    "unpack",
    "update_energy",
    "update_moments",
]

_PER_BYTE = {"int8": 1, "int4": 2, "none": 4}
_TILE = (4, 512)


def update_energy(g_OI: Tensor, factors: Factors) -> Tensor:
    """As `PureKernels.update_energy`."""
    energy = g_OI.new_zeros((), dtype=torch.float64)
    _add_energy(g_OI.contiguous(), factors, energy)
    return energy


def deposit(
    counters_OB: Tensor,
    g_OI: Tensor,
    factors: Factors,
    eta: Tensor,
    mean_square: Tensor,
    counter: Counter,
    *,
    seed: int,
    tensor: int,
    step: Tensor,
    first_row: int = 0,
) -> None:
    """As `PureKernels.deposit`."""
    number = seed | tensor << 32, step, first_row
    _deposit_updates(counters_OB, g_OI.contiguous(), factors, eta, (mean_square, 1), counter, *number)


def deposit_whole(
    counters_OB: Tensor,
    moments: tuple[Tensor, Tensor],
    g_OI: Tensor,
    eta: Tensor,
    counter: Counter,
    *,
    seed: int,
    tensor: int,
    step: Tensor,
) -> bool:
    """As `PureKernels.deposit_whole`: the same kernels, and half of what PyTorch does between them."""
    g_OI = g_OI.contiguous()
    (rows, cols), peak = g_OI.shape, peak_of(g_OI)
    totals = g_OI.new_zeros(rows + cols + 1, dtype=torch.float64)  # of rows, of columns, of all updates
    add_squares(g_OI, totals, peak, rows)
    row_O, column_I, energy = totals.split_with_sizes((rows, cols, 1))
    factors = update_moments(moments, (row_O, column_I), peak, step)
    _add_energy(g_OI, factors, energy)
    mean_square = energy, rows * cols
    _deposit_updates(counters_OB, g_OI, factors, eta, mean_square, counter, seed | tensor << 32, step, 0)
    return True


def fire(codes_OB: Tensor, counters_OB: Tensor, counter: Counter, cols: int, *, is_binary: bool) -> Tensor:
    """As `PureKernels.fire`."""
    moves = torch.zeros((), dtype=torch.int64, device=codes_OB.device)
    rows = codes_OB.shape[0]
    constants = (counter.threshold, counter.remembers, is_binary, _PER_BYTE[counter.name])
    launch(
        _fire,
        grid_of((rows, cols), _TILE),
        (codes_OB, counters_OB, moves),
        (rows, cols, codes_OB.shape[1], counters_OB.shape[1], *_TILE, *constants),
    )
    return moves


def _add_energy(g_OI: Tensor, factors: Factors, energy: Tensor) -> None:
    tensors = (g_OI, factors.row_O1, factors.column_I, energy)
    numbers = (*g_OI.shape, *_TILE, LARGEST_SQUARE, ENERGY_SHIFT)
    launch(_update_energy, grid_of(g_OI.shape, _TILE), tensors, numbers)


def _deposit_updates(
    counters_OB: Tensor,
    g_OI: Tensor,
    factors: Factors,
    eta: Tensor,
    mean_square: tuple[Tensor, int],
    counter: Counter,
    key: int,
    step: Tensor,
    first_row: int,
) -> None:
    """mean_square: a sum of squares, and of how many."""
    by = (factors.row_O1, factors.column_I, factors.is_finite)
    energy, count = mean_square
    constants = (counter.remembers, counter.threshold, CLIP, counter.bound, _PER_BYTE[counter.name])
    launch(
        _deposit,
        grid_of(g_OI.shape, _TILE),
        (counters_OB, g_OI, *by, eta, energy, step),
        (key, first_row, count, *g_OI.shape, counters_OB.shape[1], *_TILE, *constants),
    )


@triton.jit
def _update(g, row_factors, column_factors, row, column, rows, cols):
    """U before clipping, float32 [ROWS, COLUMNS], 0 where nothing is."""
    x = load_matrix(g, row, column, rows, cols).to(tl.float32)
    by_row = tl.load(row_factors + row, row < rows, other=0.0)
    by_column = tl.load(column_factors + column, column < cols, other=0.0)
    return x * by_row[:, None] * by_column[None, :]


@triton.jit
def _update_energy(
    g,
    row_factors,
    column_factors,
    energy,
    rows,
    cols,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    LARGEST: tl.constexpr,
    SHIFT: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    u = _update(g, row_factors, column_factors, row, column, rows, cols).to(tl.float64)
    squares = tl.minimum(u * u, LARGEST) + SHIFT - SHIFT
    tl.atomic_add(energy, tl.sum(squares), sem="relaxed")


# Numbers that differ from matrix to matrix and must not each make a kernel of their own.
@triton.jit(do_not_specialize=["key", "first_row", "count"])
def _deposit(
    counters,
    g,
    row_factors,
    column_factors,
    is_finite,
    eta,
    energy,
    step,
    key,
    first_row,
    count,
    rows,
    cols,
    width,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    REMEMBERS: tl.constexpr,
    THRESHOLD: tl.constexpr,
    CLIP_AT: tl.constexpr,
    BOUND: tl.constexpr,
    PER_BYTE: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS
    u = _update(g, row_factors, column_factors, row, column + tl.arange(0, COLUMNS), rows, cols)
    share = tl.load(eta)
    size = tl.sqrt(tl.load(energy) / count)
    clipped = (1.0 / tl.maximum(size / CLIP_AT, 1.0)).to(tl.float32)
    if REMEMBERS:
        coefficient = -(share * THRESHOLD) * clipped
    else:
        u = u * u * u
        coefficient = -(share * share / 4.0) * (clipped * clipped * clipped)
    added = tl.where(tl.load(is_finite), u * coefficient, 0.0)
    floor = tl.floor(added)
    random = kronecker16(key, tl.load(step), row + first_row, column, COLUMNS).to(tl.float32)
    floor += (random < (added - floor) * 65536.0 - 32768.5).to(tl.float32)
    pointers, inside, old = load_numbers(counters, row, column, rows, width, PER_BYTE, COLUMNS)
    new = tl.minimum(tl.maximum(floor + old.to(tl.float32), -BOUND), BOUND).to(tl.int8)
    tl.store(pointers, pack_numbers(new, PER_BYTE), inside)


@triton.jit
def _fire(
    codes,
    counters,
    moves,
    rows,
    cols,
    code_width,
    counter_width,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    THRESHOLD: tl.constexpr,
    REMEMBERS: tl.constexpr,
    IS_BINARY: tl.constexpr,
    PER_BYTE: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS
    CODES: tl.constexpr = 8 if IS_BINARY else 4
    STEP: tl.constexpr = 2 if IS_BINARY else 1
    code_pointers, code_inside, code = load_numbers(codes, row, column, rows, code_width, CODES, COLUMNS)
    pointers, inside, count = load_numbers(counters, row, column, rows, counter_width, PER_BYTE, COLUMNS)
    is_there = (row < rows)[:, None] & (column + tl.arange(0, COLUMNS) < cols)[None, :]
    up = is_there & (count >= THRESHOLD) & (code < 1)
    down = is_there & (count <= -THRESHOLD) & (code > -1)
    code = tl.where(up, code + STEP, tl.where(down, code - STEP, code))
    count = tl.where(up | down, 0, count) if REMEMBERS else tl.zeros_like(count)
    tl.store(code_pointers, pack_numbers(code, CODES), code_inside)
    tl.store(pointers, pack_numbers(count, PER_BYTE), inside)
    tl.atomic_add(moves, tl.sum((up | down).to(tl.int32)).to(tl.int64), sem="relaxed")
