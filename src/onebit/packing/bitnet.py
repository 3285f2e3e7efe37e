"""``bitnet``: four codes a byte from four quarters of the rows, the packing of BitNet models for transformers.

With R = O / 4 rows a quarter, byte [r, c] holds column c of four rows:

============  =====================================
bits          code + 1 (0, 1 or 2; 3 is refused)
============  =====================================
1-0           row r
3-2           row r + R
5-4           row r + 2R
7-6           row r + 3R
============  =====================================
"""

from __future__ import annotations

from onebit.errors import FormatError
from onebit.packing.arrays import Array, cast, checked_bytes, checked_codes, zeros

__all__ = ["pack", "unpack"]


def pack(codes_OI: Array) -> Array:
    """int8 codes [O, I] in {-1, 0, +1}, O a multiple of 4 -> uint8 [O / 4, I]."""
    codes_OI = checked_codes(codes_OI, -1, 1, "bitnet")
    rows, cols = codes_OI.shape
    if rows % 4:
        raise FormatError(f"bitnet: {rows} rows cannot be packed, expected a multiple of 4")
    bits_QRI = cast(codes_OI + 1, "uint8").reshape(4, rows // 4, cols)
    return bits_QRI[0] | bits_QRI[1] << 2 | bits_QRI[2] << 4 | bits_QRI[3] << 6


def unpack(packed_RI: Array) -> Array:
    """uint8 [O / 4, I] -> int8 codes [O, I]; the bit pair ``11`` raises FormatError."""
    checked_bytes(packed_RI, packed_RI.shape[-1], "bitnet")
    quarter, cols = packed_RI.shape
    bits_QRI = zeros(packed_RI, (4, quarter, cols))
    for q in range(4):
        bits_QRI[q] = packed_RI >> 2 * q & 3
    if bool((bits_QRI == 3).any()):
        raise FormatError(f"bitnet: {int((bits_QRI == 3).sum())} codes have the bits 11, which mean nothing")
    return cast(bits_QRI.reshape(4 * quarter, cols), "int8") - 1
