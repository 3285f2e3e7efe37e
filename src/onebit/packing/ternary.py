"""``ternary``: four codes a byte, two bits each, row by row (seeds/004's packing).

============  =====================================
bits          code
============  =====================================
1-0           first  (input 4n)
3-2           second (input 4n + 1)
5-4           third  (input 4n + 2)
7-6           fourth (input 4n + 3)
============  =====================================

``00`` is 0, ``01`` is +1, ``11`` is -1, ``10`` is invalid and refused. Codes after the last input are 0.
"""

from __future__ import annotations

from onebit.errors import FormatError
from onebit.packing.arrays import Array, cast, checked_bytes, checked_codes, zeros
from onebit.packing.padding import pad, padded_cols, strip

__all__ = ["pack", "row_bytes", "unpack"]

_PER_BYTE = 4


def row_bytes(cols: int) -> int:
    """Bytes of one packed row, without alignment."""
    return padded_cols(cols, _PER_BYTE) // _PER_BYTE


def pack(codes_OI: Array) -> Array:
    """int8 codes [O, I] in {-1, 0, +1} -> uint8 [O, ceil(I / 4)]."""
    bits_OP = cast(pad(checked_codes(codes_OI, -1, 1, "ternary"), _PER_BYTE), "uint8") & 3
    return bits_OP[:, 0::4] | bits_OP[:, 1::4] << 2 | bits_OP[:, 2::4] << 4 | bits_OP[:, 3::4] << 6


def unpack(packed_OB: Array, cols: int) -> Array:
    """uint8 [O, ceil(cols / 4)] -> int8 codes [O, cols]; the bit pair ``10`` raises FormatError."""
    checked_bytes(packed_OB, row_bytes(cols), "ternary")
    rows, count = packed_OB.shape
    bits_OP = zeros(packed_OB, (rows, count * _PER_BYTE))
    for j in range(_PER_BYTE):
        bits_OP[:, j::4] = packed_OB >> 2 * j & 3
    if bool((bits_OP == 2).any()):
        raise FormatError(
            f"ternary: {int((bits_OP == 2).sum())} codes have the bits 10, which mean nothing; damaged data"
        )
    codes_OP = (cast(bits_OP, "int8") ^ 2) - 2  # sign extension of two bits
    return strip(codes_OP, cols, _PER_BYTE, layout="ternary")
