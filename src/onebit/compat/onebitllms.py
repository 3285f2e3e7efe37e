"""The names of onebitllms 0.0.4, on any device: its kernels need CUDA and triton, these do not.

Ties round to even here, half up there; a weight lies on one about never. A quantised head, biases and norms are never
packed. Its command `convert IN OUT` is `onebit convert IN OUT`, `convert_in_bf16` is `onebit convert IN OUT --to bf16`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from onebit import nn as onebit_nn
from onebit.formats.bitnet_folder import convert_to_bf16, quantize_to_1bit
from onebit.nn import create_pure1bit_optimizer, pure1bit_training_step, replace_linear_with_pure1bit_linear
from onebit.quant import WeightQuantizer, fake_quantize, fake_quantize_activations

__all__ = [
    "BitNetLinear",
    "activation_quant_triton",
    "convert_to_bf16",
    "create_pure1bit_optimizer",
    "pure1bit_training_step",
    "quantize_to_1bit",
    "replace_linear_with_bitnet_linear",
    "replace_linear_with_pure1bit_linear",
    "weight_quant_triton",
]


class BitNetLinear(onebit_nn.BitLinear):
    """`onebit.BitLinear` with BitNet's defaults, and no bias unless asked for."""

    def __init__(self, in_features: int, out_features: int, bias: bool = False, **options: Any) -> None:
        super().__init__(in_features, out_features, bias, **options)


def replace_linear_with_bitnet_linear(model: nn.Module, previous_dtype: torch.dtype | None = None) -> nn.Module:
    """`onebit.replace_linear_with_bitnet_linear`; previous_dtype is accepted and not needed."""
    return onebit_nn.replace_linear_with_bitnet_linear(model)


def weight_quant_triton(w_2d: Tensor, block_size: int = 256) -> Tensor:
    """codes * scale of a weight matrix, ternary with one scale, in its own type; block_size is not needed."""
    return fake_quantize(w_2d, WeightQuantizer()).to(w_2d.dtype)


def activation_quant_triton(x: Tensor) -> Tensor:
    """x on its grid of 8 bits per token, in its own type."""
    return fake_quantize_activations(x, "int8").to(x.dtype)
