"""Codes and scales of float weights that lie on a grid of codes times scale, found without loss or not at all.

What other programs leave of ternary and binary models are often floats: codes times scale in bfloat16, float16 or
float32. All weights that share a scale are then 0, +s or -s for one s.

Shape suffixes: O outputs, I inputs, U units (weights that share a scale), N weights of a unit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from onebit.formats.layout import GROUP_SIZES, Granularity, Layout

__all__ = ["on_grid"]

Coded = tuple[NDArray[np.int8], NDArray[Any], Layout, Granularity, int]


def on_grid(w_OI: Tensor) -> Coded | None:
    """(int8 codes, scales, layout, granularity, group size) whose products are exactly these float32 weights, with the
    coarsest granularity; None when there are none: weights of a trained float model never lie on one.

    A unit without any weight but 0 gets the scale 1.
    """
    w = w_OI.numpy()
    layout = Layout.BINARY if (w != 0).all() else Layout.TERNARY
    found = _scales(np.abs(w).reshape(1, -1))
    if found is not None:
        return np.sign(w).astype(np.int8), found.reshape(()), layout, Granularity.PER_TENSOR, 0
    found = _scales(np.abs(w))
    if found is not None:
        return np.sign(w).astype(np.int8), found, layout, Granularity.PER_ROW, 0
    for size in sorted(GROUP_SIZES, reverse=True):
        if w.shape[1] % size:
            continue
        found = _scales(np.abs(w).reshape(-1, size))
        if found is None:
            continue
        narrow = found.astype(np.float16)
        if np.array_equal(narrow.astype(np.float32), found):
            return np.sign(w).astype(np.int8), narrow.reshape(len(w), -1), layout, Granularity.PER_GROUP, size
    return None


def _scales(magnitude_UN: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """The one magnitude of each unit beside 0, [U]; None where a unit has several."""
    largest_U1 = magnitude_UN.max(axis=1, keepdims=True)
    if not ((magnitude_UN == 0) | (magnitude_UN == largest_U1)).all():
        return None
    return np.where(largest_U1 > 0, largest_U1, np.float32(1)).reshape(-1)
