"""What the core takes of memory where there is no operating system to ask: for headers that state it."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onebit.engine import _library as c
from onebit.engine.model import Model

__all__ = ["Arenas", "arena_bytes"]

_ROUNDING = 128  # keys and values are each aligned to 64 bytes


@dataclass(frozen=True)
class Arenas:
    """Bytes with the reference kernels, tokens one at a time and float16 keys and values. Where pointers are shorter
    than here, less is needed."""

    model: int
    session: int
    per_position: int

    def session_for(self, context: int) -> int:
        """A session of so many positions."""
        return self.session + self.per_position * context


def arena_bytes(path: Path) -> Arenas:
    """Ask the engine what the model of a ``.1bit`` file takes. EngineError where it refuses the file."""
    library, error, size = c.library(), c.Error(), ctypes.c_size_t()
    data = np.fromfile(path, np.uint8)
    padded = np.empty(data.size + 64, np.uint8)
    begin = -padded.ctypes.data % 64  # where the engine may read it
    image = padded[begin : begin + data.size]
    image[:] = data
    c.check(library.ob_model_arena_bytes(image.ctypes.data, image.size, ctypes.byref(size), ctypes.byref(error)), error)
    model_bytes = size.value
    model = Model(path, threads=1, isa="scalar")

    def session(positions: int) -> int:
        options = c.CSessionOptions(max_positions=positions, max_batch=1, num_threads=1, num_sequences=1)
        status = library.ob_session_arena_bytes(
            model._handle, ctypes.byref(options), ctypes.byref(size), ctypes.byref(error)
        )
        c.check(status, error)
        return size.value

    longest = model.description.max_seq_len
    one, all_of_it = session(1), session(longest)
    per_position = -(-(all_of_it - one) // max(1, longest - 1))
    return Arenas(model_bytes, one - per_position + _ROUNDING, per_position)
