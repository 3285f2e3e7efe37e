"""Choosing tokens from logits: the C sampler, seeded, with the same choices on every machine."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onebit.engine import _library as c
from onebit.errors import EngineError

__all__ = ["Sampler"]


class Sampler:
    """Order: repetition penalty, temperature (0: greedy), top-k (0: off), top-p (1: off), min-p (0: off), draw.

    Values out of range raise EngineError naming the field. Two samplers of one seed draw the same numbers.
    """

    def __init__(
        self,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
    ) -> None:
        if not 0 <= seed < 2**64:
            raise EngineError(f"seed must be 0 to 2^64 - 1, got {seed}")
        options = c.CSamplerOptions(
            temperature=temperature,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            top_k=max(0, min(top_k, 0xFFFFFFFF)),
            seed=seed,
        )
        self.state, error = c.CSampler(), c.Error()
        status = c.library().ob_sampler_init(ctypes.byref(self.state), ctypes.byref(options), ctypes.byref(error))
        c.check(status, error)
        self._arena = np.empty(0, np.uint64)

    @property
    def options(self) -> c.CSamplerOptions:
        """As given, in the engine's form."""
        return self.state.options  # type: ignore[no-any-return]

    def __call__(self, logits_V: NDArray[np.float32], recent: Sequence[int] = ()) -> int:
        """A token for logits [V]; ``recent`` ids fall under the repetition penalty."""
        logits = np.ascontiguousarray(logits_V, np.float32)
        window = np.asarray(recent, np.uint32)
        needed = c.library().ob_sampler_arena_bytes(logits.size)
        if self._arena.nbytes < needed:
            self._arena = np.empty(needed // 8 + 1, np.uint64)
        token, error = ctypes.c_uint32(), c.Error()
        status = c.library().ob_sample(
            ctypes.byref(self.state),
            *(logits.ctypes.data, logits.size, window.ctypes.data, window.size),
            *(self._arena.ctypes.data, self._arena.nbytes, ctypes.byref(token), ctypes.byref(error)),
        )
        c.check(status, error)
        return token.value
