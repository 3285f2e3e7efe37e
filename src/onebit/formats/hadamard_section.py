"""Section HADAMARD of a ``.1bit`` file: by which signed Walsh-Hadamard rotations the inputs of matrices are turned.

A site is where inputs of one width are read: ``hidden`` by q, k, v, gate, up and the head (and the rows of the token
embedding are turned back from), ``attention`` by o, ``mlp`` by down. Whether a matrix is turned says its own record.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebit.errors import FormatError
from onebit.formats.description import ModelDescription, TensorPlan
from onebit.formats.layout import Kind

__all__ = ["SITES", "Rotation", "read_rotations", "rotation_at", "rotations_to_bytes", "site_of", "width_of"]

SITES = ("hidden", "attention", "mlp")
_HEAD = struct.Struct("<4I")
_SITE_OF = {
    **dict.fromkeys((Kind.TOKEN_EMBEDDING, Kind.HEAD, Kind.Q, Kind.K, Kind.V, Kind.GATE, Kind.UP), "hidden"),
    Kind.O: "attention",
    Kind.DOWN: "mlp",
}


@dataclass(frozen=True)
class Rotation:
    """Inputs times their signs, then each block times the Walsh-Hadamard matrix over sqrt(block).

    negative: a bit for each input, the first in the low bit of the first byte; 1 is -1. Bytes as in the file, padded
    with zeros to a multiple of 8.
    """

    block: int
    negative: bytes

    @classmethod
    def of(cls, block: int, signs: NDArray[np.float32]) -> Rotation:
        """From +1 and -1 for each input."""
        bits = np.packbits(signs < 0, bitorder="little").tobytes()
        return cls(block, bits + bytes(-len(bits) % 8))

    def signs(self, width: int) -> NDArray[np.float32]:
        """+1 or -1 for each of `width` inputs."""
        bits = np.unpackbits(np.frombuffer(self.negative, np.uint8), count=width, bitorder="little")
        return 1 - 2 * bits.astype(np.float32)


def site_of(kind: Kind) -> str | None:
    """Where a matrix reads its inputs; None for tensors that have none."""
    return _SITE_OF.get(kind)


def rotation_at(plan: TensorPlan, rotation: Any) -> dict[str, Rotation]:
    """{site: rotation} of a matrix from its layer's `HadamardRotation`, which is the same for all layers of a width."""
    site = site_of(plan.kind)
    assert site is not None
    return {site: Rotation.of(rotation.block_size, rotation.signs.float().cpu().numpy())}


def rotations_to_bytes(rotations: Mapping[str, Rotation]) -> bytes:
    """The section of rotations by site."""
    found = [rotations.get(site) for site in SITES]
    blocks = [0 if rotation is None else rotation.block for rotation in found]
    return _HEAD.pack(*blocks, 0) + b"".join(rotation.negative for rotation in found if rotation is not None)


def read_rotations(raw: bytes, description: ModelDescription) -> dict[str, Rotation]:
    """Rotations by site; FormatError for a section that does not fit the description."""
    if len(raw) < _HEAD.size:
        raise FormatError(f"section HADAMARD has {len(raw)} bytes, expected at least {_HEAD.size}")
    *blocks, reserved = _HEAD.unpack_from(raw)
    if reserved:
        raise FormatError("section HADAMARD: a reserved field is not zero; the file needs a newer onebit or is damaged")
    rotations, at = {}, _HEAD.size
    for site, block in zip(SITES, blocks, strict=True):
        if block:
            width = width_of(site, description)
            size = -(-width // 64) * 8
            rotations[site] = _checked(site, Rotation(block, raw[at : at + size]), width, size)
            at += size
    if at != len(raw):
        raise FormatError(f"section HADAMARD has {len(raw)} bytes, expected {at} for its blocks")
    return rotations


def _checked(site: str, rotation: Rotation, width: int, size: int) -> Rotation:
    block = rotation.block
    if block < 2 or block & (block - 1) or width % block:
        raise FormatError(f"section HADAMARD: blocks of {block}, expected a power of two that divides {width} ({site})")
    if len(rotation.negative) != size:
        raise FormatError(f"section HADAMARD ends before the signs of {width} inputs ({site})")
    if int.from_bytes(rotation.negative, "little") >> width:
        raise FormatError(f"section HADAMARD: signs of more than {width} inputs ({site})")
    return rotation


def width_of(site: str, description: ModelDescription) -> int:
    """How many inputs a site has."""
    if site == "hidden":
        return description.hidden_size
    return description.num_heads * description.head_dim if site == "attention" else description.intermediate_size
