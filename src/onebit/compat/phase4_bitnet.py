"""The names of the phase 4 guide, with its defaults: a tenth of the weights is 0 unless asked otherwise.

Where that guide is off, this does the right thing. Files called safetensors are safetensors (and what ``torch.save``
wrote under that name is read, without pickle); the compression of 1.58 bits is 20.25, not 8.2; a pattern that names
no module of the model is an error and not ignored, except for the customary names of embeddings and heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from onebit import nn as onebit_nn
from onebit.formats.phase4_file import load_phase4_model, save_phase4_model
from onebit.nn.compressed_model import BitNetQuantizer, CompressedModel, Phase4Config
from onebit.quant import fake_quantize_activations, straight_through

__all__ = [
    "BitLinear",
    "BitNetQuantizer",
    "CompressedModel",
    "Phase4Config",
    "activation_quant",
    "apply_ste",
    "load_phase4_model",
    "replace_linear_with_bitlinear",
    "save_phase4_model",
]


class BitLinear(onebit_nn.BitLinear):
    """`onebit.BitLinear` with a tenth of the weights 0 by default; None for absmean."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        weight_sparsity_threshold: float | None = 0.1,
        **options: Any,
    ) -> None:
        super().__init__(
            in_features, out_features, bias, weight_sparsity_threshold=weight_sparsity_threshold, **options
        )


def replace_linear_with_bitlinear(
    module: nn.Module,
    weight_sparsity_threshold: float | None = 0.1,
    exclude_patterns: Sequence[str] | None = None,
    **options: Any,
) -> nn.Module:
    """`onebit.replace_linear_with_bitlinear` with a tenth of the weights 0 by default."""
    return onebit_nn.replace_linear_with_bitlinear(module, weight_sparsity_threshold, exclude_patterns, **options)


def activation_quant(x: Tensor) -> Tensor:
    """x on its grid of 8 bits per token (absmax), in x's type; no gradient: see `apply_ste`."""
    return fake_quantize_activations(x, "int8").to(x.dtype)


def apply_ste(x: Tensor, x_quantized: Tensor) -> Tensor:
    """x_quantized in the forward pass, the identity in the backward pass: straight-through."""
    return straight_through(x, x_quantized)
