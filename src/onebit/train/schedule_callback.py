"""What onebit does around each optimizer step: turn the soft regimes' dials, set the weight decay, clamp the latents.

Every value is a pure function of the step, so a resumed run needs nothing but the step to go on exactly.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from onebit.models import OneBitConfig
from onebit.nn import Schedule, clamp_latents
from onebit.optim import Decay, arenas, lambda_mix, soft_alpha, weight_decay

__all__ = ["ScheduleCallback", "dials"]

_INITIAL = "initial_weight_decay"


def dials(step: int, total_steps: int, config: OneBitConfig) -> dict[str, float]:
    """Return what `Schedule.set` takes at a step: lambda_, soft_alpha (0 is hard) and arenas."""
    return {
        "lambda_": lambda_mix(step, total_steps, config.lambda_warmup_fraction),
        "soft_alpha": soft_alpha(step, total_steps, config.anneal_fraction) or 0.0,
        "arenas": arenas(step, config.arenas_initial, config.arenas_anneal_steps),
    }


class ScheduleCallback(TrainerCallback):
    """Drives one model's `Schedule`, the weight decay of a two-stage run, and the clamp of the latents."""

    def __init__(self, config: OneBitConfig, lr_decay: Decay) -> None:
        self.config = config
        self.lr_decay: Decay = lr_decay
        self._schedules: list[Schedule] | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        for group in kw["optimizer"].param_groups:
            # Kept inside the group, hence inside the checkpoint: in the second stage the value itself is 0.
            group.setdefault(_INITIAL, group["weight_decay"])

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        step, total = state.global_step, state.max_steps
        for schedule in self._schedules_of(kw["model"]):
            schedule.set(**dials(step, total, self.config))
        if self.lr_decay == "two-stage":
            for group in kw["optimizer"].param_groups:
                group["weight_decay"] = weight_decay(step, group[_INITIAL], total, self.lr_decay)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any
    ) -> None:
        if self.config.latent_clamp_max is not None:
            clamp_latents(kw["model"], self.config.latent_clamp_max)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        # What is handed on after training is fully quantised.
        for schedule in self._schedules_of(kw["model"]):
            schedule.set()

    def _schedules_of(self, model: nn.Module) -> list[Schedule]:
        if self._schedules is None:
            self._schedules = [module for module in model.modules() if isinstance(module, Schedule)]
        return self._schedules
