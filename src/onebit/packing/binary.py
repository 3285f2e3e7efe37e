"""``binary``: eight codes a byte, one bit each, row by row (seeds/004's packing).

Bit n of a byte (bit 0 is the least significant) holds input 8m + n: 1 is +1, 0 is -1. Bits after the last input are 0.
"""

from __future__ import annotations

from onebit.packing.arrays import Array, cast, checked_bytes, checked_codes, zeros
from onebit.packing.padding import pad, padded_cols, strip

__all__ = ["pack", "row_bytes", "unpack"]

_PER_BYTE = 8


def row_bytes(cols: int) -> int:
    """Bytes of one packed row, without alignment."""
    return padded_cols(cols, _PER_BYTE) // _PER_BYTE


def pack(codes_OI: Array) -> Array:
    """int8 codes [O, I] in {-1, +1} -> uint8 [O, ceil(I / 8)]."""
    bits_OI = cast(checked_codes(codes_OI, -1, 1, "binary", zero=False) > 0, "uint8")
    bits_OP = pad(bits_OI, _PER_BYTE)
    packed_OB = bits_OP[:, 0::8]
    for j in range(1, _PER_BYTE):
        packed_OB = packed_OB | bits_OP[:, j::8] << j
    return packed_OB


def unpack(packed_OB: Array, cols: int) -> Array:
    """uint8 [O, ceil(cols / 8)] -> int8 codes [O, cols]."""
    checked_bytes(packed_OB, row_bytes(cols), "binary")
    rows, count = packed_OB.shape
    bits_OP = zeros(packed_OB, (rows, count * _PER_BYTE))
    for j in range(_PER_BYTE):
        bits_OP[:, j::8] = packed_OB >> j & 1
    return cast(strip(bits_OP, cols, _PER_BYTE, layout="binary"), "int8") * 2 - 1
