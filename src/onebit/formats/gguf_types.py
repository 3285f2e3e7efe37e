"""GGUF's tensor types: ids, sizes, which tensor of a ``.1bit`` file each can hold, and the bytes both ways.

Ids collide between llama.cpp and its forks (42 has groups of 64 in llama.cpp and of 128 in older Prism files, 39 and 40
mean different things), so a type is told by its id and by the tensor's byte size together.

A scale that is float32 here is rounded to float16 in a block; the writer keeps the exact ones beside (`gguf_writer`).

Shape suffixes: O rows, I columns, B blocks of a row, N weights of a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebit.errors import ConfigError, FormatError, nearest_name
from onebit.formats.gguf_blocks import Codes, packing_of
from onebit.formats.layout import Geometry, Granularity
from onebit.formats.stored_tensor import StoredTensor

__all__ = ["BLOCK_TYPES", "CODE_TYPES", "FLOAT_TYPES", "BlockType", "decode", "encode", "type_for", "types_that_hold"]

_TERNARY = ("ternary", "binary")  # what holds -1, 0 and +1 holds -1 and +1


@dataclass(frozen=True)
class BlockType:
    """A type of codes in blocks. `file_type`: the number in general.file_type of a file that is mostly of this type.

    code_bytes: of a block, without its scale. scale_last: whether d lies behind the codes. program: what runs it.
    """

    name: str
    id: int
    file_type: int
    block: int
    code_bytes: int
    levels: tuple[str, ...]
    scale_last: bool = False
    program: str = "llama.cpp"

    @property
    def has_one_scale(self) -> bool:
        """One float32 scale behind the tensor instead of one in each block."""
        return self.name == "I2_S"

    def tensor_bytes(self, rows: int, cols: int) -> int:
        """Bytes of a matrix; cols a multiple of `block`."""
        blocks = rows * cols // self.block
        return blocks * self.code_bytes + 32 if self.has_one_scale else blocks * (self.code_bytes + 2)

    def why_not(self, level: str, geometry: Geometry) -> str | None:
        """Why a matrix cannot be held; None when it can."""
        if level not in self.levels:
            return f"{self.name} holds {' and '.join(self.levels)} codes"
        if geometry.cols % self.block:
            return f"{self.name} has blocks of {self.block} weights, which do not divide {geometry.cols}"
        if self.has_one_scale and geometry.granularity is not Granularity.PER_TENSOR:
            return f"{self.name} has one scale a tensor"
        if geometry.granularity is Granularity.PER_GROUP and geometry.group_size % self.block:
            return f"{self.name} has one scale for {self.block} weights"
        return None


BLOCK_TYPES = (
    BlockType("TQ2_0", 35, 37, 256, 64, _TERNARY, scale_last=True),
    BlockType("TQ1_0", 34, 36, 256, 52, _TERNARY, scale_last=True),
    BlockType("Q2_0", 42, 41, 64, 16, _TERNARY),
    BlockType("Q1_0", 41, 40, 128, 16, ("binary",)),
    BlockType("Q8_0", 8, 7, 32, 32, ("int8",)),
    BlockType("Q4_0", 2, 2, 32, 16, ("int4",)),
    BlockType("I2_S", 36, 40, 128, 32, _TERNARY, program="bitnet.cpp"),
    BlockType("PQ2_0", 142, 142, 128, 32, _TERNARY, program="Prism's llama.cpp"),
    BlockType("PTQ1_0", 143, 143, 128, 26, _TERNARY, scale_last=True, program="Prism's llama.cpp"),
)
FLOAT_TYPES: dict[str, tuple[int, np.dtype[Any]]] = {
    "F32": (0, np.dtype("<f4")),
    "F16": (1, np.dtype("<f2")),
    "BF16": (30, np.dtype("<u2")),
}
CODE_TYPES = tuple(kind.name for kind in BLOCK_TYPES if kind.levels[0] in ("ternary", "binary"))
"""The names that --gguf-type takes."""

_BY_NAME = {kind.name: kind for kind in BLOCK_TYPES}
# What is taken when no type is asked for: the first that holds the matrix and that llama.cpp runs, or the fork that
# turns inputs. TQ2_0 is the fastest of llama.cpp's, Q2_0 the one with the finest scales.
_USUAL = {
    "ternary": ("TQ2_0", "Q2_0"),
    "binary": ("Q1_0", "TQ2_0", "Q2_0"),
    "int8": ("Q8_0",),
    "int4": ("Q4_0",),
}


def types_that_hold(tensor: StoredTensor) -> list[str]:
    """The names of the types that hold a matrix of codes as it is."""
    return [kind.name for kind in BLOCK_TYPES if kind.why_not(tensor.level, tensor.geometry) is None]


def type_for(tensor: StoredTensor, asked: str | None) -> BlockType:
    """The type of a matrix of codes: the one that was asked for where it is binary or ternary, else the usual one.

    Raises ConfigError for a type that cannot hold the matrix, with those that can.
    """
    if asked is not None and asked not in CODE_TYPES:
        raise ConfigError(
            f"--gguf-type is '{asked}', expected one of {', '.join(CODE_TYPES)}{nearest_name(asked, CODE_TYPES)}"
        )
    usual = ("PQ2_0", "PTQ1_0") if tensor.turned else _USUAL[tensor.level]
    if asked is not None and tensor.level in ("ternary", "binary"):
        wanted = _BY_NAME[asked]
        reason = wanted.why_not(tensor.level, tensor.geometry)
        if reason is None and tensor.turned and wanted.name not in ("PQ2_0", "PTQ1_0"):
            reason = f"its inputs are turned, and {wanted.program} turns none"
        # Binary tables beside ternary layers keep their own type.
        if reason is None:
            return wanted
        if tensor.level in wanted.levels:
            raise ConfigError(_refusal(tensor, reason))
    for name in usual:
        if _BY_NAME[name].why_not(tensor.level, tensor.geometry) is None:
            return _BY_NAME[name]
    raise ConfigError(_refusal(tensor, f"{' and '.join(usual)} cannot hold it"))


def _refusal(tensor: StoredTensor, reason: str) -> str:
    geometry = tensor.geometry
    scale = geometry.granularity.name.lower() + (f" of {geometry.group_size}" if geometry.group_size else "")
    others = types_that_hold(tensor)
    if tensor.turned:
        others = [name for name in others if name in ("PQ2_0", "PTQ1_0")]
    advice = f"types that hold it: {', '.join(others)}" if others else "no GGUF type holds it"
    return (
        f"tensor {tensor.name} has {tensor.level} codes with scales {scale} and {geometry.cols} columns; {reason}: "
        f"{advice}"
    )


def encode(kind: BlockType, codes_OI: Codes, scale: NDArray[Any], geometry: Geometry) -> NDArray[np.uint8]:
    """The bytes of a matrix, flat; scales are rounded to float16 but for I2_S."""
    pack, _ = packing_of(kind.name)
    packed_BP = pack(np.ascontiguousarray(codes_OI).reshape(-1, kind.block))
    if kind.has_one_scale:
        tail = np.zeros(8, "<f4")
        tail[0] = scale
        return np.concatenate([packed_BP.reshape(-1), tail.view(np.uint8)])
    scale_B = _block_scales(kind, scale, geometry).reshape(-1)
    with np.errstate(over="ignore"):
        d_B = scale_B.astype("<f2")
    if not np.isfinite(d_B).all() or ((d_B == 0) & (scale_B != 0)).any():
        raise FormatError("a scale is too large or too small for float16, which GGUF's blocks have")
    d_BP = d_B[:, None].view(np.uint8)
    return np.concatenate([packed_BP, d_BP] if kind.scale_last else [d_BP, packed_BP], axis=1).reshape(-1)


def decode(kind: BlockType, raw: NDArray[np.uint8], rows: int, cols: int) -> tuple[Codes, NDArray[np.float32]]:
    """int8 codes [O, I] and the scales as stored: [O, I / block], or [] for I2_S. Raises FormatError for bits and
    scales that mean nothing."""
    _, unpack = packing_of(kind.name)
    if kind.has_one_scale:
        blocks_BP, scale = raw[:-32].reshape(-1, kind.code_bytes), raw[-32:].view("<f4")[0]
        scales: NDArray[np.float32] = np.full((), scale, np.float32)
    else:
        raw_BP = raw.reshape(-1, kind.code_bytes + 2)
        blocks_BP, d_BP = (raw_BP[:, :-2], raw_BP[:, -2:]) if kind.scale_last else (raw_BP[:, 2:], raw_BP[:, :2])
        scales = np.ascontiguousarray(d_BP).view("<f2").astype(np.float32).reshape(rows, cols // kind.block)
    if not np.isfinite(scales).all():
        raise FormatError("a scale is NaN or infinite")
    return unpack(blocks_BP, kind.block).reshape(rows, cols), scales


def _block_scales(kind: BlockType, scale: NDArray[Any], geometry: Geometry) -> NDArray[np.float32]:
    """[O, B] of scales as a tensor has them."""
    blocks = geometry.cols // kind.block
    values = np.asarray(scale, np.float32)
    if geometry.granularity is Granularity.PER_TENSOR:
        return np.full((geometry.rows, blocks), values.reshape(()), np.float32)
    if geometry.granularity is Granularity.PER_ROW:
        return np.repeat(values[:, None], blocks, axis=1)
    return np.repeat(values, geometry.group_size // kind.block, axis=1)[:, :blocks]
