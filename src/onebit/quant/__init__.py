"""Tensor maths: float -> codes and scales and back, fake quantisation, straight-through estimator, soft regimes.

Pure functions on torch tensors; no module, no state, no file.
"""

from onebit.quant.activations import (
    ActivationQuantizer,
    activation_codes,
    fake_quantize_activations,
    quantize_activations,
)
from onebit.quant.soft import add_arenas_residual, has_soft_codes, lambda_mix, soft_codes, soft_quantize
from onebit.quant.spec import GROUP_SIZES, INT4_GROUP_SIZE, Granularity, Quantized, QuantizerName, WeightQuantizer
from onebit.quant.straight_through import straight_through
from onebit.quant.weights import dequantize, expand_scale, fake_quantize, quantize, weight_codes

__all__ = [
    "GROUP_SIZES",
    "INT4_GROUP_SIZE",
    "ActivationQuantizer",
    "Granularity",
    "Quantized",
    "QuantizerName",
    "WeightQuantizer",
    "activation_codes",
    "add_arenas_residual",
    "dequantize",
    "expand_scale",
    "fake_quantize",
    "fake_quantize_activations",
    "has_soft_codes",
    "lambda_mix",
    "quantize",
    "quantize_activations",
    "soft_codes",
    "soft_quantize",
    "straight_through",
    "weight_codes",
]
