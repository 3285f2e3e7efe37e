"""Checkpoints of pure training: transformers folders whose layers hold codes and counters in the place of latents.

`onebit sft --pure` writes them while it runs; what it leaves at its end are latents. Whatever reads latents reads a
checkpoint too, because its codes become latents that round to them when it is loaded.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
from torch import nn

from onebit.errors import DataError, OnebitError
from onebit.models.weight_files import read_tensors, tensor_names
from onebit.nn import bit_layers
from onebit.nn.pure_restoration import latents_of, pure_weight_from

__all__ = ["fill_with_codes", "unreadable_codes", "weights_of_codes"]

_CODES, _COUNTERS = ".codes", ".counters"


def weights_of_codes(folder: Path) -> frozenset[str]:
    """The names of the weights, ``layer.weight``, that a folder holds as codes and counters; none for latents."""
    names = tensor_names(folder)
    weights = (name.removesuffix(_CODES) for name in names if name.endswith(f".weight{_CODES}"))
    return frozenset(weight for weight in weights if weight + _COUNTERS in names)


def unreadable_codes(folder: Path | str) -> str:
    """What to tell who gives a folder of codes whose configuration does not say how layers are read."""
    return (
        f"'{folder}' holds codes and counters of pure training, but its config.json does not say how its layers are "
        "read; convert the model that the training began with as it did (replace_linear_with_pure1bit_linear), load "
        "this folder's weights into it with load_state_dict, and give it to onebit.formats.export.from_model or to "
        "replace_pure1bit_linear_with_bitlinear; checkpoints of onebit sft --pure need none of this"
    )


@torch.no_grad()
def fill_with_codes(model: nn.Module, folder: Path, weights: Collection[str]) -> None:
    """Give the BitLinears of `model` latents that round to the codes and scales of a folder's `weights`.

    Latents have the layers' type. Raises DataError when the folder's weights are not those of the BitLinears.
    """
    layers = {f"{name}.weight": layer for name, layer in bit_layers(model)}
    if wrong := sorted(set(weights) - layers.keys()):
        raise DataError(
            f"'{folder}' holds codes of {len(wrong)} layers that its config.json does not turn ternary or binary "
            f"({wrong[0]}); it is no checkpoint of onebit sft --pure, or one that was changed"
        )
    tensors = read_tensors(folder, [n for n in tensor_names(folder) if n.rpartition(".")[0] in weights])
    for name in weights:
        layer = layers[name]
        spec = layer.weight_quantizer
        assert spec is not None
        state = {key.removeprefix(f"{name}."): tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")}
        try:
            latents_OI = latents_of(pure_weight_from(state, spec), layer.weight.dtype)
        except OnebitError as error:
            raise DataError(f"'{folder}': {name} cannot be read: {error}") from None
        if latents_OI.shape != layer.weight.shape:
            raise DataError(
                f"'{folder}': {name} has codes {tuple(latents_OI.shape)}, expected {tuple(layer.weight.shape)}"
            )
        layer.weight.copy_(latents_OI)
