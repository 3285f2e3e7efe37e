"""What bounds the engine on this machine, measured now: bytes read a second for decode, int8 operations for prefill."""

from __future__ import annotations

import ctypes

from onebit.engine import _library as c
from onebit.errors import EngineError

__all__ = ["bandwidth", "int8_peak", "linear_isas"]

_LARGEST_READ = 1 << 40


def bandwidth(threads: int, num_bytes: int, seconds: float = 0.5) -> float:
    """10^9 bytes a second of a pure read of ``num_bytes`` of memory, again and again; the median of its turns.

    Give it the bytes that a model reads for a token: what part of them a cache keeps, it keeps of the model too.
    """
    if not 1 << 16 <= num_bytes <= _LARGEST_READ:
        raise EngineError(f"num_bytes must be 65536 to {_LARGEST_READ}, got {num_bytes}")
    found, error = ctypes.c_double(), c.Error()
    status = c.library().ob_measure_bandwidth(
        _threads(threads), num_bytes, seconds, ctypes.byref(found), ctypes.byref(error)
    )
    c.check(status, error)
    return found.value


def int8_peak(isa: str, threads: int, seconds: float = 0.2) -> float | None:
    """10^9 int8 operations a second (a multiplication and an addition are two) of an instruction set's dot product
    from registers; None when none is known, as for the scalar reference."""
    number = c.library().ob_isa_from_name(isa.encode())
    found, error = ctypes.c_double(), c.Error()
    status = c.library().ob_measure_int8_peak(
        number, _threads(threads), seconds, ctypes.byref(found), ctypes.byref(error)
    )
    if status == c.STATUS_UNSUPPORTED:
        return None
    c.check(status, error)
    return found.value


def linear_isas(kernel_lines: list[str]) -> dict[str, str]:
    """Weight layout -> instruction set of its int8 kernel, from ``Model.kernels()``."""
    found = {}
    for line in kernel_lines:
        operation, _, rest = line.partition(": ")
        words = operation.split()
        if len(words) == 3 and words[0] == "linear" and words[2] == "int8":
            found[words[1]] = rest.split(" ")[0]
    return found


def _threads(threads: int) -> int:
    if not 1 <= threads <= 256:
        raise EngineError(f"threads must be 1 to 256, got {threads}")
    return threads
