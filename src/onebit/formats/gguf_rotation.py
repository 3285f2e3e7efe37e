"""Rotated inputs in GGUF, as Prism's fork of llama.cpp reads them: the keys ``prism.hadamard.*``.

Its rotation is ours (signs, then the normalised Walsh-Hadamard transform of each block); one block size serves the
whole file and there is one vector of signs for each width of inputs. ``weight_names`` are the matrices whose inputs are
turned, ``inverse_weight_names`` the tables whose rows are turned back after they are looked up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from onebit.errors import ConfigError, FormatError
from onebit.formats.description import ModelDescription
from onebit.formats.hadamard_section import SITES, Rotation, site_of, width_of
from onebit.formats.layout import Kind
from onebit.formats.onebit_file import OneBitFile

__all__ = ["read_rotation", "rotation_metadata"]

_KEY = "prism.hadamard"
_TRANSFORM, _AXIS = "normalized-sylvester-walsh-hadamard", "input-last-dimension"
_LARGEST_BLOCK = 1 << 16


def rotation_metadata(file: OneBitFile, names: Mapping[str, str]) -> dict[str, Any]:
    """The keys for a model whose tensors have these names in GGUF; none where no inputs are turned.

    Raises ConfigError for rotations of several block sizes, or of one width with different signs.
    """
    turned = [tensor for tensor in file.tensors.values() if tensor.turned]
    if not turned:
        return {}
    if file.description.tied_head and any(tensor.kind is Kind.TOKEN_EMBEDDING for tensor in turned):
        tables = [name for name, tensor in file.tensors.items() if tensor.kind is Kind.TOKEN_EMBEDDING]
        raise ConfigError(
            f"{tables[0]} is turned and is the head too, which Prism's files have apart; export to .1bit instead"
        )
    sites = {site_of(tensor.kind) for tensor in turned}
    rotations = {site: file.rotations[site] for site in sites if site is not None}
    blocks = sorted({rotation.block for rotation in rotations.values()})
    if len(blocks) != 1:
        raise ConfigError(
            f"the model turns blocks of {' and '.join(map(str, blocks))} inputs; Prism's files have one size: "
            f"train with --hadamard-block {blocks[0]}"
        )
    signs: dict[int, Rotation] = {}
    for site, rotation in rotations.items():
        width = width_of(site, file.description)
        if signs.setdefault(width, rotation).negative != rotation.negative:
            raise ConfigError(f"two sites of {width} inputs are turned with different signs; Prism's files have one")
    tables = [names[tensor.name] for tensor in turned if tensor.kind is Kind.TOKEN_EMBEDDING]
    return {
        f"{_KEY}.version": 1,
        f"{_KEY}.transform": _TRANSFORM,
        f"{_KEY}.axis": _AXIS,
        f"{_KEY}.sign_mode": "explicit",
        f"{_KEY}.block_size": blocks[0],
        f"{_KEY}.sign_widths": sorted(signs),
        f"{_KEY}.sign_values": np.concatenate([signs[width].signs(width) for width in sorted(signs)]).astype(np.int8),
        f"{_KEY}.weight_names": [names[tensor.name] for tensor in turned if tensor.kind is not Kind.TOKEN_EMBEDDING],
        **({f"{_KEY}.inverse_weight_names": tables} if tables else {}),
    }


def read_rotation(metadata: dict[str, Any], description: ModelDescription) -> tuple[dict[str, Rotation], set[str]]:
    """(rotation by site, names of turned tensors) of a file; both empty when it turns nothing."""
    if not any(key.startswith(f"{_KEY}.") for key in metadata):
        return {}, set()
    for key, known in (("version", (1,)), ("transform", (_TRANSFORM,)), ("axis", (_AXIS,))):
        given = metadata.get(f"{_KEY}.{key}", known[0])
        if given not in known:
            raise FormatError(f"{_KEY}.{key} is {str(given)[:60]!r}; onebit knows {known[0]!r}")
    block = metadata.get(f"{_KEY}.block_size")
    if not isinstance(block, int) or not 2 <= block <= _LARGEST_BLOCK or block & (block - 1):
        raise FormatError(f"{_KEY}.block_size is {str(block)[:20]}, expected a power of two from 2 to {_LARGEST_BLOCK}")
    if metadata.get(f"{_KEY}.gdn_v_grouped"):
        raise FormatError(f"{_KEY}.gdn_v_grouped: the model has gated delta nets, which .1bit does not have")
    signs = _read_signs(metadata)
    names = {name for key in ("weight_names", "inverse_weight_names") for name in _names(metadata, key)}
    rotations = {}
    for site in SITES:
        width = width_of(site, description)
        if width % block == 0 and width in signs:
            rotations[site] = Rotation.of(block, signs[width])
        elif width % block == 0 and not signs:
            rotations[site] = Rotation.of(block, np.ones(width, np.float32))
    return rotations, names


def _names(metadata: dict[str, Any], key: str) -> list[str]:
    names = metadata.get(f"{_KEY}.{key}", [])
    if not isinstance(names, list):
        raise FormatError(f"{_KEY}.{key} is no list of names")
    return names


def _read_signs(metadata: dict[str, Any]) -> dict[int, Any]:
    """float32 signs by width; empty for the mode `identity`."""
    mode = metadata.get(f"{_KEY}.sign_mode", "identity")
    if mode == "identity":
        return {}
    widths, values = metadata.get(f"{_KEY}.sign_widths"), metadata.get(f"{_KEY}.sign_values")
    if mode != "explicit" or not isinstance(widths, np.ndarray) or not isinstance(values, np.ndarray):
        raise FormatError(
            f"{_KEY}.sign_mode is {str(mode)[:20]!r}; expected identity, or explicit with widths and values"
        )
    sizes = [int(width) for width in widths]
    if min(sizes, default=0) < 1 or sum(sizes) != values.size or not np.isin(values, (-1, 1)).all():
        raise FormatError(f"{_KEY}.sign_values: {values.size} values, expected +1 or -1 for widths of {sizes[:8]}")
    ends = np.cumsum(sizes)
    return {size: values[end - size : end].astype(np.float32) for size, end in zip(sizes, ends, strict=True)}
