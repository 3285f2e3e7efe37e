"""A layer's quantised weight as a dictionary of tensors, and how large it is.

============  ====================================================================
name          tensor
============  ====================================================================
codes         int8 [O, I] (float16 values for the level float16)
scale         float32 [] or [O], float16 [O, G]: w = codes * scale
bias          [O], only where the layer has one
quantizer     uint8: the fields of the `WeightQuantizer` as JSON text in UTF-8
rotation      int64 [2], only where the layer turns its inputs: block size and seed
============  ====================================================================

All tensors, so that safetensors as well as ``torch.save`` can hold it and ``torch.load`` needs no pickle.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict

import torch
from torch import Tensor

from onebit.errors import OnebitError, nearest_name
from onebit.nn.hadamard import HadamardRotation
from onebit.quant import Quantized, WeightQuantizer

__all__ = ["bits_per_code", "check_shapes", "from_state", "memory_footprint", "rotation_from", "to_state"]

_NAMES = ("codes", "scale", "bias", "quantizer", "rotation")
_BITS = {"binary": 1.0, "int4": 4.0, "int8": 8.0, "float16": 16.0}


def bits_per_code(spec: WeightQuantizer) -> float:
    """1.58 for ternary, 1 for binary, the name's number for the other levels; scales not counted."""
    return _BITS.get(spec.quantizer, 1.58)


def memory_footprint(count: int, spec: WeightQuantizer) -> dict[str, float]:
    """Bytes of `count` weights; scales and bias are left out of every figure.

    original_fp32: as float32. quantized_1.58bit: at `bits_per_code`, which is 1.58 for ternary. compression_ratio: one
    over the other, 32 / 1.58 = 20.25 for ternary (an older guide says 8.2, which no reading of 1.58 bits gives).
    compression_ratio_practical: float32 over a byte a code, as `get_quantized_state` stores them: 4.
    """
    bits = bits_per_code(spec)
    stored_bits = 16.0 if spec.is_float16 else 8.0
    return {
        "original_fp32": 4 * count,
        "quantized_1.58bit": math.ceil(count * bits / 8),
        "compression_ratio": 32.0 / bits,
        "compression_ratio_practical": 32.0 / stored_bits,
    }


def to_state(quantized: Quantized, bias: Tensor | None, rotation: HadamardRotation | None = None) -> dict[str, Tensor]:
    """The dictionary of the module's table; tensors of their own."""
    text = json.dumps(asdict(quantized.spec)).encode()
    state = {"codes": quantized.codes_OI.contiguous(), "scale": quantized.scale.contiguous()}
    if bias is not None:
        state["bias"] = bias.detach().clone()
    if rotation is not None:
        state["rotation"] = torch.tensor([rotation.block_size, rotation.seed])
    return {**state, "quantizer": torch.tensor(list(text), dtype=torch.uint8)}


def from_state(state: Mapping[str, Tensor], spec: WeightQuantizer | None) -> tuple[Quantized, Tensor | None]:
    """Codes, scales and bias of a dictionary; spec: the quantiser where the dictionary names none."""
    for name in state:
        if name not in _NAMES:
            raise OnebitError(f"a quantised state has no '{name}'{nearest_name(name, _NAMES)}")
    for name in ("codes", "scale"):
        if name not in state:
            raise OnebitError(f"the quantised state has no '{name}'; expected what get_quantized_state gives")
    if "quantizer" in state:
        spec = _spec_from(state["quantizer"])
    if spec is None:
        raise OnebitError("the quantised state names no quantiser, and neither does the layer")
    return Quantized(state["codes"], state["scale"], spec), state.get("bias")


def rotation_from(state: Mapping[str, Tensor], width: int, device: torch.device) -> HadamardRotation | None:
    """The rotation that a dictionary names, for `width` inputs."""
    if "rotation" not in state:
        return None
    block_size, seed = state["rotation"].tolist()
    return HadamardRotation(width, block_size, seed, device)


def _spec_from(text: Tensor) -> WeightQuantizer:
    try:
        return WeightQuantizer(**json.loads(bytes(text.tolist())))
    except (ValueError, TypeError) as error:
        raise OnebitError(f"the quantised state's 'quantizer' cannot be read: {error}") from None


def check_shapes(quantized: Quantized, bias: Tensor | None, weight: Tensor, layer_bias: Tensor | None) -> None:
    """Raise OnebitError unless codes, scale and bias are those of a layer with this weight and bias."""
    spec, (rows, cols) = quantized.spec, weight.shape
    groups = -(-cols // spec.group_size) if spec.group_size is not None else 0
    scale_shape = {"per_tensor": (), "per_row": (rows,), "per_group": (rows, groups)}[spec.granularity]
    wanted = [("codes", quantized.codes_OI, (rows, cols)), ("scale", quantized.scale, scale_shape)]
    if (bias is None) != (layer_bias is None):
        has, lacks = ("layer", "quantised state") if bias is None else ("quantised state", "layer")
        raise OnebitError(f"the {has} has a bias, the {lacks} has none; give both one or neither")
    if bias is not None:
        wanted.append(("bias", bias, (rows,)))
    for name, tensor, shape in wanted:
        if tuple(tensor.shape) != shape:
            raise OnebitError(f"the quantised state's '{name}' has shape {tuple(tensor.shape)}, expected {shape}")
