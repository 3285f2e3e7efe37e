"""The kernels of pure training in C, for CPU tensors: `engine/train`, called with the addresses of tensors.

Importing this raises EngineError where the engine's library is not built. Gradients are float32 or bfloat16; others go
through the reference.

Shape suffixes: T tokens, O outputs, I inputs, B bytes of a row, G groups of inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import byref

import torch
import torch.nn.functional as F
from torch import Tensor

from onebit.engine.training import (
    BFLOAT16,
    FLOAT32,
    INT8,
    Counters,
    Gradient,
    Moments,
    Normalisation,
    training_library,
)
from onebit.nn import torch_pure
from onebit.nn.pure_kernels import Firing
from onebit.nn.straight_through_linear import HAS_INT8_PRODUCT, int8_product
from onebit.nn.torch_pure import input_codes
from onebit.optim.pure_deposit import (
    CLIP,
    ENERGY_SHIFT,
    LARGEST_SQUARE,
    MOMENT_DECAY,
    MOMENT_FLOOR,
    SMALLEST_MOMENT,
    Factors,
    deposit_rule,
    square_shift,
)
from onebit.quant.counters import Counter

__all__ = [
    "deposit",
    "deposit_whole",
    "fire",
    "forward_product",
    "input_codes",
    "input_gradient",
    "instruction_set",
    "peak_of",
    "square_sums",
    "unpack",
    "update_energy",
    "update_moments",
]

_C = training_library()
_TYPES = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16, torch.int8: INT8}
_GRADIENTS = (torch.float32, torch.bfloat16)
_NORMALISATION = Normalisation(MOMENT_DECAY, MOMENT_FLOOR, SMALLEST_MOMENT, LARGEST_SQUARE, ENERGY_SHIFT, CLIP)
_BITS = {"int8": 8, "int4": 4, "none": 2}
_HAS_BFLOAT16_PRODUCT = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
_HAS_PRODUCT = bool(HAS_INT8_PRODUCT or _C.ob_train_has_product())  # of int8 codes, faster than one of floats
_BLOCK = 1 << 20  # weights that are unpacked at once: 4 MB, and as fast as all at once or faster


def instruction_set() -> str:
    """What the kernels were compiled for that run here: "avx512", "avx2" or "baseline"."""
    return bytes(_C.ob_train_isa()).decode()


def peak_of(g_OI: Tensor) -> Tensor:
    """As `PureKernels.peak_of`."""
    if g_OI.dtype not in _GRADIENTS:
        return torch_pure.peak_of(g_OI)
    g_OI = g_OI.contiguous()
    return torch.tensor(_C.ob_train_peak(byref(_gradient(g_OI))))


def square_sums(g_OI: Tensor, peak: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """As `PureKernels.square_sums`."""
    if g_OI.dtype not in _GRADIENTS:
        return torch_pure.square_sums(g_OI, peak, rows)
    g_OI = g_OI.contiguous()
    row_O = torch.empty(g_OI.shape[0], dtype=torch.float64)
    column_I = torch.empty(g_OI.shape[1], dtype=torch.float64)
    shift = square_shift(peak, max(rows, g_OI.shape[1])).item()
    if not _C.ob_train_square_sums(byref(_gradient(g_OI)), shift, row_O.data_ptr(), column_I.data_ptr()):
        raise MemoryError("no memory for the column sums of a gradient")
    return row_O, column_I


def update_moments(moments: tuple[Tensor, Tensor], sums: tuple[Tensor, Tensor], peak: Tensor, step: Tensor) -> Factors:
    """As `PureKernels.update_moments`."""
    row_O, column_I = (one.contiguous() for one in sums)
    rows, cols = row_O.shape[0], column_I.shape[0]
    row_O1, factors_I = torch.empty(rows, 1), torch.empty(cols)
    tensors = (*moments, row_O1, factors_I)
    arguments = Moments(*(one.data_ptr() for one in tensors), rows, cols)
    is_finite = _C.ob_train_update_moments(
        byref(_NORMALISATION), peak.item(), _settled(step), row_O.data_ptr(), column_I.data_ptr(), byref(arguments)
    )
    torch.autograd.graph.increment_version(moments)
    return Factors(row_O1, factors_I, torch.tensor(bool(is_finite)))


def update_energy(g_OI: Tensor, factors: Factors) -> Tensor:
    """As `PureKernels.update_energy`."""
    if g_OI.dtype not in _GRADIENTS:
        return torch_pure.update_energy(g_OI, factors)
    g_OI, row_O1, column_I = g_OI.contiguous(), factors.row_O1.contiguous(), factors.column_I.contiguous()
    energy = _C.ob_train_update_energy(
        byref(_gradient(g_OI)), row_O1.data_ptr(), column_I.data_ptr(), LARGEST_SQUARE, ENERGY_SHIFT
    )
    return torch.tensor(energy, dtype=torch.float64)


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
    if g_OI.dtype not in _GRADIENTS or not counters_OB.is_contiguous():
        torch_pure.deposit(
            counters_OB, g_OI, factors, eta, mean_square, counter,
            seed=seed, tensor=tensor, step=step, first_row=first_row,
        )  # fmt: skip
        return
    if not factors.is_finite.item():
        return
    coefficient, power = deposit_rule(counter, eta, mean_square)
    g_OI, row_O1, column_I = g_OI.contiguous(), factors.row_O1.contiguous(), factors.column_I.contiguous()
    _C.ob_train_deposit(
        byref(_gradient(g_OI)),
        byref(_counters(counters_OB, counter)),
        row_O1.data_ptr(),
        column_I.data_ptr(),
        coefficient.item(),
        power,
        seed,
        tensor,
        step.item(),
        first_row,
    )
    torch.autograd.graph.increment_version(counters_OB)


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
    """As `PureKernels.deposit_whole`: what takes PyTorch fifty operations, each longer than a small matrix's sums."""
    if g_OI.dtype not in _GRADIENTS or not counters_OB.is_contiguous():
        return False
    g_OI, step = g_OI.contiguous(), step.add_(1)
    done = _C.ob_train_deposit_whole(
        byref(_gradient(g_OI)),
        byref(_counters(counters_OB, counter)),
        byref(_NORMALISATION),
        moments[0].data_ptr(),
        moments[1].data_ptr(),
        _settled(step),
        eta,
        not counter.remembers,
        seed,
        tensor,
        step.item(),
    )
    if not done:
        raise MemoryError("no memory for the sums of a gradient's rows and columns")
    torch.autograd.graph.increment_version((counters_OB, *moments))
    return True


def fire(matrices: Sequence[Firing], counter: Counter, *, is_binary: bool) -> Tensor:
    """As `PureKernels.fire`."""
    return torch.tensor([_fire(*matrix, counter, is_binary) for matrix in matrices])


def _fire(codes_OB: Tensor, counters_OB: Tensor, cols: int, counter: Counter, is_binary: bool) -> int:
    if not (codes_OB.is_contiguous() and counters_OB.is_contiguous()):
        return int(torch_pure.fire([(codes_OB, counters_OB, cols)], counter, is_binary=is_binary))
    moves: int = _C.ob_train_fire(
        codes_OB.data_ptr(),
        byref(_counters(counters_OB, counter)),
        codes_OB.shape[0],
        cols,
        is_binary,
        not counter.remembers,
        torch.get_num_threads(),
    )
    # autograd must notice a change between a forward and its backward pass
    torch.autograd.graph.increment_version((codes_OB, counters_OB))
    return moves


def unpack(codes_OB: Tensor, cols: int, dtype: torch.dtype, *, is_binary: bool) -> Tensor:
    """As `PureKernels.unpack`."""
    if dtype not in _TYPES:
        return torch_pure.unpack(codes_OB, cols, dtype, is_binary=is_binary)
    codes_OB = codes_OB.contiguous()
    w_OI = torch.empty(codes_OB.shape[0], cols, dtype=dtype)
    _C.ob_train_unpack(
        codes_OB.data_ptr(),
        codes_OB.shape[0],
        cols,
        is_binary,
        _TYPES[dtype],
        w_OI.data_ptr(),
        torch.get_num_threads(),
    )
    return w_OI


def forward_product(x_TI: Tensor, codes_OB: Tensor, dtype: torch.dtype, *, is_binary: bool) -> Tensor:
    """As `PureKernels.forward_product`; of int8 codes exact, however large the sums, and rounded once."""
    cols, rows = x_TI.shape[-1], codes_OB.shape[0]
    if x_TI.dtype != torch.int8 or not _HAS_PRODUCT:
        return F.linear(x_TI.to(dtype), unpack(codes_OB, cols, dtype, is_binary=is_binary))
    x = x_TI.reshape(-1, cols).contiguous()
    if HAS_INT8_PRODUCT:
        y = int8_product(x, unpack(codes_OB, cols, torch.int8, is_binary=is_binary))
    else:
        y = _product(x, codes_OB.contiguous(), is_binary)
    return y.to(dtype).view(*x_TI.shape[:-1], rows)


def input_gradient(g_TO: Tensor, codes_OB: Tensor, cols: int, *, is_binary: bool) -> Tensor:
    """As `PureKernels.input_gradient`; in float32 without a bfloat16 product in hardware, 20 to 60 times faster."""
    if g_TO.dtype not in _GRADIENTS or (g_TO.dtype == torch.bfloat16 and _HAS_BFLOAT16_PRODUCT):
        return g_TO @ unpack(codes_OB, cols, g_TO.dtype, is_binary=is_binary)
    g = g_TO.reshape(-1, g_TO.shape[-1])
    sum_TI = g.new_zeros(g.shape[0], cols, dtype=torch.float32)
    rows = max(1, _BLOCK // cols)
    for codes, part in zip(codes_OB.split(rows), g.split(rows, dim=1), strict=True):
        sum_TI.addmm_(part.float(), unpack(codes, cols, torch.float32, is_binary=is_binary))
    return sum_TI.to(g_TO.dtype).view(*g_TO.shape[:-1], cols)


def scale_gradient(g_OI: Tensor, codes_OB: Tensor, scale: Tensor, group_size: int, *, is_binary: bool) -> Tensor:
    """As `PureKernels.scale_gradient`."""
    if g_OI.dtype not in _GRADIENTS:
        return torch_pure.scale_gradient(g_OI, codes_OB, scale, group_size, is_binary=is_binary)
    g_OI, codes_OB = g_OI.contiguous(), codes_OB.contiguous()
    group = group_size or g_OI.shape[1]
    sums_OG = torch.empty(g_OI.shape[0], -(-g_OI.shape[1] // group))
    _C.ob_train_code_sums(byref(_gradient(g_OI)), codes_OB.data_ptr(), is_binary, group, sums_OG.data_ptr())
    return torch_pure.scale_gradient_of(sums_OG, scale)


def _product(x_TI: Tensor, codes_OB: Tensor, is_binary: bool) -> Tensor:
    y_TO = torch.empty(x_TI.shape[0], codes_OB.shape[0])
    made = _C.ob_train_product(
        x_TI.data_ptr(),
        *x_TI.shape,
        codes_OB.data_ptr(),
        codes_OB.shape[0],
        is_binary,
        y_TO.data_ptr(),
        torch.get_num_threads(),
    )
    if not made:
        raise MemoryError("no memory for the digits of a matrix of codes")
    return y_TO


def _settled(step: Tensor) -> float:
    """The share of a mean that moments have after so many deposits."""
    return 1.0 - MOMENT_DECAY ** int(step.item())


def _gradient(g_OI: Tensor) -> Gradient:
    return Gradient(g_OI.data_ptr(), _TYPES[g_OI.dtype], *g_OI.shape, torch.get_num_threads())


def _counters(counters_OB: Tensor, counter: Counter) -> Counters:
    return Counters(counters_OB.data_ptr(), _BITS[counter.name], counter.threshold, counter.bound)
