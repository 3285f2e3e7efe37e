"""Reads a GGUF file (versions 2 and 3, little-endian) and believes nothing in it.

Ours and not the gguf package's, because that one raises on the types of llama.cpp's forks (36, 42, 142, 143) and trusts
counts and offsets. Every count is held against the bytes that are left before anything is made of it, and the bytes of
each tensor against its shape and type: the place from its offset to the next tensor's is all that it has. The tensors
stay in the mapped file.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebit.errors import FormatError
from onebit.formats.gguf_types import BLOCK_TYPES, FLOAT_TYPES, BlockType
from onebit.formats.onebit_reader import mapped

__all__ = ["GGUFFile", "GGUFTensor", "read_gguf"]

_MAGIC = b"GGUF"
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_LONGEST_NAME = 1 << 10
_DIMS = 4
# Types of llama.cpp that hold no codes of ours: (weights, bytes) of a block. They are read as floats.
_OTHER_BLOCKS = {
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
}
_BY_ID: dict[int, list[BlockType]] = {}
for _kind in BLOCK_TYPES:
    _BY_ID.setdefault(_kind.id, []).append(_kind)
# Older files of Prism's fork have its groups of 128 under the id that llama.cpp gave to groups of 64.
_BY_ID[42].append(next(kind for kind in BLOCK_TYPES if kind.name == "PQ2_0"))


@dataclass(frozen=True)
class GGUFTensor:
    """A tensor in the file: rows and columns (a vector has one row), type, and its bytes.

    kind: the type of codes; None for floats (`type_name` F32, F16, BF16) and for blocks that are read as floats.
    """

    name: str
    rows: int
    cols: int
    type_name: str
    type_id: int
    kind: BlockType | None
    data: NDArray[np.uint8]


@dataclass(frozen=True)
class GGUFFile:
    """metadata: numbers, strings, booleans and lists of these; arrays of numbers are numpy arrays."""

    metadata: dict[str, Any]
    tensors: dict[str, GGUFTensor]


def read_gguf(path: Path) -> GGUFFile:
    """Map and check a file; FormatError in one line that names it for anything else than a whole GGUF file."""
    try:
        return _read(mapped(path))
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from None


def _read(raw: NDArray[np.uint8]) -> GGUFFile:
    cursor = _Cursor(raw)
    if cursor.take(4) != _MAGIC:
        raise FormatError("not a GGUF file: it does not start with 'GGUF'")
    version = cursor.number("<I")
    if version not in (2, 3):
        big = int.from_bytes(version.to_bytes(4, "little"), "big") in (2, 3)
        raise FormatError(
            f"GGUF version {version}{': a big-endian file' if big else ''}; expected little-endian 2 or 3"
        )
    num_tensors, num_values = cursor.number("<Q"), cursor.number("<Q")
    cursor.can_hold(num_values, 13, "metadata")  # a length of 8, a type of 4, a byte
    cursor.can_hold(num_tensors, 25, "tensors")  # two lengths of 8, a type of 4, an offset of 8 and a name
    metadata: dict[str, Any] = {}
    for _ in range(num_values):
        key = cursor.text(_LONGEST_NAME)
        if key in metadata:
            raise FormatError(f"metadata '{key}' is there twice")
        metadata[key] = cursor.value(cursor.number("<I"), key)
    infos = [_read_info(cursor) for _ in range(num_tensors)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 8 <= alignment <= 1 << 16 or alignment & (alignment - 1):
        raise FormatError(f"general.alignment is {str(alignment)[:40]}, expected a power of two from 8 on")
    start = -(-cursor.at // alignment) * alignment
    return GGUFFile(metadata, _place(infos, raw[min(start, raw.size) :], alignment))


@dataclass(frozen=True)
class _Info:
    name: str
    dims: tuple[int, ...]
    type_id: int
    offset: int


def _read_info(cursor: _Cursor) -> _Info:
    name = cursor.text(_LONGEST_NAME)
    count = cursor.number("<I")
    if not 1 <= count <= _DIMS:
        raise FormatError(f"tensor {name}: {count} dimensions, expected 1 to {_DIMS}")
    dims = tuple(cursor.number("<Q") for _ in range(count))
    if min(dims) < 1 or max(dims) >= 1 << 31 or any(size != 1 for size in dims[2:]):
        raise FormatError(f"tensor {name}: dimensions {dims}, expected one or two, each 1 to 2^31 - 1")
    return _Info(name, dims, cursor.number("<I"), cursor.number("<Q"))


def _place(infos: list[_Info], data: NDArray[np.uint8], alignment: int) -> dict[str, GGUFTensor]:
    """Give each tensor its bytes, after checking that they are as many as its type needs and belong to it alone."""
    tensors: dict[str, GGUFTensor] = {}
    ordered = sorted(infos, key=lambda info: info.offset)
    ends = [info.offset for info in ordered[1:]] + [data.size]
    for info, end in zip(ordered, ends, strict=True):
        if info.name in tensors:
            raise FormatError(f"tensor {info.name} is there twice")
        if info.offset % alignment or info.offset > data.size:
            raise FormatError(f"tensor {info.name}: offset {info.offset} is not in the file or not aligned")
        tensors[info.name] = _typed(info, data[info.offset : end], alignment)
    return {info.name: tensors[info.name] for info in infos}


def _typed(info: _Info, data: NDArray[np.uint8], alignment: int) -> GGUFTensor:
    cols, rows = info.dims[0], info.dims[1] if len(info.dims) > 1 else 1
    tried = []
    for type_name, kind, block, size in _readings(info.type_id, rows, cols):
        if cols % block:
            tried.append(f"{type_name} has blocks of {block} weights, which do not divide {cols}")
        elif data.size - alignment < size <= data.size:
            return GGUFTensor(info.name, rows, cols, type_name, info.type_id, kind, data[:size])
        else:
            tried.append(f"{rows} x {cols} weights of type {type_name} need {size} bytes, there are {data.size}")
    raise FormatError(f"tensor {info.name}: {' and '.join(tried)}")


def _readings(type_id: int, rows: int, cols: int) -> list[tuple[str, BlockType | None, int, int]]:
    """(name, kind, weights of a block, bytes) of everything that an id has meant."""
    for name, (number, dtype) in FLOAT_TYPES.items():
        if type_id == number:
            return [(name, None, 1, rows * cols * dtype.itemsize)]
    if type_id in _OTHER_BLOCKS:
        name, block, size = _OTHER_BLOCKS[type_id]
        return [(name, None, block, rows * cols // block * size)]
    if type_id in _BY_ID:
        return [(kind.name, kind, kind.block, kind.tensor_bytes(rows, cols)) for kind in _BY_ID[type_id]]
    raise FormatError(f"type {type_id}, which onebit does not read; it reads {', '.join([*FLOAT_TYPES, *_names()])}")


def _names() -> list[str]:
    return [*(kind.name for kind in BLOCK_TYPES), *(name for name, _, _ in _OTHER_BLOCKS.values())]


class _Cursor:
    """Reads on from a place in the file; no size is taken on the file's word."""

    def __init__(self, raw: NDArray[np.uint8]) -> None:
        self.raw, self.at = raw, 0

    def take(self, size: int) -> bytes:
        if size > self.raw.size - self.at:
            raise FormatError(
                f"the file ends at byte {self.raw.size}, but {size} bytes are read at {self.at}: truncated"
            )
        self.at += size
        return self.raw[self.at - size : self.at].tobytes()

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def can_hold(self, count: int, size: int, what: str) -> None:
        """Refuse a count of entries, each at least `size` bytes, that the rest of the file cannot hold."""
        left = self.raw.size - self.at
        if count > left // size:
            raise FormatError(
                f"the file says it has {count} {what}, but only {left} bytes are left: truncated or damaged"
            )

    def text(self, longest: int | None = None) -> str:
        size = self.number("<Q")
        if longest is not None and size > longest:
            raise FormatError(f"a name of {size} bytes at {self.at}, expected at most {longest}")
        try:
            return self.take(size).decode("utf-8")
        except UnicodeDecodeError:
            raise FormatError(f"the text before byte {self.at} is not UTF-8") from None

    def value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self.text()
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _ARRAY:
            return self._array(key)
        raise FormatError(f"metadata '{key}' has type {kind}, expected 0 to 12")

    def _array(self, key: str) -> Any:
        kind, count = self.number("<I"), self.number("<Q")
        if kind == _STRING:
            self.can_hold(count, 8, f"texts in '{key}'")
            return [self.text() for _ in range(count)]
        if kind not in _SCALARS:
            raise FormatError(f"metadata '{key}' is an array of type {kind}, expected numbers or texts")
        form = _SCALARS[kind]
        size = struct.calcsize(form)
        self.can_hold(count, size, f"numbers in '{key}'")
        return np.frombuffer(self.take(count * size), np.dtype("u1" if kind == 7 else form.replace("?", "u1")))
