"""`compress()`: a model's quantised layers at four ternary codes a byte, and exactly back.

It is a file form of a checkpoint (names, bytes, what lies beside the weights), built from `packing`'s layouts, so it
lives among the formats; `.1bit` is for the engine, this one for whoever goes on in torch. A compressed state is a flat
dictionary of tensors, which safetensors holds as it is:

=================  ============================================================================================
name               tensor
=================  ============================================================================================
LAYER.codes        uint8 [O, bytes of a row]: layout ``ternary`` (4 codes a byte) or ``binary`` (8 a byte)
LAYER.shape        int64 [2]: O, I
LAYER.scale        float32 [] or [O], float16 [O, G]: w = codes * scale
LAYER.quantizer    uint8: the fields of the `WeightQuantizer` as JSON text in UTF-8
any other          as it was: biases, norms, embeddings, and matrices of other levels, in their own type
=================  ============================================================================================

Latents are not kept: what comes back is what the quantised model computes with, not what training could go on from to
the same losses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from onebit.errors import FormatError, OnebitError
from onebit.nn import BitLinear
from onebit.nn.quantized_state import check_shapes, from_state
from onebit.packing import binary, ternary
from onebit.quant import Quantized
from onebit.quant.exact_latents import latents_from_codes

__all__ = ["compress", "decompress", "latent_state", "quantized_layers", "quantized_state_of"]

_PARTS = ("codes", "scale", "quantizer")
State = dict[str, Tensor]


def compress(model_or_state: nn.Module | Mapping[str, Tensor]) -> State:
    """Pack a model's binary and ternary layers, or those of a state as `quantized_state_of` gives it.

    Raises OnebitError when there is no quantised layer, or when a latent is NaN or infinite.
    """
    state = quantized_state_of(model_or_state) if isinstance(model_or_state, nn.Module) else dict(model_or_state)
    layers = quantized_layers(state)
    if not layers:
        raise OnebitError(
            "nothing to compress: no layer has binary or ternary codes; give a model with BitLinear layers "
            "or its quantized_state_of, for a plain state does not say how it is quantised"
        )
    packed: dict[int, tuple[Tensor, Tensor]] = {}  # tied layers share their codes
    for name in layers:
        codes_OI = state[f"{name}.codes"]
        if id(codes_OI) not in packed:
            shape = torch.tensor(codes_OI.shape, dtype=torch.int64)
            packed[id(codes_OI)] = (_packing(_quantized(state, name)).pack(codes_OI), shape)
        state[f"{name}.codes"], state[f"{name}.shape"] = packed[id(codes_OI)]
    return state


def decompress(compressed: Mapping[str, Tensor]) -> State:
    """The quantised state that was compressed: the same codes, scales and other tensors, bit for bit.

    Raises FormatError, naming the layer, for codes that do not fit their shape or mean nothing.
    """
    state = dict(compressed)
    unpacked: dict[int, Tensor] = {}
    for name in quantized_layers(state):
        packed_OB, shape = state[f"{name}.codes"], state.pop(f"{name}.shape", None)
        try:
            if id(packed_OB) not in unpacked:
                unpacked[id(packed_OB)] = _unpack(_quantized(state, name), shape)
            state[f"{name}.codes"] = unpacked[id(packed_OB)]
            _check(_quantized(state, name))
        except OnebitError as error:
            raise FormatError(f"layer {name} of the compressed state is damaged: {error}") from None
    return state


def quantized_state_of(model: nn.Module) -> State:
    """`model.state_dict()` with LAYER.codes, LAYER.scale and LAYER.quantizer for the weight of each quantised layer.

    A weight that is tied to something which reads it as floats, such as an embedding, stays one.
    """
    state = dict(model.state_dict())
    readers: dict[int, list[Any]] = {}
    for module in model.modules():
        if isinstance(weight := getattr(module, "weight", None), nn.Parameter):
            readers.setdefault(id(weight), []).append(module)
    made: dict[int, State] = {}
    for name, layer in _coded_layers(model):
        specs = {getattr(reader, "weight_quantizer", None) for reader in readers[id(layer.weight)]}
        if specs == {layer.weight_quantizer} and f"{name}.weight" in state:
            if id(layer.weight) not in made:
                made[id(layer.weight)] = layer.get_quantized_state()
            del state[f"{name}.weight"]
            state |= {f"{name}.{part}": made[id(layer.weight)][part] for part in _PARTS}
    return state


def quantized_layers(state: Mapping[str, Tensor]) -> list[str]:
    """The names of the layers that a state has codes of, packed or not."""
    names = [name.removesuffix(".quantizer") for name in state if name.endswith(".quantizer")]
    return [name for name in names if all(f"{name}.{part}" in state for part in _PARTS)]


def latent_state(state: Mapping[str, Tensor]) -> State:
    """A state that the model with BitLinear layers loads: float32 latents that its quantisers read as these codes
    and scales. In a narrower type they could not give the same scales."""
    latents = dict(state)
    made: dict[int, Tensor] = {}
    for name in quantized_layers(state):
        quantized = _quantized(state, name)
        for part in _PARTS:
            del latents[f"{name}.{part}"]
        if id(quantized.codes_OI) not in made:
            made[id(quantized.codes_OI)] = latents_from_codes(quantized)
        latents[f"{name}.weight"] = made[id(quantized.codes_OI)]
    return latents


def _coded_layers(model: nn.Module) -> Iterator[tuple[str, BitLinear]]:
    """Every name of every binary or ternary layer; a layer that is used twice has two."""
    for name, module in model.named_modules(remove_duplicate=False):
        spec = getattr(module, "weight_quantizer", None)
        if isinstance(module, BitLinear) and spec is not None and (spec.is_ternary or spec.quantizer == "binary"):
            yield name, module


def _quantized(state: Mapping[str, Tensor], name: str) -> Quantized:
    return from_state({part: state[f"{name}.{part}"] for part in _PARTS}, None)[0]


def _packing(quantized: Quantized) -> Any:
    if quantized.spec.is_ternary:
        return ternary
    if quantized.spec.quantizer == "binary":
        return binary
    raise OnebitError(f"codes of quantizer {quantized.spec.quantizer!r} are neither binary nor ternary")


def _unpack(packed: Quantized, shape: Tensor | None) -> Tensor:
    """int8 [O, I] of the packed bytes that stand where codes will."""
    if shape is None or shape.dtype != torch.int64 or tuple(shape.shape) != (2,):
        raise FormatError("its shape is not there as two int64 numbers")
    rows, cols = shape.tolist()
    if cols < 1 or packed.codes_OI.ndim != 2 or packed.codes_OI.shape[0] != rows:
        raise FormatError(f"packed codes of shape {tuple(packed.codes_OI.shape)} cannot be those of {rows} x {cols}")
    codes_OI: Tensor = _packing(packed).unpack(packed.codes_OI, cols)
    return codes_OI


def _check(quantized: Quantized) -> None:
    check_shapes(quantized, None, quantized.codes_OI, None)
    dtype = torch.float16 if quantized.spec.granularity == "per_group" else torch.float32
    if quantized.scale.dtype != dtype or not bool(torch.isfinite(quantized.scale).all()):
        raise FormatError(f"its scales must be finite and {dtype}")
