"""The matrix product of the hard regime, with its straight-through gradient, as one autograd function.

The forward pass multiplies integer codes and scales the sums afterwards. In float32 (sums below 2^24) the product
is exact, so torch and the C engine agree to the last bit; in bfloat16 codes up to 256 are exact too, which a product of
scaled values would not be. The gradient never touches the quantisers: autograd would need two more passes over
each activation to find out that they are the identity.

For the backward pass it keeps the activations as int8 codes, a quarter of what nn.Linear keeps in float32, and of the
weight only the latent itself: its codes are made again, a few passes over [O, I] against products of T times as much
work. A kept copy would be another weight per layer, whole on every device even where FSDP shards the latent.

Shape suffixes: T tokens (any leading dimensions), I inputs, O outputs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from onebit.quant import WeightQuantizer, fake_quantize, weight_codes

__all__ = ["straight_through_linear"]

HAS_INT8_PRODUCT: bool = getattr(torch.cpu, "_is_vnni_supported", bool)()  # private: a torch without it has False
"""Whether this processor sums products of int8 exactly in int32, here in a quarter of the time of float32's product."""


class _StraightThroughLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TI: Tensor,
        w_OI: Tensor,
        x_codes_TI: Tensor,
        x_scale_T1: Tensor | None,
        quantizer: WeightQuantizer | None,
        dtype: torch.dtype,
        factor: float,
    ) -> Tensor:
        is_trained = ctx.needs_input_grad[1]  # a frozen layer has no use for its inputs later
        ctx.save_for_backward(w_OI, x_codes_TI if is_trained else None, x_scale_T1 if is_trained else None)
        ctx.quantizer, ctx.dtype, ctx.factor = quantizer, dtype, factor
        ctx.x_dtype, ctx.w_dtype = x_TI.dtype, w_OI.dtype
        w_codes_OI, w_scale = _weight_factors(w_OI, quantizer)
        if HAS_INT8_PRODUCT and x_codes_TI.is_cpu and x_scale_T1 is not None and w_scale is not None:
            sums_TO = int8_product(x_codes_TI, w_codes_OI.to(torch.int8))
            return _times(sums_TO, w_scale * x_scale_T1).to(dtype)
        x_codes_TI = x_codes_TI.to(dtype)
        if dtype == torch.float16 and x_scale_T1 is not None:
            # Sums of int8 codes can pass float16's 65504; a power of two moves them into range without rounding.
            x_codes_TI, x_scale_T1 = x_codes_TI * 2.0**-7, x_scale_T1 * 2.0**7
        sums_TO = F.linear(x_codes_TI, w_codes_OI.to(dtype))
        if x_scale_T1 is not None:
            scale = x_scale_T1 if w_scale is None else w_scale * x_scale_T1
            return (sums_TO * scale).to(dtype)
        return sums_TO if w_scale is None else (sums_TO * w_scale).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TO: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None, None]:
        w_OI, x_codes_TI, x_scale_T1 = ctx.saved_tensors
        grad_TO = grad_TO.to(ctx.dtype)
        grad_x = grad_w = None
        if ctx.needs_input_grad[0]:
            q_w_OI = w_OI if ctx.quantizer is None else fake_quantize(w_OI, ctx.quantizer)
            grad_x = (grad_TO @ q_w_OI.to(ctx.dtype)).to(ctx.x_dtype)
        if ctx.needs_input_grad[1]:
            q_x_TI = x_codes_TI if x_scale_T1 is None else _times(x_codes_TI, x_scale_T1)
            grad_w = grad_TO.flatten(0, -2).t() @ q_x_TI.to(ctx.dtype).flatten(0, -2)
            if ctx.factor != 1.0:
                grad_w = grad_w * ctx.factor
            grad_w = grad_w.to(ctx.w_dtype)
        return grad_x, grad_w, None, None, None, None, None


def _weight_factors(w_OI: Tensor, quantizer: WeightQuantizer | None) -> tuple[Tensor, Tensor | None]:
    """What the inputs are multiplied with, and what the sums: None where a scale cannot be taken out of the sum."""
    if quantizer is None:
        return w_OI, None
    if quantizer.is_float16 or quantizer.granularity == "per_group":
        return fake_quantize(w_OI, quantizer), None
    return weight_codes(w_OI, quantizer)


def int8_product(x_codes_TI: Tensor, w_codes_OI: Tensor) -> Tensor:
    """x w^T of int8, [T, O] in int32 and exact; fast where HAS_INT8_PRODUCT. At least two dimensions each."""
    if x_codes_TI.shape[-1] == 1:  # torch._int_mm takes the turned column for one that is not (2.13, with VNNI)
        return x_codes_TI.int() * w_codes_OI.int().squeeze(1)
    sums = torch._int_mm(x_codes_TI.flatten(0, -2), w_codes_OI.t())
    return sums.view(*x_codes_TI.shape[:-1], w_codes_OI.shape[0])


def _times(integers_TN: Tensor, scale_T1: Tensor) -> Tensor:
    # Turned to float first: a product of two types takes ten times as long on a CPU.
    return integers_TN.float().mul_(scale_T1)


def straight_through_linear(
    x_TI: Tensor,
    w_OI: Tensor,
    x_codes_TI: Tensor,
    x_scale_T1: Tensor | None,
    quantizer: WeightQuantizer | None,
    dtype: torch.dtype,
    factor: float = 1.0,
) -> Tensor:
    """(x_codes w_codes^T) * (w_scale * x_scale), [T, O], multiplied in `dtype`, which is the result's too.

    x_TI only receives its gradient, dL/dx as if the quantised weight were constant; w_OI is quantised (None: as it is)
    and receives dL/dw times `factor`. x_codes_TI: int8 codes, or values where x_scale_T1 is None.
    """
    if x_TI.ndim == 1:
        x_scale_1 = None if x_scale_T1 is None else x_scale_T1.unsqueeze(0)
        return straight_through_linear(
            x_TI.unsqueeze(0), w_OI, x_codes_TI.unsqueeze(0), x_scale_1, quantizer, dtype, factor
        ).squeeze(0)
    result: Tensor = _StraightThroughLinear.apply(  # type: ignore[no-untyped-call]
        x_TI, w_OI, x_codes_TI, x_scale_T1, quantizer, dtype, factor
    )
    return result
