"""The few places where numpy arrays and torch tensors spell the same thing differently.

Everything else in this package is written with operators, slices and ``reshape``, which both understand. torch is
never imported: a tensor brings its own methods.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from onebit.errors import FormatError

__all__ = ["Array", "cast", "checked_bytes", "checked_codes", "zeros"]

Array: TypeAlias = Any  # numpy.ndarray or torch.Tensor; neither can be named here without importing torch

_TORCH_CAST = {"uint8": "byte", "int8": "char", "int16": "short", "int32": "int"}


def cast(x: Array, dtype: str) -> Array:
    """Convert to ``uint8``, ``int8``, ``int16`` or ``int32``; values outside wrap."""
    if isinstance(x, np.ndarray):
        return x.astype(dtype)
    return getattr(x, _TORCH_CAST[dtype])()


def zeros(like: Array, shape: tuple[int, ...]) -> Array:
    """Zeros of the given shape with the dtype (and device) of ``like``."""
    if isinstance(like, np.ndarray):
        return np.zeros(shape, like.dtype)
    return like.new_zeros(shape)


def checked_codes(codes_OI: Array, low: int, high: int, layout: str, *, zero: bool = True) -> Array:
    """Return the codes as int8 after checking the shape and that each lies in [low, high] (and is not 0 unless
    allowed)."""
    if len(codes_OI.shape) != 2 or 0 in tuple(codes_OI.shape):
        raise FormatError(
            f"{layout}: expected codes of shape [rows, cols], both at least 1, got {tuple(codes_OI.shape)}"
        )
    bad = (codes_OI < low) | (codes_OI > high) | (codes_OI != codes_OI)
    if not zero:
        bad = bad | (codes_OI == 0)
    if bool(bad.any()):
        allowed = f"-1 or +1 ({low} to {high} without 0)" if not zero else f"{low} to {high}"
        raise FormatError(f"{layout}: {int(bad.sum())} codes are out of range; each must be {allowed}")
    return cast(codes_OI, "int8")


def checked_bytes(packed: Array, last: int, layout: str) -> Array:
    """Check that packed data is uint8 with ``last`` as the size of its last axis."""
    if not str(packed.dtype).endswith("uint8"):
        raise FormatError(f"{layout}: packed data must be uint8, got {packed.dtype}")
    if len(packed.shape) < 2 or packed.shape[-1] != last:
        raise FormatError(f"{layout}: expected {last} packed bytes on the last axis, got shape {tuple(packed.shape)}")
    return packed
