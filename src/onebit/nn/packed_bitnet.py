"""transformers' packed BitNet layers: the codes that they hold, as codes or as a float layer again.

Two classes hold them, known here by their names as nn needs no transformers: BitLinear, whose `weight_scale` is one
over the scale, and AutoBitLinear, whose `weight_scale` is the scale.

Shape suffixes: O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from onebit.nn.convertible import matching
from onebit.packing import bitnet
from onebit.quant import Quantized, WeightQuantizer, dequantize

__all__ = ["codes_of_packed", "forget_quantizer", "packed_layers", "replace_packed_with_linear"]


def packed_layers(model: nn.Module, exclude_patterns: Sequence[str] = ()) -> dict[str, nn.Module]:
    """transformers' BitNet layers that hold codes: packed ones, and those that were unpacked when they were loaded."""
    names = {module: name for name, module in model.named_modules()}
    excluded = matching(names, exclude_patterns)
    return {name: module for module, name in names.items() if _is_packed(module) and module not in excluded}


@torch.no_grad()
def codes_of_packed(module: nn.Module) -> Quantized:
    """Codes and the one scale of a packed layer."""
    stored, scale = module.weight, module.weight_scale
    assert isinstance(stored, Tensor)
    assert isinstance(scale, Tensor)
    is_inverse = type(module).__name__ == "BitLinear"
    codes_OI = bitnet.unpack(stored) if stored.dtype == torch.uint8 else stored.round().to(torch.int8)
    value = scale.float().reshape(())
    return Quantized(codes_OI, value.reciprocal() if is_inverse else value, WeightQuantizer())


@torch.no_grad()
def replace_packed_with_linear(model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Make an nn.Linear of codes * scale, in `dtype`, of every packed layer of `model`, in place."""
    for name, module in packed_layers(model).items():
        w_OI = dequantize(codes_of_packed(module)).to(dtype)
        bias = module.bias
        linear = nn.Linear(w_OI.shape[1], w_OI.shape[0], bias is not None, device="meta")
        linear.weight = nn.Parameter(w_OI)
        if isinstance(bias, Tensor):
            linear.bias = nn.Parameter(bias.detach().to(dtype))
        model.set_submodule(name, linear)
    forget_quantizer(model)
    return model


def forget_quantizer(model: nn.Module) -> None:
    """Drop what transformers keeps with a quantised model, and refuses to train it for."""
    for name in ("is_quantized", "hf_quantizer", "quantization_method"):
        if name in model.__dict__:
            del model.__dict__[name]
    config = getattr(model, "config", None)
    if config is not None and "quantization_config" in config.__dict__:
        del config.__dict__["quantization_config"]


def _is_packed(module: nn.Module) -> bool:
    has_scale = isinstance(module._buffers.get("weight_scale"), Tensor)
    kind, has_norm = type(module).__name__, getattr(module, "rms_norm", None) is not None
    return has_scale and not has_norm and kind in ("BitLinear", "AutoBitLinear")
