"""A model converted, counted and handed on: the wrapper of the phase 4 guide, and its way back to a float model.

The guide writes checkpoints with ``torch.save`` under the name of safetensors; `onebit.formats.phase4_file` writes
real ones. It gives 8.2 for the compression of 1.58 bits; `compression_stats` counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from onebit.nn.bit_embedding import BitEmbedding
from onebit.nn.bit_linear import BitLinear, weight_quantizer_from
from onebit.nn.conversion import ConversionReport, replace_linear_with_bitlinear
from onebit.nn.quantized_state import bits_per_code
from onebit.nn.schedule import Schedule
from onebit.quant import (
    ActivationQuantizer,
    Granularity,
    Quantized,
    WeightQuantizer,
    dequantize,
    fake_quantize,
    quantize,
    weight_codes,
)

__all__ = ["BitNetQuantizer", "CompressedModel", "Phase4Config", "compression_stats", "dequantized_state_dict"]


@dataclass(frozen=True, kw_only=True)
class Phase4Config:
    """What to convert and how. weight_sparsity_threshold: the share of the smallest weights that becomes 0, None for
    absmean. exclude_patterns: as in `replace_linear_with_bitlinear`.
    """

    weight_sparsity_threshold: float | None = 0.1
    exclude_patterns: Sequence[str] | None = None
    granularity: Granularity = "per_tensor"
    group_size: int | None = None
    activation_quantizer: ActivationQuantizer = "int8"


class BitNetQuantizer:
    """The weight quantiser that a `Phase4Config` describes; `spec` is what the layers get."""

    def __init__(self, config: Phase4Config) -> None:
        self.config = config
        spec = weight_quantizer_from("absmean", config.granularity, config.group_size, config.weight_sparsity_threshold)
        assert spec is not None  # a name was given
        self.spec: WeightQuantizer = spec

    def quantize(self, w_OI: Tensor) -> Quantized:
        """Codes and scales of a float matrix [O, I]; OnebitError for NaN and infinity."""
        return quantize(w_OI, self.spec)

    def dequantize(self, quantized: Quantized) -> Tensor:
        """codes * scale as float32 [O, I]."""
        return dequantize(quantized)


class CompressedModel(nn.Module):
    """`base_model` with its linear layers converted in place; calls go to it unchanged.

    use_bitlinear: the layers become BitLinear and quantise in every forward pass, trainable straight-through. False:
    the weights are put on their grid once and the layers stay as they are; training moves them off it.
    """

    def __init__(
        self, base_model: nn.Module, quantizer: BitNetQuantizer, config: Phase4Config, use_bitlinear: bool = True
    ) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.config = config
        converted = replace_linear_with_bitlinear(
            base_model,
            exclude_patterns=config.exclude_patterns,
            quantizer=quantizer.spec,
            activation_quantizer=config.activation_quantizer,
        )
        self._stats: dict[str, float] | None = None
        if not use_bitlinear:
            self._stats = compression_stats(converted)
            _put_on_grid(converted)
        self.base_model = converted

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.base_model(*args, **kwargs)

    def get_compression_stats(self) -> dict[str, float]:
        """`compression_stats` of the model, as it is now; as it was when put on the grid without BitLinear."""
        return compression_stats(self.base_model) if self._stats is None else dict(self._stats)

    def dequantized_state_dict(self, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
        """`dequantized_state_dict` of the base model."""
        return dequantized_state_dict(self.base_model, dtype)


@torch.no_grad()
def compression_stats(model: nn.Module) -> dict[str, float]:
    """The size of a whole model with its BitLinear weights as codes, in bytes, beside all of it in float32.

    original_fp32, quantized_1.58bit, compression_ratio, compression_ratio_practical: as in `memory_footprint`, but for
    every parameter; scales are counted as stored, and what is not quantised in its own type. quantized_layers,
    quantized_weights, total_weights: counts. zeros: the share of codes that are 0.
    """
    read = [module for module in model.modules() if isinstance(module, (BitLinear, BitEmbedding))]
    weights = {id(layer.weight): layer for layer in read if layer.weight_quantizer}  # a tied weight counts once
    kept = {id(p): p for p in model.parameters() if id(p) not in weights}
    kept_bytes = sum(p.numel() * p.element_size() for p in kept.values())
    bits = stored = zeros = 0.0
    for layer in weights.values():
        spec = layer.weight_quantizer
        assert spec is not None
        codes_OI, scale = weight_codes(layer.weight, spec)
        scale_bytes = scale.numel() * (2 if spec.granularity == "per_group" else 4)
        bits += layer.weight.numel() * bits_per_code(spec) + 8 * scale_bytes
        stored += layer.weight.numel() * (2 if spec.is_float16 else 1) + scale_bytes
        zeros += float((codes_OI == 0).sum())
    quantized = sum(layer.weight.numel() for layer in weights.values())
    total = quantized + sum(p.numel() for p in kept.values())
    small = kept_bytes + math.ceil(bits / 8)
    return {
        "original_fp32": 4 * total,
        "quantized_1.58bit": small,
        "compression_ratio": 4 * total / max(small, 1),
        "compression_ratio_practical": 4 * total / max(kept_bytes + stored, 1),
        "quantized_layers": len(weights),
        "quantized_weights": quantized,
        "total_weights": total,
        "zeros": zeros / max(quantized, 1),
    }


@torch.no_grad()
def dequantized_state_dict(model: nn.Module, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    """The state that the model's class had before conversion, with codes * scale for weights, in `dtype`.

    For whoever trains or runs on without BitLinear; nothing quantises the activations there. Rounding codes * scale
    again gives the same codes but smaller scales, so keep the latents to go on with quantised training.
    """
    report = model.__dict__.get("conversion_report")
    transposed = set(report.transposed) if isinstance(report, ConversionReport) else set()
    state: dict[str, Tensor] = {}
    layers = dict(model.named_modules(remove_duplicate=False))
    for name, tensor in model.state_dict().items():
        owner, _, leaf = name.rpartition(".")
        layer = layers.get(owner)
        if isinstance(layer, (BitLinear, BitEmbedding)) and leaf == "weight" and layer.weight_quantizer is not None:
            w_OI = fake_quantize(layer.weight, layer.weight_quantizer)
            w_OI = (w_OI if layer.rotation is None else layer.rotation.inverse(w_OI)).to(dtype)
            state[name] = w_OI.t().contiguous() if owner in transposed else w_OI
        elif not isinstance(layer, Schedule):
            state[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return state


@torch.no_grad()
def _put_on_grid(model: nn.Module) -> None:
    """Give every BitLinear its rounded weights and make it an nn.Linear again."""
    for module in list(model.modules()):
        if isinstance(module, BitLinear) and module.weight_quantizer is not None:
            module.weight.copy_(fake_quantize(module.weight, module.weight_quantizer))
            for name in ("weight_quantizer", "activation_quantizer", "ste_scale_factor", "schedule", "rotation"):
                del module.__dict__[name]
            module.__class__ = nn.Linear  # type: ignore[assignment]
