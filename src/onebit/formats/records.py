"""The fixed structs of a ``.1bit`` file: header, section record, tensor record, as bytes and back.

Only sizes of fields and reserved zeros are checked here; what the numbers mean together is ``onebit_reader``'s
business.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from onebit.errors import FormatError

__all__ = [
    "HEADER_BYTES",
    "MAGIC",
    "REQUIRED",
    "SECTION_BYTES",
    "TENSOR_BYTES",
    "VERSION",
    "Header",
    "SectionRecord",
    "TensorRecord",
]

MAGIC = b"1BIT\r\n\x1a\n"  # as PNG's: a transfer that changes line ends or stops at Ctrl-Z shows at once
VERSION = 1
REQUIRED = 1
NO_LAYER = 0xFFFF

_HEADER = struct.Struct("<8sIIQQIIQQ72s")
_SECTION = struct.Struct("<8sIIQQ")
_TENSOR = struct.Struct("<64sHHBBBBIIIIQQQQQ")
HEADER_BYTES, SECTION_BYTES, TENSOR_BYTES = _HEADER.size, _SECTION.size, _TENSOR.size
CRC_AT = 12


def _text(raw: bytes, what: str) -> str:
    name, _, rest = raw.partition(b"\0")
    if any(rest) or not name or not all(32 < byte < 127 for byte in name):
        raise FormatError(f"{what} is not a zero-padded name of printable ASCII: {raw[:24]!r}")
    return name.decode("ascii")


@dataclass(frozen=True)
class Header:
    """The first 128 bytes."""

    crc: int
    file_bytes: int
    meta_bytes: int
    num_sections: int
    num_tensors: int
    section_table: int
    tensor_table: int

    def to_bytes(self) -> bytes:
        """128 bytes; ``crc`` is 0 while it is being computed."""
        return _HEADER.pack(
            *(MAGIC, VERSION, self.crc, self.file_bytes, self.meta_bytes, self.num_sections, self.num_tensors),
            *(self.section_table, self.tensor_table, b""),
        )

    @classmethod
    def from_bytes(cls, raw: bytes) -> Header:
        """Check magic, version and reserved bytes."""
        if len(raw) < HEADER_BYTES:
            raise FormatError(f"only {len(raw)} bytes long; a .1bit file starts with a header of {HEADER_BYTES}")
        magic, version, *numbers, reserved = _HEADER.unpack(raw[:HEADER_BYTES])
        if magic != MAGIC:
            raise FormatError(f"not a .1bit file: it starts with {magic!r}, expected {MAGIC!r}")
        if version != VERSION:
            raise FormatError(f".1bit version {version}; this onebit reads version {VERSION}")
        if any(reserved):
            raise FormatError("reserved bytes of the header are not zero; the file is damaged")
        return cls(*numbers)


@dataclass(frozen=True)
class SectionRecord:
    """One row of the section table."""

    id: str
    flags: int
    offset: int
    size: int

    def to_bytes(self) -> bytes:
        """32 bytes."""
        return _SECTION.pack(self.id.encode("ascii"), self.flags, 0, self.offset, self.size)

    @classmethod
    def from_bytes(cls, raw: bytes) -> SectionRecord:
        """Check the id and the reserved bits."""
        name, flags, zero, offset, size = _SECTION.unpack(raw)
        text = _text(name, "a section id")
        if zero or flags & ~REQUIRED:
            raise FormatError(
                f"section {text}: reserved bits are not zero; the file needs a newer onebit or is damaged"
            )
        return cls(text, flags, offset, size)

    @property
    def required(self) -> bool:
        """Whether a reader that does not know the section must refuse the file."""
        return bool(self.flags & REQUIRED)


@dataclass(frozen=True)
class TensorRecord:
    """One row of the tensor table; enumerations are still plain numbers."""

    name: str
    kind: int
    layer: int | None
    layout: int
    granularity: int
    activation: int
    scale_type: int
    rows: int
    cols: int
    group_size: int
    crc: int
    data_offset: int
    data_bytes: int
    scale_offset: int
    scale_bytes: int
    row_stride: int

    def to_bytes(self) -> bytes:
        """128 bytes; a name longer than 63 raises FormatError."""
        name = self.name.encode("ascii")
        if len(name) > 63:
            raise FormatError(f"tensor name of {len(name)} bytes, at most 63 fit: {self.name}")
        return _TENSOR.pack(
            *(name, self.kind, NO_LAYER if self.layer is None else self.layer),
            *(self.layout, self.granularity, self.activation, self.scale_type),
            *(self.rows, self.cols, self.group_size, self.crc),
            *(self.data_offset, self.data_bytes, self.scale_offset, self.scale_bytes, self.row_stride),
        )

    @classmethod
    def from_bytes(cls, raw: bytes) -> TensorRecord:
        """Check the name; everything else is for the reader."""
        name, kind, layer, *rest = _TENSOR.unpack(raw)
        return cls(_text(name, "a tensor name"), kind, None if layer == NO_LAYER else layer, *rest)
