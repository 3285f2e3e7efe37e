"""The products of a pure layer, as one autograd function over operators that choose their kernels.

What shaped it: a compiled graph can hold neither a Python object nor a call into C. So to a compiler each product is an
operator of the library `onebit`, opaque, which asks `kernels_for` when it runs; and the weight, whose gradient is
consumed where it is computed, is named by a handle. Without a compiler the same functions are called as they are.

Shape suffixes: T tokens (any leading dimensions), I inputs, O outputs, B bytes of a row, G groups of inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from onebit.nn.coded_matrix import exported_scale
from onebit.nn.pure_kernels import kernels_for
from onebit.nn.pure_sharding import gather_rows
from onebit.nn.pure_weight import attached_weight

__all__ = ["PureProduct"]


class PureProduct(torch.autograd.Function):
    """x and log_scale receive gradients; the weight's goes to its counters."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TI: Tensor,
        log_scale: Tensor,
        group_scales: Tensor | None,
        packed_OB: Tensor,
        x_codes_TI: Tensor,
        x_scale_T1: Tensor | None,
        cols: int,
        group_size: int,
        is_binary: bool,
        handle: int,
        rows: int,
        dtype: torch.dtype,
    ) -> Tensor:
        """[T, O] in `dtype`. x_TI only receives a gradient; x_codes_TI: int8, or floats where x_scale_T1 is None.

        rows: O, where packed_OB holds this process's rows of so many; else 0.
        """
        ctx.cols, ctx.group_size, ctx.is_binary, ctx.handle, ctx.rows = cols, group_size, is_binary, handle, rows
        ctx.dtype, ctx.x_dtype = dtype, x_TI.dtype
        scale = exported_scale(log_scale, group_scales)
        kept = (scale,) if group_scales is None else (log_scale, group_scales)  # per group it is too much to keep
        ctx.save_for_backward(packed_OB, x_codes_TI, x_scale_T1, *kept)
        packed_OB = _whole(packed_OB, rows)
        if dtype == torch.float16 and x_scale_T1 is not None:
            # Sums of int8 codes can pass float16's 65504; a power of two moves them into range without rounding.
            x_codes_TI, x_scale_T1 = x_codes_TI * 2.0**-7, x_scale_T1 * 2.0**7
        if scale.ndim == 2:
            w_OI = _scaled(scale, packed_OB, cols, group_size, is_binary, dtype)
            sums_TO, scale = F.linear(x_codes_TI.to(dtype), w_OI), scale.new_ones(())
        else:
            sums_TO = _run("pure_forward_product", x_codes_TI, packed_OB, dtype, is_binary)
        return sums_TO.mul_(scale if x_scale_T1 is None else scale * x_scale_T1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TO: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x_TI and log_scale."""
        packed_OB, x_codes_TI, x_scale_T1, *kept = ctx.saved_tensors
        packed_OB = _whole(packed_OB, ctx.rows)
        scale = kept[0] if len(kept) == 1 else exported_scale(*kept)
        grad_x = grad_scale = None
        if ctx.handle or ctx.needs_input_grad[1]:
            g_TO = grad_TO.to(ctx.dtype) if x_scale_T1 is None else _times(grad_TO, x_scale_T1, ctx.dtype)
            grad_scale = _run(
                "pure_weight_gradient",
                g_TO.flatten(0, -2),
                x_codes_TI.flatten(0, -2),
                packed_OB,
                scale,
                ctx.group_size,
                ctx.is_binary,
                ctx.handle,
            )
        if ctx.needs_input_grad[0]:
            if scale.ndim == 2 or ctx.dtype == torch.float16:  # float16 has no room for sums before their scale
                w_OI = _scaled(scale, packed_OB, ctx.cols, ctx.group_size, ctx.is_binary, ctx.dtype)
                grad_x = grad_TO.to(ctx.dtype) @ w_OI
            else:
                g_TO = _as(grad_TO * scale if scale.ndim else grad_TO, ctx.dtype)
                grad_x = _run("pure_input_gradient", g_TO, packed_OB, ctx.cols, ctx.is_binary)
                if not scale.ndim:
                    # In place where it can be: out of place, a CPU would look for fresh pages.
                    is_same = grad_x.dtype == ctx.x_dtype
                    grad_x = grad_x.mul_(scale) if is_same else _times(grad_x, scale, ctx.x_dtype)
            grad_x = _as(grad_x, ctx.x_dtype)
        return grad_x, grad_scale, None, None, None, None, None, None, None, None, None, None


def _as(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x.to(dtype), which takes Python 3 us to do nothing."""
    return x if x.dtype == dtype else x.to(dtype)


def _times(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """(x * scale).to(dtype), which a GPU does in one pass."""
    return torch.mul(x, scale, out=torch.empty_like(x, dtype=dtype))


def _unpack(packed_OB: Tensor, cols: int, dtype: torch.dtype, is_binary: bool) -> Tensor:
    return kernels_for(packed_OB).unpack(packed_OB, cols, dtype, is_binary=is_binary)


def _forward_product(x_TI: Tensor, packed_OB: Tensor, dtype: torch.dtype, is_binary: bool) -> Tensor:
    return kernels_for(packed_OB).forward_product(x_TI, packed_OB, dtype, is_binary=is_binary)


def _input_gradient(g_TO: Tensor, packed_OB: Tensor, cols: int, is_binary: bool) -> Tensor:
    return kernels_for(packed_OB).input_gradient(g_TO, packed_OB, cols, is_binary=is_binary)


def _weight_gradient(
    g_TO: Tensor,
    x_TI: Tensor,
    packed_OB: Tensor,
    scale: Tensor,
    group_size: int,
    is_binary: bool,
    handle: int,
) -> Tensor:
    """Compute dL/dW, hand it to the attached weight's counters, and return the gradient of log_scale.

    What it changes is read by the optimizer's step alone, so that to a compiler it is a function.
    """
    g_OI = g_TO.t() @ x_TI.to(g_TO.dtype)
    grad_scale = kernels_for(packed_OB).scale_gradient(g_OI, packed_OB, scale, group_size, is_binary=is_binary)
    weight = attached_weight(handle)
    if weight is not None:
        weight.take(g_OI)  # which may change g
    return grad_scale


# torch.library.custom_op would say this in one decorator, and import the whole compiler at the first call.
_LIBRARY = torch.library.Library("onebit", "DEF")
_SCHEMAS: dict[str, tuple[str, Callable[..., Tensor]]] = {
    "pure_gather": ("(Tensor own, SymInt rows) -> Tensor", gather_rows),
    "pure_unpack": ("(Tensor packed, SymInt cols, ScalarType dtype, bool is_binary) -> Tensor", _unpack),
    "pure_forward_product": (
        "(Tensor x, Tensor packed, ScalarType dtype, bool is_binary) -> Tensor",
        _forward_product,
    ),
    "pure_input_gradient": ("(Tensor g, Tensor packed, SymInt cols, bool is_binary) -> Tensor", _input_gradient),
    "pure_weight_gradient": (
        "(Tensor g, Tensor x, Tensor packed, Tensor scale, SymInt group_size, bool is_binary, SymInt handle) -> Tensor",
        _weight_gradient,
    ),
}
for _name, (_schema, _function) in _SCHEMAS.items():
    _LIBRARY.define(_name + _schema)
    _LIBRARY.impl(_name, _function, "CompositeExplicitAutograd")


def _run(name: str, *arguments: Any) -> Tensor:
    """What the operator does; a plain call, 20 us faster, where no compiler must see an operator."""
    if torch.compiler.is_compiling():
        result: Tensor = getattr(torch.ops.onebit, name)(*arguments)
        return result
    return _SCHEMAS[name][1](*arguments)


@torch.library.register_fake("onebit::pure_gather")  # type: ignore[untyped-decorator]
def _(own_HB: Tensor, rows: int) -> Tensor:
    return own_HB.new_empty(rows, own_HB.shape[1])


@torch.library.register_fake("onebit::pure_unpack")  # type: ignore[untyped-decorator]
def _(packed_OB: Tensor, cols: int, dtype: torch.dtype, is_binary: bool) -> Tensor:
    return packed_OB.new_empty(packed_OB.shape[0], cols, dtype=dtype)


@torch.library.register_fake("onebit::pure_forward_product")  # type: ignore[untyped-decorator]
def _(x_TI: Tensor, packed_OB: Tensor, dtype: torch.dtype, is_binary: bool) -> Tensor:
    return x_TI.new_empty(*x_TI.shape[:-1], packed_OB.shape[0], dtype=dtype)


@torch.library.register_fake("onebit::pure_input_gradient")  # type: ignore[untyped-decorator]
def _(g_TO: Tensor, packed_OB: Tensor, cols: int, is_binary: bool) -> Tensor:
    return g_TO.new_empty(*g_TO.shape[:-1], cols)


@torch.library.register_fake("onebit::pure_weight_gradient")  # type: ignore[untyped-decorator]
def _(
    g_TO: Tensor,
    x_TI: Tensor,
    packed_OB: Tensor,
    scale: Tensor,
    group_size: int,
    is_binary: bool,
    handle: int,
) -> Tensor:
    return scale.new_empty(scale.shape[:1], dtype=torch.float32)  # scales of groups are float16


def _whole(packed_OB: Tensor, rows: int) -> Tensor:
    """The codes of all rows, where packed_OB holds this process's."""
    return _run("pure_gather", packed_OB, rows) if rows else packed_OB


def _scaled(
    scale: Tensor, packed_OB: Tensor, cols: int, group_size: int, is_binary: bool, dtype: torch.dtype
) -> Tensor:
    """Codes times scale, [O, I] in `dtype`."""
    w_OI = _run("pure_unpack", packed_OB, cols, dtype, is_binary)
    if scale.ndim == 2:
        scale = scale.repeat_interleave(group_size, dim=1)[:, :cols]
    elif scale.ndim == 1:
        scale = scale.unsqueeze(1)
    return w_OI.mul_(scale.to(dtype))
