"""Activations -> codes and one scale per token (DESIGN.md section 2): int8 by absmax, sign, or none.

A token is the last dimension. The order of operations is fixed (127/m first, then times x), because the C engine
does the same in float32 and must round the same way.

Shape suffixes: T tokens (any leading dimensions), I inputs.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from onebit.quant.spec import SCALE_FLOOR, check_name

__all__ = ["ActivationQuantizer", "activation_codes", "fake_quantize_activations", "quantize_activations"]

ActivationQuantizer = Literal["int8", "sign", "none"]


def activation_codes(x_TI: Tensor, kind: ActivationQuantizer) -> tuple[Tensor, Tensor]:
    """Codes as float32 [T, I] and scales as float32 [T, 1], without gradient; not for "none"."""
    x_TI = x_TI.detach().float()
    if kind == "int8":
        # amax and amin need no temporary; vector_norm(inf) reads x once and is still 20 times slower on a CPU.
        peak_T1 = torch.maximum(x_TI.amax(-1, keepdim=True), -x_TI.amin(-1, keepdim=True)).clamp_min(SCALE_FLOOR)
        # A tensor of 127s, because torch turns 127.0 / peak into 127.0 * (1 / peak), which rounds twice.
        limit_T1 = torch.full_like(peak_T1, 127.0)
        # No clamp: |x| <= peak, so the product never rounds beyond 127.
        return (x_TI * (limit_T1 / peak_T1)).round_(), peak_T1 / limit_T1
    scale_T1 = x_TI.abs().mean(-1, keepdim=True).clamp_min(SCALE_FLOOR)
    return (x_TI >= 0).float().mul_(2).sub_(1), scale_T1


def quantize_activations(x_TI: Tensor, kind: ActivationQuantizer) -> tuple[Tensor, Tensor]:
    """(codes int8 [T, I], scale float32 [T, 1]); for "none" the values themselves as float32 and a scale of 1."""
    check_name("activation_quantizer", kind, get_args(ActivationQuantizer))
    if kind == "none":
        return x_TI.detach().float(), x_TI.new_ones((*x_TI.shape[:-1], 1), dtype=torch.float32)
    codes_TI, scale_T1 = activation_codes(x_TI, kind)
    return codes_TI.to(torch.int8), scale_T1


def fake_quantize_activations(x_TI: Tensor, kind: ActivationQuantizer) -> Tensor:
    """The activations on their grid, float32 [T, I], without gradient."""
    check_name("activation_quantizer", kind, get_args(ActivationQuantizer))
    if kind == "none":
        return x_TI.detach().float()
    codes_TI, scale_T1 = activation_codes(x_TI, kind)
    return codes_TI.mul_(scale_T1)
