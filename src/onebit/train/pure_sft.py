"""`onebit sft --pure`."""

from __future__ import annotations

from typing import Any

import torch

from onebit.errors import ConfigError
from onebit.nn import bit_layers
from onebit.train.pure_run import PureRun
from onebit.train.sft_settings import SftSettings
from onebit.train.sft_trainer import TernarySftTrainer

__all__ = ["PureSftTrainer"]


class PureSftTrainer(PureRun, TernarySftTrainer):
    """SFTTrainer for a model whose layers become Pure1BitLinear while it trains."""

    def __init__(self, settings: SftSettings, *, model: Any, args: Any, **rest: Any) -> None:
        if any(layer.weight_quantizer.quantizer == "sparsity" for _, layer in bit_layers(model)):  # type: ignore[union-attr]
            raise ConfigError(
                f"'{settings.model_name_or_path}' fixes its share of zeros (weight_sparsity_threshold), which --pure "
                "cannot: codes move one by one; drop --pure, or train a model without that field"
            )
        optimizer = self.make_pure(model, args, settings, rest["callbacks"])
        self._latents = torch.bfloat16 if settings.dtype == "bfloat16" else torch.float32
        super().__init__(model=model, args=args, optimizers=(optimizer, None), **rest)
