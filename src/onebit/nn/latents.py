"""The latent weights of a model: which layers have them, and keeping them within reach of the thresholds."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from onebit.errors import ConfigError
from onebit.nn.bit_linear import BitLinear

__all__ = ["bit_layers", "clamp_latents"]


def bit_layers(model: nn.Module) -> Iterator[tuple[str, BitLinear]]:
    """(name, layer) of every BitLinear with a binary or ternary weight, in the model's order."""
    for name, module in model.named_modules():
        if isinstance(module, BitLinear) and module.weight_quantizer is not None:
            spec = module.weight_quantizer
            if spec.is_ternary or spec.quantizer == "binary":
                yield name, module


@torch.no_grad()
def clamp_latents(model: nn.Module, bound: float) -> None:
    """Clamp every latent weight to [-bound, +bound] in raw units, in place: far-off weights could never flip again."""
    if not bound > 0:
        raise ConfigError(f"latent_clamp_max is {bound}, expected a positive number or null")
    for _, layer in bit_layers(model):
        layer.weight.clamp_(-bound, bound)
