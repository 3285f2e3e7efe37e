"""Codes and counters in the place of latents, until the model is saved: `onebit train --pure`, `onebit sft --pure`.

Checkpoints hold codes and counters, and resume to the same bits. The model in the output folder is one of latents that
round to exactly what was trained, so that evaluation, export and another training read it as any other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from onebit.errors import ConfigError
from onebit.nn import (
    create_pure1bit_optimizer,
    pure_weights,
    replace_pure1bit_linear_with_bitlinear,
    shard_pure_weights,
)
from onebit.nn.pure_conversion import replace_bitlinear_with_pure1bit_linear
from onebit.nn.pure_health import pure_warnings
from onebit.nn.pure_training import Pure1BitTrainingHelper
from onebit.optim.flip_budget import eta_from_flip_budget
from onebit.optim.pure1bit_optimizer import Pure1BitOptimizer
from onebit.train.checkpoints import AtomicCheckpoints
from onebit.train.progress import ProgressLines
from onebit.train.pure_options import PureOptions
from onebit.train.sharding import take_over_sharding

__all__ = ["PureRun", "say_rates"]

_FIRST_WARNING = 10  # steps


class PureRun(AtomicCheckpoints):
    """Stands before a Trainer, whose model it makes pure (`make_pure`) before that one's own __init__."""

    pure_optimizer: Pure1BitOptimizer
    helper: Pure1BitTrainingHelper

    def make_pure(self, model: nn.Module, args: Any, options: PureOptions, callbacks: list[Any]) -> Pure1BitOptimizer:
        """Replace the BitLinears, and return the optimizer that the Trainer is to be given."""
        counter: Any = options.pure_counter
        accumulation: Any = options.pure_accumulation
        replace_bitlinear_with_pure1bit_linear(model, counter)
        if take_over_sharding(args):  # FSDP cuts parameters, and codes are none; what is float stays whole, under DDP
            shard_pure_weights(model)
        self.pure_optimizer, self.helper = create_pure1bit_optimizer(
            model,
            args.learning_rate,
            eta=options.pure_eta,
            betas=(args.adam_beta1, args.adam_beta2),
            eps=args.adam_epsilon,
            weight_decay=args.weight_decay,
            seed=args.seed,
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            accumulation=accumulation,
        )
        if args.ddp_broadcast_buffers is None:
            args.ddp_broadcast_buffers = False  # codes and counters are alike already, and large
        self._latents = torch.float32
        self._flip_budget = options.pure_flip_budget
        self._progress = next(each for each in callbacks if isinstance(each, ProgressLines))
        self._warned: set[str] = set()
        return self.pure_optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """The Trainer's; with a flip budget, eta follows from what it does to the rate over the whole run."""
        scheduler: Any = super().create_scheduler(num_training_steps, optimizer)
        if self._flip_budget is not None:
            shape = getattr(scheduler, "lr_lambdas", None)
            if not shape:
                raise ConfigError(
                    f"--pure-flip-budget needs a schedule that is a function of the step, not "
                    f"'{self.args.lr_scheduler_type}'; use cosine, linear or constant, or --pure-eta"
                )
            eta = eta_from_flip_budget(self._flip_budget, map(shape[0], range(num_training_steps)))
            self.pure_optimizer.set_eta(eta)
            self._progress.say(
                f"flip budget {self._flip_budget:g} over {num_training_steps} steps: eta {eta:.3g} for all codes"
            )
        return scheduler

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add how codes and counters are to a line of training losses."""
        if "loss" in logs:
            told = self.helper.telemetry()
            self._warn(told)
            told["flip_rate"] = told.pop("flips")
            logs.update(told)
        super().log(logs, start_time)

    def warm_up_steps(self) -> int:
        """Steps in which the learning rate rises."""
        return int(self.args.get_warmup_steps(self.state.max_steps))

    def _warn(self, told: dict[str, float]) -> None:
        """Say once what leaves the healthy range, after the warm-up, in whose first steps nothing moves yet."""
        if self.state.global_step < max(self.warm_up_steps(), _FIRST_WARNING):
            return
        is_binary = all(weight.is_binary for weight in self.pure_optimizer.weights)
        for name, text in pure_warnings(told, is_binary=is_binary).items():
            if name not in self._warned:
                self._warned.add(name)
                self._progress.say(f"warning: {text}")

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the Trainer's, after all processes have given their rows."""
        model: Any = self.model
        self._save(output_dir, model.state_dict())

    def save_final(self, folder: Path, source: Path | None = None) -> None:
        """Make latents of the codes, of those in `source` if there is one, and put the model into `folder`."""
        if source is not None:
            self._load_from_checkpoint(str(source))
        self.helper.cleanup()
        model: Any = self.model
        replace_pure1bit_linear_with_bitlinear(model, self._latents)
        super().save_final(folder)


def say_rates(trainer: PureRun, progress: ProgressLines) -> None:
    """Tell both rates, and warn where the noise of rounding would drown the gradients."""
    weights = pure_weights(trainer.model).values()  # type: ignore[arg-type]
    etas = [float(trainer.pure_optimizer.eta(weight)) for weight in weights]
    counter, batches = next(iter(weights)).counter, trainer.args.gradient_accumulation_steps
    progress.say(
        f"pure training of {len(etas)} matrices with {counter.name} counters: learning rate "
        f"{trainer.args.learning_rate:g} for what is float, eta {min(etas):.3g} to {max(etas):.3g} for codes"
        + (f"; {batches} batches a step, summed in {trainer.pure_optimizer.accumulation}" if batches > 1 else "")
    )
    if counter.remembers and max(etas) * counter.threshold < 0.5:
        progress.say(
            f"warning: eta is small for {counter.name} counters, whose rounding is coarser than the steps; raise "
            "the learning rate or --pure-eta" + ("" if counter.name == "int8" else ", or use --pure-counter int8")
        )
