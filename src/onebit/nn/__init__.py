"""Layers for 1-bit and 1.58-bit models: BitLinear, BitEmbedding, norms, the schedule of the soft regimes."""

from onebit.nn.bit_embedding import BitEmbedding
from onebit.nn.bit_linear import BitLinear
from onebit.nn.latents import bit_layers, clamp_latents
from onebit.nn.norms import LayerNorm, RMSNorm
from onebit.nn.schedule import Schedule

__all__ = ["BitEmbedding", "BitLinear", "LayerNorm", "RMSNorm", "Schedule", "bit_layers", "clamp_latents"]
