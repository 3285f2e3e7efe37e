"""``int8``: one code of -127..127 a byte, two's complement, row by row. The byte 0x80 (-128) is never written and
refused."""

from __future__ import annotations

from onebit.errors import FormatError
from onebit.packing.arrays import Array, cast, checked_bytes, checked_codes

__all__ = ["pack", "row_bytes", "unpack"]


def row_bytes(cols: int) -> int:
    """Bytes of one packed row, without alignment."""
    return cols


def pack(codes_OI: Array) -> Array:
    """int8 codes [O, I] in [-127, 127] -> uint8 [O, I]."""
    return cast(checked_codes(codes_OI, -127, 127, "int8"), "uint8")


def unpack(packed_OB: Array, cols: int) -> Array:
    """uint8 [O, cols] -> int8 codes [O, cols]."""
    checked_bytes(packed_OB, cols, "int8")
    if bool((packed_OB == 128).any()):
        raise FormatError(f"int8: {int((packed_OB == 128).sum())} codes are -128, which is never written; damaged data")
    return cast(packed_OB, "int8")
