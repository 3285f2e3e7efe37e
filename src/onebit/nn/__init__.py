"""Layers for 1-bit and 1.58-bit models, the schedule of the soft regimes, and the conversion of other models."""

from onebit.nn.bit_embedding import BitEmbedding
from onebit.nn.bit_linear import BitLinear
from onebit.nn.conversion import (
    ConversionReport,
    replace_linear_with_bitlinear,
    replace_linear_with_bitnet_linear,
)
from onebit.nn.latents import bit_layers, clamp_latents
from onebit.nn.norms import LayerNorm, RMSNorm
from onebit.nn.pure_conversion import PureConversionReport, replace_linear_with_pure1bit_linear
from onebit.nn.pure_linear import Pure1BitLinear
from onebit.nn.pure_restoration import replace_pure1bit_linear_with_bitlinear
from onebit.nn.pure_training import (
    Pure1BitTrainingHelper,
    create_pure1bit_optimizer,
    pure1bit_training_step,
    pure_weights,
    shard_pure_weights,
)
from onebit.nn.pure_weight import PureWeight
from onebit.nn.schedule import Schedule

__all__ = [
    "BitEmbedding",
    "BitLinear",
    "ConversionReport",
    "LayerNorm",
    "Pure1BitLinear",
    "Pure1BitTrainingHelper",
    "PureConversionReport",
    "PureWeight",
    "RMSNorm",
    "Schedule",
    "bit_layers",
    "clamp_latents",
    "create_pure1bit_optimizer",
    "pure1bit_training_step",
    "pure_weights",
    "replace_linear_with_bitlinear",
    "replace_linear_with_bitnet_linear",
    "replace_linear_with_pure1bit_linear",
    "replace_pure1bit_linear_with_bitlinear",
    "shard_pure_weights",
]
