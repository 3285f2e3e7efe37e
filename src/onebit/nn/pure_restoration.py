"""From codes back to latents: what was trained purely becomes a model of BitLinears, which everything else reads.

Checkpoints of latents, evaluation and export know BitLinear. The latents are made so that the layer's quantiser gives
exactly the codes and scales that were trained; as far as it allows they lie where the counters say, so that hybrid or
pure training can go on from there.

Shape suffixes: O outputs, I inputs.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from onebit.nn.bit_linear import BitLinear
from onebit.nn.pure_linear import Pure1BitLinear
from onebit.nn.pure_weight import PureWeight
from onebit.quant import dequantize
from onebit.quant.exact_latents import latents_from_codes
from onebit.quant.weights import expand_scale

__all__ = ["replace_pure1bit_linear_with_bitlinear"]


@torch.no_grad()
def replace_pure1bit_linear_with_bitlinear(model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Make a BitLinear of every Pure1BitLinear of `model`, in place, and return the same model.

    It computes with the same codes; scales are those of the latents' type, float32 unless told otherwise. End the
    training first (`helper.cleanup()`). The quantiser "sparsity" becomes absmean, as the share of zeros was free.
    Raises OnebitError when latents of `dtype` are too coarse for a scale.
    """
    parameters: dict[PureWeight, nn.Parameter] = {}
    for module in list(model.modules()):
        if isinstance(module, Pure1BitLinear):
            weight = module.weight
            if weight not in parameters:
                parameters[weight] = nn.Parameter(_latents(weight, dtype), weight.log_scale.requires_grad)
            _become_bitlinear(module, parameters[weight])
    return model


def _latents(weight: PureWeight, dtype: torch.dtype) -> Tensor:
    quantized = weight.quantized()
    spec = replace(quantized.spec, quantizer="absmean", sparsity=None) if quantized.spec.sparsity else quantized.spec
    quantized = replace(quantized, spec=spec)
    near_OI = None
    if spec.quantizer in ("absmean", "threshold") and weight.counter.remembers:
        rest_OI = weight.counts().float() / (2 * weight.counter.threshold)
        near_OI = dequantize(quantized) + rest_OI * expand_scale(quantized.scale.float(), spec, weight.in_features)
    tolerance = 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps
    return latents_from_codes(quantized, near_OI, dtype, tolerance)


def _become_bitlinear(module: Pure1BitLinear, parameter: nn.Parameter) -> None:
    spec = module.weight.spec
    if spec.sparsity:
        spec = replace(spec, quantizer="absmean", sparsity=None)
    pattern = BitLinear(
        module.in_features,
        module.out_features,
        module.bias is not None,
        quantizer=spec,
        activation_quantizer=module.activation_quantizer,
        rotation=module.rotation,
        device="meta",
    )
    del module._modules["weight"]
    module._parameters["weight"] = parameter
    module.__class__ = BitLinear  # type: ignore[assignment]
    for name, value in pattern.__dict__.items():
        module.__dict__.setdefault(name, value)
