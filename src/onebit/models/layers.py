"""The building blocks that the decoder's modules share: a quantised projection and a norm, as the config asks."""

from __future__ import annotations

from torch import nn

from onebit.models.config import OneBitConfig
from onebit.nn import BitLinear, LayerNorm, RMSNorm, Schedule

__all__ = ["make_norm", "make_projection"]


def make_projection(
    config: OneBitConfig, name: str, in_features: int, out_features: int, *, bias: bool, schedule: Schedule | None
) -> BitLinear:
    """The linear layer `name` ("layers.0.mlp.up_proj", "lm_head") at the level the config gives it."""
    return BitLinear(
        in_features,
        out_features,
        bias,
        quantizer=config.weight_quantizer(name),
        activation_quantizer=config.activation_quantizer_of(name),
        ste_scale_factor=config.ste_scale_factor,
        schedule=schedule,
    )


def make_norm(config: OneBitConfig) -> nn.Module:
    """A norm over the hidden size: RMSNorm with use_subln, else LayerNorm."""
    if config.use_subln:
        return RMSNorm(config.hidden_size, config.norm_eps)
    return LayerNorm(config.hidden_size, config.norm_eps)
