"""Which kernels pure training runs on: plain PyTorch, C, or Triton. One choice for each device, logged with its reason.

Kernels are modules that offer the functions of `PureKernels`. They work on packed storage, in place, and agree with
`torch_pure`, the reference: sums are exact and the random numbers are a function of their place, so that the integers
of a deposit are the same bit for bit, whoever computes them.

=========  ==================  =======================================================================
kernels    module              taken
=========  ==================  =======================================================================
torch      `torch_pure`        wherever no other is
c          `c_pure`            for CPU tensors, when the engine's library is built
triton     `triton_pure`       for CUDA tensors, when triton is installed
=========  ==================  =======================================================================

ONEBIT_PURE_KERNELS=torch, c or triton takes one of them for every device. It is read at the first use of a device.

Shape suffixes: T tokens, O outputs, I inputs, B bytes of a row, G groups of inputs.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Sequence
from functools import cache
from typing import Protocol, cast

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from onebit.errors import ConfigError, OnebitError
from onebit.optim.pure_deposit import Factors
from onebit.quant.counters import Counter

__all__ = ["Firing", "PureKernels", "kernels_for", "kernels_on"]

_LOG = logging.getLogger(__name__)
_ENVIRONMENT = "ONEBIT_PURE_KERNELS"
_NAMES = ("torch", "c", "triton")

Firing = tuple[Tensor, Tensor, int]
"""What fires: codes_OB, counters_OB, and how many inputs a row has."""


class PureKernels(Protocol):
    """What a matrix of codes is trained with. g_OI: dL/dW, any float type; codes_OB, counters_OB: as `PureWeight`."""

    def peak_of(self, g_OI: Tensor) -> Tensor:
        """The largest |G|, float32 []; NaN where there is one."""
        ...

    def square_sums(self, g_OI: Tensor, peak: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """(sums of G^2 over each row [O], over each column [I]), as `pure_deposit.square_sums`: float64, exact."""
        ...

    def update_moments(
        self, moments: tuple[Tensor, Tensor], sums: tuple[Tensor, Tensor], peak: Tensor, step: Tensor
    ) -> Factors:
        """As `pure_deposit.update_moments`, up to the order in which float64 is added up."""
        ...

    def update_energy(self, g_OI: Tensor, factors: Factors) -> Tensor:
        """Sum of U^2, as `pure_deposit.update_energy`: float64 [], exact."""
        ...

    def deposit(
        self,
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
        """Deposit into the counters, in place, by `pure_deposit.deposit_rule`, rounded as `deposit_counts`.

        eta: rounded to float32; mean_square: of U over the whole matrix, float64 []; step: int64 []; first_row: of
        these rows in the whole matrix.
        """
        ...

    def deposit_whole(
        self,
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
        """All of these in one call, for a matrix that one process holds; False: nothing was done, take the steps.

        step: how many deposits there were before, int64 []; this one is added.
        """
        ...

    def fire(self, matrices: Sequence[Firing], counter: Counter, *, is_binary: bool) -> Tensor:
        """Move the codes whose counters are full, in place, of N matrices: how many moved in each, int64 [N]."""
        ...

    def input_codes(self, x_TI: Tensor) -> tuple[Tensor, Tensor]:
        """(int8 [T, I], scale float32 [T, 1]), as `quantize_activations` with "int8"; any leading dimensions."""
        ...

    def unpack(self, codes_OB: Tensor, cols: int, dtype: torch.dtype, *, is_binary: bool) -> Tensor:
        """The codes as numbers, [O, I]."""
        ...

    def forward_product(self, x_TI: Tensor, codes_OB: Tensor, dtype: torch.dtype, *, is_binary: bool) -> Tensor:
        """x codes^T, [T, O], in `dtype`, a float type. x_TI: int8 codes, or floats; any leading dimensions."""
        ...

    def input_gradient(self, g_TO: Tensor, codes_OB: Tensor, cols: int, *, is_binary: bool) -> Tensor:
        """g codes, [T, I], in the type of g_TO; any leading dimensions."""
        ...

    def scale_gradient(
        self, g_OI: Tensor, codes_OB: Tensor, scale: Tensor, group_size: int, *, is_binary: bool
    ) -> Tensor:
        """Sums of dL/dW times code times scale: dL/dlog_scale, float32 [] for a scale [], [O] for [O] and [O, G].

        group_size: inputs of a group, a multiple of 8; 0: scale has no groups.
        """
        ...


def kernels_for(tensor: Tensor) -> PureKernels:
    """The kernels for tensors like this one.

    ConfigError for a wrong name in ONEBIT_PURE_KERNELS, OnebitError where the kernels it asks for cannot run.
    """
    if isinstance(tensor, FakeTensor):  # has no memory; the reference says what would be allocated
        return _load("torch")
    return kernels_on(tensor.device)


@cache
def kernels_on(device: torch.device) -> PureKernels:
    """The kernels of a device, as `kernels_for`; `kernels_on.cache_clear()` has the environment read again.

    They are asked for six times in a step of each matrix, and a GPU waits.
    """
    return _chosen(device.type, os.environ.get(_ENVIRONMENT, ""))


@cache
def _chosen(device: str, asked: str) -> PureKernels:
    if asked and asked not in _NAMES:
        raise ConfigError(f"{_ENVIRONMENT} is {asked!r}, expected one of {', '.join(_NAMES)}")
    wanted = asked or {"cpu": "c", "cuda": "triton"}.get(device, "torch")
    problem = _problem(wanted, device)
    if problem and asked:
        raise OnebitError(f"{_ENVIRONMENT}={asked} cannot be had on {device}: {problem}; unset it")
    name = "torch" if problem else wanted
    reason = f"{_ENVIRONMENT} asks for it" if asked else problem or f"the fastest on {device}"
    _LOG.info("pure training on %s: %s kernels (%s)", device, name, reason)
    return _load(name)


def _problem(name: str, device: str) -> str:
    """Why kernels cannot run on a device; empty when they can."""
    if name == "c" and device != "cpu":
        return f"the C kernels know CPU tensors only, not {device}"
    try:
        kernels = _load(name)
    except (ImportError, OnebitError) as error:
        return str(error)
    if name == "triton":
        try:  # it compiles as it runs, for which a machine may lack a compiler, or be too old
            for byte, number in ((0x55, 1.0), (0xFF, -1.0)):  # the second is launched as all later ones are
                codes_OB = torch.full((1, 1), byte, dtype=torch.uint8, device=device)
                numbers = kernels.unpack(codes_OB, 4, torch.float32, is_binary=False).tolist()
                if numbers != [[number] * 4]:
                    return f"a Triton kernel unpacks {byte:#x} to {numbers}"
        except Exception as error:
            return f"a Triton kernel does not run ({error})"
    return ""


def _load(name: str) -> PureKernels:
    return cast(PureKernels, importlib.import_module(f"onebit.nn.{name}_pure"))
