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

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from onebit.nn.pure_kernels import Firing
from onebit.nn.triton_activations import input_codes
from onebit.nn.triton_moments import add_squares, new_factors, peak_of, square_sums, update_moments
from onebit.nn.triton_products import forward_product, input_gradient, scale_gradient, unpack
from onebit.nn.triton_tiles import grid_of, kronecker16, launch, load_matrix, load_numbers, pack_numbers
from onebit.optim.pure_deposit import CLIP, ENERGY_SHIFT, LARGEST_SQUARE, Factors
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

_PER_BYTE = {"int8": 1, "int4": 2, "none": 4}
_TILE = (4, 512)


def update_energy(g_OI: Tensor, factors: Factors) -> Tensor:
    """As `PureKernels.update_energy`."""
    energy = g_OI.new_zeros((), dtype=torch.float64)
    _add_energy(g_OI.contiguous(), _joined(factors), energy, 0)
    return energy


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
    number = seed | tensor << 32, step, first_row
    _deposit_updates(counters_OB, g_OI.contiguous(), _joined(factors), eta, (mean_square, 0, 1), counter, *number)


def deposit_whole(
    counters_OB: Tensor,
    moments: tuple[Tensor, Tensor],
    g_OI: Tensor,
    eta: float,
    counter: Counter,
    *,
    seed: int,
    tensor: int,
    step: Tensor,
) -> bool:
    """As `PureKernels.deposit_whole`: the same kernels, and little of what PyTorch does between them.

    A view takes Python as long as a launch does, so that there is one vector of sums and one of factors.
    """
    g_OI = g_OI.contiguous()
    (rows, cols), peak = g_OI.shape, peak_of(g_OI)
    sums = g_OI.new_zeros(rows + cols + 1, dtype=torch.float64)  # of rows, of columns, of all updates
    add_squares(g_OI, sums, peak, rows)
    factors = new_factors(moments, sums, peak, step, counts=True)
    _add_energy(g_OI, factors, sums, rows + cols)
    mean_square = sums, rows + cols, rows * cols
    _deposit_updates(counters_OB, g_OI, factors, eta, mean_square, counter, seed | tensor << 32, step, 0)
    return True


def fire(matrices: Sequence[Firing], counter: Counter, *, is_binary: bool) -> Tensor:
    """As `PureKernels.fire`, in one launch."""
    device = matrices[0][0].device
    moves_N = torch.zeros(len(matrices), dtype=torch.int64, device=device)
    places = tuple(
        (codes_OB.data_ptr(), counters_OB.data_ptr(), codes_OB.shape[0], cols, codes_OB.shape[1], counters_OB.shape[1])
        for codes_OB, counters_OB, cols in matrices
    )
    table, tiles, is_aligned = _table(places, device)
    constants = (counter.threshold, counter.remembers, is_binary, _PER_BYTE[counter.name])
    launch(_fire, (tiles, len(matrices), 1), (table, moves_N), (is_aligned, *_TILE, *constants))
    return moves_N


@lru_cache(maxsize=8)
def _table(places: tuple[tuple[int, ...], ...], device: torch.device) -> tuple[Tensor, int, bool]:
    """Places of matrices on the device, int64 [N, 6]; tiles of the largest; whether all of them allow wide reads.

    It is made anew only when a tensor has moved: in training, once.
    """
    tiles = max(math.prod(grid_of((rows, cols), _TILE)) for _, _, rows, cols, _, _ in places)
    is_aligned = all((codes | counters | width | other) % 16 == 0 for codes, counters, _, _, width, other in places)
    return torch.tensor(places, dtype=torch.int64, device=device), tiles, is_aligned


def _joined(factors: Factors) -> Tensor:
    """The vector of `new_factors`."""
    return torch.cat((factors.row_O1.flatten(), factors.column_I, factors.is_finite.float().view(1)))


def _add_energy(g_OI: Tensor, factors: Tensor, energy: Tensor, place: int) -> None:
    """Add to the number of `energy` that stands at this place."""
    numbers = (place, *g_OI.shape, *_TILE, LARGEST_SQUARE, ENERGY_SHIFT)
    launch(_update_energy, grid_of(g_OI.shape, _TILE), (g_OI, factors, energy), numbers)


def _deposit_updates(
    counters_OB: Tensor,
    g_OI: Tensor,
    factors: Tensor,
    eta: float,
    mean_square: tuple[Tensor, int, int],
    counter: Counter,
    key: int,
    step: Tensor,
    first_row: int,
) -> None:
    """mean_square: where a sum of squares stands, at which place, and of how many it is."""
    energy, place, count = mean_square
    constants = (counter.remembers, counter.threshold, CLIP, counter.bound, _PER_BYTE[counter.name])
    launch(
        _deposit,
        grid_of(g_OI.shape, _TILE),
        (counters_OB, g_OI, factors, energy, step),
        (key, first_row, place, count, *g_OI.shape, counters_OB.shape[1], *_TILE, *constants),
        floats=(eta,),
    )


@triton.jit
def _update(g, factors, row, column, rows, cols):
    """U before clipping, float32 [ROWS, COLUMNS], 0 where nothing is."""
    x = load_matrix(g, row, column, rows, cols).to(tl.float32)
    by_row = tl.load(factors + row, row < rows, other=0.0)
    by_column = tl.load(factors + rows + column, column < cols, other=0.0)
    return x * by_row[:, None] * by_column[None, :]


# Numbers that differ from matrix to matrix and must not each make a kernel of their own.
@triton.jit(do_not_specialize=["place"])
def _update_energy(
    g,
    factors,
    energy,
    place,
    rows,
    cols,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    LARGEST: tl.constexpr,
    SHIFT: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    u = _update(g, factors, row, column, rows, cols).to(tl.float64)
    squares = tl.minimum(u * u, LARGEST) + SHIFT - SHIFT
    tl.atomic_add(energy + place, tl.sum(squares), sem="relaxed")


@triton.jit(do_not_specialize=["key", "first_row", "place", "count"])
def _deposit(
    counters,
    g,
    factors,
    energy,
    step,
    eta,
    key,
    first_row,
    place,
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
    u = _update(g, factors, row, column + tl.arange(0, COLUMNS), rows, cols)
    size = tl.sqrt(tl.load(energy + place) / count)
    clipped = (1.0 / tl.maximum(size / CLIP_AT, 1.0)).to(tl.float32)
    if REMEMBERS:
        coefficient = -(eta * THRESHOLD) * clipped
    else:
        u = u * u * u
        coefficient = -(eta * eta / 4.0) * (clipped * clipped * clipped)
    added = tl.where(tl.load(factors + rows + cols) > 0.0, u * coefficient, 0.0)
    floor = tl.floor(added)
    random = kronecker16(key, tl.load(step), row + first_row, column, COLUMNS).to(tl.float32)
    floor += (random < (added - floor) * 65536.0 - 32768.5).to(tl.float32)
    pointers, inside, old = load_numbers(counters, row, column, rows, width, PER_BYTE, COLUMNS)
    new = tl.minimum(tl.maximum(floor + old.to(tl.float32), -BOUND), BOUND).to(tl.int8)
    tl.store(pointers, pack_numbers(new, PER_BYTE), inside)


@triton.jit
def _fire(
    table,
    moves,
    IS_ALIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    THRESHOLD: tl.constexpr,
    REMEMBERS: tl.constexpr,
    IS_BINARY: tl.constexpr,
    PER_BYTE: tl.constexpr,
):
    matrix, tile = tl.program_id(1), tl.program_id(0)
    place = table + matrix * 6
    codes = tl.load(place).to(tl.pointer_type(tl.uint8))
    counters = tl.load(place + 1).to(tl.pointer_type(tl.int8 if PER_BYTE == 1 else tl.uint8))
    rows, cols = tl.load(place + 2).to(tl.int32), tl.load(place + 3).to(tl.int32)
    code_width, counter_width = tl.load(place + 4).to(tl.int32), tl.load(place + 5).to(tl.int32)
    if IS_ALIGNED:
        codes, counters = tl.multiple_of(codes, 16), tl.multiple_of(counters, 16)
        code_width, counter_width = tl.multiple_of(code_width, 16), tl.multiple_of(counter_width, 16)
    across = tl.cdiv(cols, COLUMNS)
    row = tile // across * ROWS + tl.arange(0, ROWS)  # past the last one where another matrix is larger
    column = tile % across * COLUMNS
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
    tl.atomic_add(moves + matrix, tl.sum((up | down).to(tl.int32)).to(tl.int64), sem="relaxed")
