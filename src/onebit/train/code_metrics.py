"""How the codes of a model look and move: the share of zeros, and how many flip in one optimizer step.

Measured at log steps only: the codes are taken before and after that one step, which costs two quantisations of the
weights and nothing at all on the steps between.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from onebit.nn import bit_layers
from onebit.quant import weight_codes
from onebit.train.sharding import whole

__all__ = ["CodeMetrics", "code_snapshot", "flip_share", "zero_share"]


@torch.no_grad()
def code_snapshot(model: nn.Module) -> list[Tensor]:
    """Return the codes of every binary and ternary layer, int8 [O, I] each, in the model's order."""
    snapshot = []
    for _, layer in bit_layers(model):
        assert layer.weight_quantizer is not None
        codes_OI, _ = weight_codes(whole(layer.weight), layer.weight_quantizer)
        snapshot.append(codes_OI.to(torch.int8))
    return snapshot


def zero_share(codes: list[Tensor]) -> float:
    """Return the share of codes that are 0, 0.0 for a model without codes."""
    return _share([(c == 0).sum() for c in codes], codes)


def flip_share(before: list[Tensor], after: list[Tensor]) -> float:
    """Return the share of codes that differ between two snapshots."""
    return _share([(a != b).sum() for a, b in zip(after, before, strict=True)], after)


def _share(counts: list[Tensor], codes: list[Tensor]) -> float:
    total = sum(c.numel() for c in codes)
    return float(torch.stack(counts).sum().item()) / total if total else 0.0


class CodeMetrics(TrainerCallback):
    """Holds `values` ({"zeros", "flip_rate"}) of the last log step; the trainer merges them into its log line."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self._before: list[Tensor] | None = None

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        if (state.global_step + 1) % args.logging_steps == 0:
            self._before = code_snapshot(kw["model"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        if self._before:
            after = code_snapshot(kw["model"])
            self.values = {"zeros": zero_share(after), "flip_rate": flip_share(self._before, after)}
        self._before = None
