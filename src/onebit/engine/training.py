"""The C kernels of pure training (engine/train): signatures, and the addresses they are given.

Whoever calls checks shapes, types and contiguity: these are addresses, and a wrong one is a crash.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_double, c_float, c_int32, c_int64, c_uint32, c_uint64, c_void_p
from functools import cache

from onebit.engine import _library
from onebit.errors import EngineError

__all__ = ["BFLOAT16", "FLOAT32", "INT8", "Counters", "Gradient", "Moments", "Normalisation", "training_library"]

VERSION = 5
FLOAT32, BFLOAT16, INT8 = 0, 1, 2


class Gradient(ctypes.Structure):
    """ob_train_gradient: [rows, cols] of `type`, FLOAT32 or BFLOAT16."""

    _fields_ = [("g", c_void_p), *[(name, c_uint32) for name in ("type", "rows", "cols", "threads")]]


class Counters(ctypes.Structure):
    """ob_train_counters."""

    _fields_ = [("counters", c_void_p), ("bits", c_uint32), ("threshold", c_int32), ("bound", c_int32)]


class Normalisation(ctypes.Structure):
    """ob_train_normalisation."""

    _fields_ = [(name, c_double) for name in ("decay", "floor", "tiny", "largest", "energy_shift", "clip")]


class Moments(ctypes.Structure):
    """ob_train_moments."""

    _fields_ = [
        *[(name, c_void_p) for name in ("row_O", "column_I", "row_factors_O", "column_factors_I")],
        *[(name, c_uint32) for name in ("rows", "cols")],
    ]


_GRADIENT, _COUNTERS = POINTER(Gradient), POINTER(Counters)
_NORMALISATION, _MOMENTS = POINTER(Normalisation), POINTER(Moments)
_SIGNATURES: dict[str, tuple[object, list[object]]] = {
    "ob_train_version": (c_uint32, []),
    "ob_train_isa": (c_char_p, []),
    "ob_train_choose": (c_int32, [c_char_p]),
    "ob_train_peak": (c_float, [_GRADIENT]),
    "ob_train_update_moments": (c_int32, [_NORMALISATION, c_float, c_double, c_void_p, c_void_p, _MOMENTS]),
    "ob_train_deposit_whole": (
        c_int32,
        [
            *(_GRADIENT, _COUNTERS, _NORMALISATION, c_void_p, c_void_p, c_double, c_float, c_int32),
            *(c_uint32, c_uint32, c_uint64),
        ],
    ),
    "ob_train_square_sums": (c_int32, [_GRADIENT, c_double, c_void_p, c_void_p]),
    "ob_train_update_energy": (c_double, [_GRADIENT, c_void_p, c_void_p, c_double, c_double]),
    "ob_train_deposit": (
        None,
        [_GRADIENT, _COUNTERS, c_void_p, c_void_p, c_float, c_uint32, c_uint32, c_uint32, c_uint64, c_uint32],
    ),
    "ob_train_fire": (c_int64, [c_void_p, _COUNTERS, c_uint32, c_uint32, c_int32, c_int32, c_uint32]),
    "ob_train_unpack": (None, [c_void_p, c_uint32, c_uint32, c_int32, c_uint32, c_void_p, c_uint32]),
    "ob_train_has_product": (c_int32, []),
    "ob_train_product": (
        c_int32,
        [c_void_p, c_uint32, c_uint32, c_void_p, c_uint32, c_int32, c_void_p, c_uint32],
    ),
    "ob_train_code_sums": (None, [_GRADIENT, c_void_p, c_int32, c_uint32, c_void_p]),
}


@cache
def training_library() -> ctypes.CDLL:
    """The engine's library with these functions declared. EngineError where it is not built, or older than them."""
    loaded = _library.library()
    try:
        version = int(loaded.ob_train_version())
    except AttributeError:
        version = 0
    if version != VERSION:
        raise EngineError(f"{_library.library_path()} has no training kernels of version {VERSION}: build it again")
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    return loaded
