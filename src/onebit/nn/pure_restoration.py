"""From codes back to latents: what was trained purely becomes a model of BitLinears, which everything else reads.

Checkpoints of latents, evaluation and export know BitLinear. The latents are made so that the layer's quantiser gives
exactly the codes and scales that were trained; as far as it allows they lie where the counters say, so that hybrid or
pure training can go on from there.

Shape suffixes: O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from onebit.errors import OnebitError
from onebit.nn.bit_linear import BitLinear
from onebit.nn.pure_linear import Pure1BitLinear
from onebit.nn.pure_storage import packed_width
from onebit.nn.pure_weight import PureWeight
from onebit.quant import WeightQuantizer, dequantize
from onebit.quant.counters import counter_named
from onebit.quant.exact_latents import latents_from_codes
from onebit.quant.weights import expand_scale

__all__ = ["latents_of", "pure_weight_from", "replace_pure1bit_linear_with_bitlinear"]


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
                parameters[weight] = nn.Parameter(latents_of(weight, dtype), weight.log_scale.requires_grad)
            _become_bitlinear(module, parameters[weight])
    return model


@torch.no_grad()
def latents_of(weight: PureWeight, dtype: torch.dtype = torch.float32) -> Tensor:
    """Latents [O, I] of `dtype` that round to the weight's codes and scales, near to where its counters are.

    Scales come out as exactly as `latents_from_codes` can in float32. In bfloat16 those per group do too, and others
    to what one step of one latent makes of the mean: a 16-millionth for a matrix of 131,072. The quantiser "sparsity"
    is read as absmean.
    """
    quantized = weight.quantized()
    spec = replace(quantized.spec, quantizer="absmean", sparsity=None) if quantized.spec.sparsity else quantized.spec
    quantized = replace(quantized, spec=spec)
    near_OI = None
    if spec.quantizer in ("absmean", "threshold") and weight.counter.remembers:
        rest_OI = weight.counts().float() / (2 * weight.counter.threshold)
        near_OI = dequantize(quantized) + rest_OI * expand_scale(quantized.scale.float(), spec, weight.in_features)
    # What one step of one latent does to the mean of all that share a scale: of many, less than float32 tells apart.
    size = quantized.codes_OI.numel() if spec.granularity == "per_tensor" else spec.group_size or weight.in_features
    tolerance = 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps / size
    return latents_from_codes(quantized, near_OI, dtype, tolerance)


def pure_weight_from(state: Mapping[str, Tensor], spec: WeightQuantizer) -> PureWeight:
    """The weight whose entries of a state_dict these are, by `PureWeight`'s names; spec: how its layer is read.

    Raises OnebitError for entries that are missing or do not fit each other or the quantiser.
    """
    try:
        rows, cols, counters = state["row_moments"].numel(), state["column_moments"].numel(), state["counters"]
        width = cols if counters.dtype == torch.int8 else counters.shape[1]
        # Of two kinds with one width, in a matrix of two inputs or fewer, the one with more memory.
        kinds = {packed_width(cols, 2): "none", packed_width(cols, 4): "int4", cols: "int8"}
        weight = PureWeight(cols, rows, spec, counter_named(kinds[width]), counters.device)
        weight.load_state_dict(state)
    except (KeyError, RuntimeError) as error:
        raise OnebitError(f"not the codes and counters of a {spec.quantizer} weight: {error}") from None
    return weight


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
