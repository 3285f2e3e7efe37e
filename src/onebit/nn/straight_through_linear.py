"""The matrix product of the hard regime, with its straight-through gradient, as one autograd function.

The forward pass multiplies integer codes and scales the sums afterwards. In float32 (sums below 2^24) the product
is exact, so torch and the C engine agree to the last bit; in bfloat16 codes up to 256 are exact too, which a product of
scaled values would not be. The gradient never touches the quantisers: autograd would need two more passes over
each activation to find out that they are the identity.

Shape suffixes: T tokens (any leading dimensions), I inputs, O outputs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["straight_through_linear"]


class _StraightThroughLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TI: Tensor,
        w_OI: Tensor,
        x_codes_TI: Tensor,
        x_scale_T1: Tensor | None,
        w_codes_OI: Tensor,
        w_scale: Tensor | None,
        factor: float,
    ) -> Tensor:
        ctx.save_for_backward(x_codes_TI, x_scale_T1, w_codes_OI, w_scale)
        ctx.factor, ctx.x_dtype, ctx.w_dtype = factor, x_TI.dtype, w_OI.dtype
        sums_TO = F.linear(x_codes_TI, w_codes_OI)
        if x_scale_T1 is not None:
            scale = x_scale_T1 if w_scale is None else w_scale * x_scale_T1
            return (sums_TO * scale).to(x_codes_TI.dtype)
        return sums_TO if w_scale is None else (sums_TO * w_scale).to(x_codes_TI.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TO: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None, None]:
        x_codes_TI, x_scale_T1, w_codes_OI, w_scale = ctx.saved_tensors
        dtype = x_codes_TI.dtype
        grad_x = grad_w = None
        if ctx.needs_input_grad[0]:
            # Scaling the weights is a pass over [O, I], scaling the gradient one over [T, O]: T is the larger.
            q_w_OI = w_codes_OI if w_scale is None else w_codes_OI * _column(w_scale)
            grad_x = (grad_TO.to(dtype) @ q_w_OI.to(dtype)).to(ctx.x_dtype)
        if ctx.needs_input_grad[1]:
            if x_scale_T1 is not None:
                grad_TO = grad_TO * (x_scale_T1 * ctx.factor)
            grad_w = grad_TO.to(dtype).flatten(0, -2).t() @ x_codes_TI.flatten(0, -2)
            if x_scale_T1 is None and ctx.factor != 1.0:
                grad_w = grad_w * ctx.factor
            grad_w = grad_w.to(ctx.w_dtype)
        return grad_x, grad_w, None, None, None, None, None


def _column(w_scale: Tensor) -> Tensor:
    return w_scale.unsqueeze(-1) if w_scale.ndim else w_scale


def straight_through_linear(
    x_TI: Tensor,
    w_OI: Tensor,
    x_codes_TI: Tensor,
    x_scale_T1: Tensor | None,
    w_codes_OI: Tensor,
    w_scale: Tensor | None,
    factor: float = 1.0,
) -> Tensor:
    """(x_codes w_codes^T) * (w_scale * x_scale), [T, O], in the type of the codes.

    x_TI and w_OI only receive gradients: dL/dx as if w = codes * scale were constant, dL/dw times `factor`.
    x_scale_T1 None: x_codes are values. w_scale: [] or [O], None when w_codes are values (per-group scales applied).
    """
    if x_TI.ndim == 1:
        x_scale_1 = None if x_scale_T1 is None else x_scale_T1.unsqueeze(0)
        return straight_through_linear(
            x_TI.unsqueeze(0), w_OI, x_codes_TI.unsqueeze(0), x_scale_1, w_codes_OI, w_scale, factor
        ).squeeze(0)
    result: Tensor = _StraightThroughLinear.apply(  # type: ignore[no-untyped-call]
        x_TI, w_OI, x_codes_TI, x_scale_T1, w_codes_OI, w_scale, factor
    )
    return result
