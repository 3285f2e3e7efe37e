"""`onebit train --pure`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from onebit.errors import ConfigError
from onebit.models import OneBitConfig, OneBitForCausalLM
from onebit.nn import bit_layers, create_pure1bit_optimizer
from onebit.nn.pure_conversion import replace_bitlinear_with_pure1bit_linear
from onebit.optim.pure1bit_optimizer import Pure1BitOptimizer
from onebit.train.pure_options import PureOptions
from onebit.train.pure_run import PureRun
from onebit.train.settings import TrainSettings
from onebit.train.trainer import OneBitTrainer

__all__ = ["PureTrainer", "check_pure_config", "trial_optimizer", "without_latents"]

# What acts on latents alone, and how a configuration says that there is none of it.
_OF_LATENTS: dict[str, Any] = {
    "lambda_warmup_fraction": None,
    "anneal_fraction": 0.0,
    "arenas_initial": None,
    "latent_clamp_max": None,
}


class PureTrainer(PureRun, OneBitTrainer):
    """OneBitTrainer for a model whose layers become Pure1BitLinear while it trains."""

    def __init__(
        self,
        model: nn.Module,
        arguments: TrainingArguments,
        *,
        options: PureOptions,
        callbacks: list[Any],
        **rest: Any,
    ) -> None:
        optimizer = self.make_pure(model, arguments, options, callbacks)
        super().__init__(model, arguments, optimizer=optimizer, callbacks=callbacks, **rest)

    def warm_up_steps(self) -> int:
        """Steps in which the learning rate rises, by our schedule."""
        return self.learning_rate.warmup_steps


def without_latents(config: OneBitConfig, say: Callable[[str], None]) -> OneBitConfig:
    """The configuration without what acts on latents alone, which is said."""
    given = [name for name, nothing in _OF_LATENTS.items() if getattr(config, name) not in (None, nothing)]
    if not given:
        return config
    say(f"pure training has no latents: {', '.join(given)} of the configuration left out")
    return OneBitConfig.from_dict({**config.to_dict(), **{name: _OF_LATENTS[name] for name in given}})


def check_pure_config(config: OneBitConfig) -> None:
    """ConfigError for a model without codes, or with a share of zeros that is fixed."""
    with torch.device("meta"):
        model = OneBitForCausalLM(config)
    specs = [layer.weight_quantizer for _, layer in bit_layers(model)]
    if not specs:
        raise ConfigError("--pure trains ternary and binary codes, and this configuration has none; drop it")
    if any(spec is not None and spec.quantizer == "sparsity" for spec in specs):
        raise ConfigError("--pure cannot hold the share of zeros that the configuration fixes; drop one of them")


def trial_optimizer(model: nn.Module, settings: TrainSettings) -> Pure1BitOptimizer:
    """Make a copy of the run's model pure, to time its steps."""
    counter: Any = settings.pure_counter
    accumulation: Any = settings.pure_accumulation
    replace_bitlinear_with_pure1bit_linear(model, counter)
    steps = settings.accumulation_steps
    return create_pure1bit_optimizer(model, 1e-4, gradient_accumulation_steps=steps, accumulation=accumulation)[0]
