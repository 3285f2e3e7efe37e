"""The straight-through estimator: forward the quantised value, backward the gradient times a factor.

A function of its own rather than `x + (q - x).detach()`: that sum does not give back q exactly in floating point
(codes would stop being integers) and costs two more passes over the tensor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["straight_through"]


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, q_x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        ctx.dtype = x.dtype
        return q_x.view_as(q_x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        scaled = grad if ctx.factor == 1.0 else grad * ctx.factor
        return scaled.to(ctx.dtype), None, None


def straight_through(x: Tensor, q_x: Tensor, factor: float = 1.0) -> Tensor:
    """q_x in the forward pass (exactly), dL/dx = factor * dL/dq in the backward pass. x and q_x have one shape."""
    result: Tensor = _StraightThrough.apply(x, q_x, factor)  # type: ignore[no-untyped-call]
    return result
