"""Give a torch model the embeddings that a file stores, so that a comparison shows errors and not the user's choice.

Export rounds embedding and head to float16, int8 or int4 as asked. Held against the float32 checkpoint that would look
like a difference; held against the checkpoint rounded in the same way only real errors remain.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, cast

if TYPE_CHECKING:
    import torch

    from onebit.models import OneBitForCausalLM

__all__ = ["ROUNDED_LEVELS", "rounded_like"]

ROUNDED_LEVELS = ("float16", "int8", "int4")


@contextmanager
def rounded_like(model: OneBitForCausalLM, levels: Mapping[str, str]) -> Iterator[list[str]]:
    """Round the named modules' weights to `levels` (module name -> level) until the block ends; yields notes.

    Left alone: float32, which loses nothing, and modules with a quantiser of their own, which round themselves.
    """
    kept: list[tuple[torch.nn.Parameter, torch.Tensor]] = []
    notes: list[str] = []
    try:
        for name, level in levels.items():
            module = model.get_submodule(name)
            if level not in ROUNDED_LEVELS or getattr(module, "weight_quantizer", None) is not None:
                continue
            weight: torch.nn.Parameter = module.weight  # type: ignore[assignment]
            kept.append((weight, weight.data))
            weight.data = _rounded(weight.data, cast(Literal["float16", "int8", "int4"], level))
            notes.append(f"{name.removeprefix('model.')} is stored as {level}; the checkpoint was rounded likewise")
        yield notes
    finally:
        for weight, original in kept:
            weight.data = original


def _rounded(weight_VD: torch.Tensor, level: Literal["float16", "int8", "int4"]) -> torch.Tensor:
    from onebit.quant import WeightQuantizer, fake_quantize

    return fake_quantize(weight_VD, WeightQuantizer.for_level(level))
