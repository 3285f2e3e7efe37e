"""The dials of the soft regimes, carried by a model and turned by a training callback.

One `Schedule` belongs to one model; its layers hold a plain reference to it, so it appears once in the state_dict and
deepcopy keeps the sharing inside the copy. The dials are 0-dim tensors: a compiled model reads new values without
being compiled again. Which regimes exist at all is fixed at construction; a model with none pays nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["Schedule"]

_HARD = {"lambda_": 1.0, "soft_alpha": 0.0, "arenas": 0.0}


class Schedule(nn.Module):
    """lambda_: 1 is fully quantised; soft_alpha: slope of the soft codes, 0 is hard codes; arenas: residual, 0 is none.

    All dials start at hard. `set` turns them; when every dial is hard again the layers take their fast path.
    Evaluation mode is always fully quantised, whatever the dials say.
    """

    lambda_: Tensor
    soft_alpha: Tensor
    arenas: Tensor

    def __init__(self, *, uses_lambda: bool = False, uses_soft_codes: bool = False, uses_arenas: bool = False) -> None:
        super().__init__()
        self.uses_lambda = uses_lambda
        self.uses_soft_codes = uses_soft_codes
        self.uses_arenas = uses_arenas
        self.is_soft = uses_lambda or uses_soft_codes or uses_arenas
        """False when the dials are known to be hard. True at the start, as a checkpoint may hold other values."""
        for name, value in _HARD.items():
            # A model without soft regimes keeps its checkpoint free of dials.
            self.register_buffer(name, torch.tensor(value, dtype=torch.float32), persistent=self.is_soft)

    def set(self, *, lambda_: float = 1.0, soft_alpha: float = 0.0, arenas: float = 0.0) -> None:
        """Turn the dials, in place and without waiting for the device. A dial that is not given is hard."""
        for name, value in (("lambda_", lambda_), ("soft_alpha", soft_alpha), ("arenas", arenas)):
            getattr(self, name).fill_(value)
        self.is_soft = (
            (self.uses_lambda and lambda_ < 1.0)
            or (self.uses_soft_codes and soft_alpha > 0.0)
            or (self.uses_arenas and arenas > 0.0)
        )

    def reset_parameters(self) -> None:
        """All dials hard; also what fills the buffers after the meta device."""
        for name, value in _HARD.items():
            getattr(self, name).fill_(value)
        self.is_soft = self.uses_lambda or self.uses_soft_codes or self.uses_arenas

    def extra_repr(self) -> str:
        return f"lambda={self.uses_lambda}, soft_codes={self.uses_soft_codes}, arenas={self.uses_arenas}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Schedule:
        # The dials follow the model to its device but stay float32: bfloat16 would make a warm-up move in steps.
        for name in _HARD:
            dial = getattr(self, name)
            moved = fn(dial)
            from_or_to_meta = dial.is_meta or moved.is_meta  # no value to carry over
            self._buffers[name] = moved.float() if from_or_to_meta else dial.to(moved.device)
        return self
