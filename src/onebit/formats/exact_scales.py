"""``onebit_scales.safetensors`` beside a transformers model: what its own files cannot say exactly.

1 / scale has no float32 for every scale, an int8 table becomes floats, and neither says which codes it was made of.
This small file has the scales of every tensor of codes and how they are laid out, so that the model comes back bit for
bit. transformers does not look at it. It counts only where codes times scales are the weights beside it, bit for bit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from onebit.errors import FormatError
from onebit.formats.layout import RUN_LAYOUT, Activation, Granularity, Layout
from onebit.formats.onebit_file import OneBitFile
from onebit.formats.stored_tensor import StoredTensor

__all__ = ["NAME", "ExactScales", "read_scales", "write_scales"]

NAME = "onebit_scales.safetensors"
_LAYOUT_OF = {"ternary": Layout.TERNARY, "binary": Layout.BINARY, "int8": Layout.INT8, "int4": Layout.INT4}
_LARGEST_FILE = 1 << 30


def write_scales(folder: Path, file: OneBitFile) -> None:
    """Write the scales of a model into the folder."""
    scales: dict[str, NDArray[Any]] = {}
    about: dict[str, dict[str, Any]] = {}
    for name, tensor in file.tensors.items():
        if tensor.layout.is_float or tensor.turned:  # turned back, weights are on no grid
            if tensor.activation:
                about[name] = {"activation": tensor.activation.name.lower()}
            continue
        geometry = tensor.geometry
        scale = tensor.scales()
        scales[name] = scale.astype(np.float16) if geometry.granularity is Granularity.PER_GROUP else scale
        about[name] = {
            "level": tensor.level,
            "granularity": geometry.granularity.name.lower(),
            "group_size": geometry.group_size,
            "activation": tensor.activation.name.lower(),
        }
    save_file(scales, folder / NAME, metadata={"onebit": json.dumps(about)})


class ExactScales:
    """The scales of a folder, by the names of tensors in a ``.1bit`` file."""

    def __init__(self, about: dict[str, dict[str, Any]], scales: dict[str, NDArray[Any]]) -> None:
        self.about, self.scales = about, scales

    def activation(self, name: str) -> Activation | None:
        """What the tensor's inputs are rounded to; None where the file does not say."""
        known = {entry.name.lower(): entry for entry in Activation}
        said = self.about.get(name, {}).get("activation")
        if said is not None and said not in known:
            raise FormatError(f"{NAME}: activation {str(said)[:20]!r} of {name}, expected one of {', '.join(known)}")
        return None if said is None else known[said]

    def codes_of(
        self, name: str, w_OI: Tensor
    ) -> tuple[NDArray[np.int8], NDArray[Any], Layout, Granularity, int] | None:
        """(codes, scale, layout, granularity, group size) of weights, in the dtype they are stored in; None where the
        file has no scales for them. Raises FormatError when the weights are not those that it belongs to."""
        if name not in self.scales:
            return None
        about, scale = self.about[name], self.scales[name]
        layout = _LAYOUT_OF.get(str(about.get("level")))
        names = {entry.name.lower(): entry for entry in Granularity}
        granularity, group = names.get(str(about.get("granularity"))), about.get("group_size")
        if layout is None or granularity in (None, Granularity.NONE) or not isinstance(group, int):
            raise FormatError(f"{NAME} does not say what the scales of {name} are")
        rows, cols = w_OI.shape
        wanted = {Granularity.PER_TENSOR: (), Granularity.PER_ROW: (rows,)}
        shape = wanted.get(granularity, (rows, -(-cols // max(group, 1))))
        if scale.shape != shape or not np.isfinite(scale).all() or not (scale > 0).all():
            raise FormatError(f"{NAME}: the scales of {name} have shape {scale.shape}, expected {shape}, positive")
        whole_OI = _spread(torch.from_numpy(scale.astype(np.float32)), group, cols)
        codes_OI = (w_OI.float() / whole_OI).round().clamp(-127, 127)
        if not torch.equal((codes_OI * whole_OI).to(w_OI.dtype), w_OI):
            raise FormatError(
                f"{NAME}: codes times scales are not the weights of {name}: one of the two was changed; "
                f"delete {NAME} to read the weights as they are"
            )
        return codes_OI.to(torch.int8).numpy(), scale, layout, granularity, group


def _spread(scale: Tensor, group: int, cols: int) -> Tensor:
    if scale.ndim == 0:
        return scale
    return scale[:, None] if scale.ndim == 1 else scale.repeat_interleave(group, dim=1)[:, :cols]


def read_scales(folder: Path) -> ExactScales | None:
    """The scales in a folder; None where there are none. Raises FormatError for a damaged file."""
    path = folder / NAME
    if not path.is_file():
        return None
    if path.stat().st_size > _LARGEST_FILE:
        raise FormatError(f"{path} has {path.stat().st_size} bytes, far more than scales take")
    try:
        with safe_open(path, framework="np") as file:
            about = json.loads((file.metadata() or {}).get("onebit", ""))
            scales = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise FormatError(f"{path}: not what onebit writes, or damaged: {error}") from None
    if not isinstance(about, dict) or not all(isinstance(entry, dict) for entry in about.values()):
        raise FormatError(f"{path} does not say what its scales are of")
    if unknown := scales.keys() - about.keys():
        raise FormatError(f"{path} does not say what the scales of {min(unknown)} are")
    return ExactScales(about, scales)


def in_layout(tensor: StoredTensor, layout: str) -> StoredTensor:
    """A row layout as it is (exchange), or in tiles (run)."""
    return tensor.with_layout(RUN_LAYOUT.get(tensor.layout, tensor.layout)) if layout == "run" else tensor
