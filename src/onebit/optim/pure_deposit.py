"""What a gradient adds to the counters of a matrix of codes: normalised, clipped, rounded at random.

The rule needs no state of the size of the matrix. Each gradient is divided by an estimate of its size from one moment
per row and one per column, as Adafactor's (arXiv 1804.04235), so that a deposit depends on neither the scale of the
loss nor of the layer: eta is the share of the threshold that an update of size 1 deposits.

    R <- b R + (1 - b) mean_j G^2,   C <- b C + (1 - b) mean_i G^2,   b = 0.99
    U = G / sqrt(R_i / mean(R)) / sqrt(C_j / (1 - b^t)),   U <- U / max(1, rms(U) / clip)
    D = -eta threshold U

What shaped it: the integers that come out must not depend on the order of a sum, so that a matrix can be divided into
rows over processes, and a kernel can sum as it likes. So every sum over the matrix is exact: its terms are rounded to
multiples of one number that is small beside them and large enough for float64 to add them without error. Which number,
follows from the largest |G| of the whole matrix: a division into rows exchanges that, then the sums.

Shape suffixes: O outputs, I inputs; _1 broadcasts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from onebit.quant.counters import Counter, round_stochastically
from onebit.quant.philox import kronecker16

__all__ = [
    "CLIP",
    "ENERGY_SHIFT",
    "LARGEST_SQUARE",
    "MOMENT_DECAY",
    "MOMENT_FLOOR",
    "SMALLEST_MOMENT",
    "Factors",
    "deposit_counts",
    "deposit_rule",
    "eta_from_lr",
    "peak_of",
    "row_chunks",
    "square_shift",
    "square_sums",
    "update_energy",
    "update_moments",
]

MOMENT_DECAY = 0.99
CLIP = 1.0
# A row or column whose gradients are this much smaller than the mean's is treated as if it were at this size: below
# it, their squares are lost in the exact sums.
MOMENT_FLOOR = 2.0**-40
SMALLEST_MOMENT = 1e-60  # what is divided by where there was no gradient yet
ENERGY_SHIFT = 1.5 * 2.0**32  # rounds squares of updates, which are about 1, to multiples of 2^-20
LARGEST_SQUARE = 2.0**20
_CHUNK = {"cpu": 1 << 18}  # elements worked on at once: temporaries stay in the cache
_LARGE_CHUNK = 1 << 24


@dataclass(frozen=True)
class Factors:
    """What a gradient is multiplied with, float32: row_O1 [O, 1], column_I [I]; is_finite: bool [], of the gradient."""

    row_O1: Tensor
    column_I: Tensor
    is_finite: Tensor


def eta_from_lr(lr: float, mean_magnitude: float, *, is_binary: bool) -> float:
    """eta: AdamW's step lr over the distance from a level to its boundary.

    mean_magnitude: mean |W|, the scale of a level. Ternary boundaries lie half a level away: eta = 2 lr / mean |W|.
    """
    return (1.0 if is_binary else 2.0) * lr / mean_magnitude


def row_chunks(rows: int, cols: int, device: torch.device) -> Iterator[slice]:
    """Slices of rows that together are a matrix, each small enough for temporaries of several times its size."""
    step = max(1, _CHUNK.get(device.type, _LARGE_CHUNK) // cols)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def peak_of(g_OI: Tensor) -> Tensor:
    """The largest |G|, float32 [], NaN where there is one; |G| itself would be a second gradient."""
    least, most = g_OI.aminmax()
    return torch.maximum(most, -least).float()


def square_shift(peak: Tensor, count: int) -> Tensor:
    """What is added to a square and taken away again, so that up to `count` of them have an exact sum: float64 [].

    peak: [], of what is squared; each square becomes a multiple of 2^-52 of the largest possible sum.
    """
    _, exponent = torch.frexp(torch.where(torch.isfinite(peak), peak, 0.0).double().square())
    return torch.ldexp(torch.tensor(1.5, dtype=torch.float64, device=peak.device), exponent + _log2(count))


def square_sums(g_OI: Tensor, peak: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """(sums of G^2 over each row [O], over each column [I]), float64 and exact in any order.

    peak: largest |G| of the whole matrix, []; rows: of the whole matrix, of which g_OI may be a part.
    """
    cols = g_OI.shape[1]
    shift = square_shift(peak, max(rows, cols))
    row_O = g_OI.new_empty(g_OI.shape[0], dtype=torch.float64)
    column_I = g_OI.new_zeros(cols, dtype=torch.float64)
    for part in row_chunks(g_OI.shape[0], g_OI.shape[1], g_OI.device):
        squares = g_OI[part].double().square_().add_(shift).sub_(shift)
        row_O[part] = squares.sum(1)
        column_I += squares.sum(0)
    return row_O, column_I


def update_moments(moments: tuple[Tensor, Tensor], sums: tuple[Tensor, Tensor], peak: Tensor, step: Tensor) -> Factors:
    """Take in the sums of `square_sums`, of whole rows and columns; the factors that follow.

    moments: R [O] and C [I], float32, zeros at first, changed in place. step: how many deposits there were, this one
    included. A gradient with NaN, infinity or a number whose square overflows float32 leaves the moments as they were.
    """
    (row_moments_O, column_moments_I), (row_O, column_I) = moments, sums
    is_finite = torch.isfinite(peak.float().square())  # moments hold squares
    mean_row_O, mean_column_I = row_O / column_I.shape[0], column_I / row_O.shape[0]
    new_row_O = (row_moments_O.double() * MOMENT_DECAY + mean_row_O * (1.0 - MOMENT_DECAY)).float()
    new_column_I = (column_moments_I.double() * MOMENT_DECAY + mean_column_I * (1.0 - MOMENT_DECAY)).float()
    row_moments_O.copy_(torch.where(is_finite, new_row_O, row_moments_O))
    column_moments_I.copy_(torch.where(is_finite, new_column_I, column_moments_I))
    share_O = row_moments_O.double() / row_moments_O.double().mean().clamp_min(SMALLEST_MOMENT)
    size_I = column_moments_I.double() / (1.0 - MOMENT_DECAY ** step.double())
    size_I = torch.maximum(size_I, size_I.mean() * MOMENT_FLOOR).clamp_min(SMALLEST_MOMENT)
    return Factors(share_O.clamp_min(MOMENT_FLOOR).rsqrt().float().unsqueeze(1), size_I.rsqrt().float(), is_finite)


def update_energy(g_OI: Tensor, factors: Factors) -> Tensor:
    """Sum of U^2 before clipping over these rows, float64 [] and exact in any order."""
    energy = g_OI.new_zeros((), dtype=torch.float64)
    for part in row_chunks(g_OI.shape[0], g_OI.shape[1], g_OI.device):
        squares = _update(g_OI, factors, part).double().square_().clamp_max_(LARGEST_SQUARE)
        energy += squares.add_(ENERGY_SHIFT).sub_(ENERGY_SHIFT).sum()
    return energy


def deposit_rule(counter: Counter, eta: float, mean_square: Tensor) -> tuple[Tensor, int]:
    """(coefficient, power): a deposit is coefficient * |U|^(power - 1) U, with U before clipping; float32 [].

    eta: rounded to float32. mean_square: mean U^2 over the whole matrix, float64 [].
    A counter that forgets moves with the probability eta^2 |U|^3 / 4: driven by noise, a counter that remembers fires
    about eta^2 times a step, and the largest gradients are the least noisy.
    """
    clipped = (mean_square.sqrt() / CLIP).clamp_min(1.0).reciprocal().float()
    share = torch.tensor(eta, dtype=torch.float32)
    if counter.remembers:
        return -(share * counter.threshold) * clipped, 1
    return -(share.square() / 4.0) * clipped**3, 3


def deposit_counts(
    g_OI: Tensor,
    factors: Factors,
    coefficient: Tensor,
    power: int,
    *,
    seed: int,
    tensor: int,
    step: Tensor,
    part: slice,
    first_row: int = 0,
) -> Tensor:
    """What is added to the counters of the rows `part` of g_OI: integers as float32, not yet bounded.

    coefficient, power: of `deposit_rule`. first_row: of g_OI in the whole matrix.
    """
    u = _update(g_OI, factors, part)
    if power == 2:
        u = u.abs().mul_(u)
    elif power == 3:
        u = u.square().mul_(u)
    # One bad number in a gradient makes the whole of it worthless.
    deposit = torch.where(factors.is_finite, u.mul_(coefficient), 0.0)
    rows = range(first_row + part.start, first_row + part.stop)
    return round_stochastically(deposit, kronecker16(seed, tensor, step, rows, g_OI.shape[1], g_OI.device))


def _update(g_OI: Tensor, factors: Factors, part: slice) -> Tensor:
    return g_OI[part].float() * factors.row_O1[part] * factors.column_I


def _log2(count: int) -> int:
    return max(0, math.ceil(math.log2(count)))
