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
from onebit.nn.schedule import Schedule

__all__ = [
    "BitEmbedding",
    "BitLinear",
    "ConversionReport",
    "LayerNorm",
    "RMSNorm",
    "Schedule",
    "bit_layers",
    "clamp_latents",
    "replace_linear_with_bitlinear",
    "replace_linear_with_bitnet_linear",
]
