"""``int4``: two codes of -7..7 a byte, row by row.

The low nibble is the first code, the high nibble the second; a nibble is code + 8, so 0x8 is the code 0 and the padding
of an odd row. The nibble 0 (code -8) is never written and refused.
"""

from __future__ import annotations

from onebit.errors import FormatError
from onebit.packing.arrays import Array, cast, checked_bytes, checked_codes, zeros
from onebit.packing.padding import pad, padded_cols, strip

__all__ = ["pack", "row_bytes", "unpack"]

_PER_BYTE = 2


def row_bytes(cols: int) -> int:
    """Bytes of one packed row, without alignment."""
    return padded_cols(cols, _PER_BYTE) // _PER_BYTE


def pack(codes_OI: Array) -> Array:
    """int8 codes [O, I] in [-7, 7] -> uint8 [O, ceil(I / 2)]."""
    nibbles_OP = cast(pad(checked_codes(codes_OI, -7, 7, "int4"), _PER_BYTE) + 8, "uint8")
    return nibbles_OP[:, 0::2] | nibbles_OP[:, 1::2] << 4


def unpack(packed_OB: Array, cols: int) -> Array:
    """uint8 [O, ceil(cols / 2)] -> int8 codes [O, cols]."""
    checked_bytes(packed_OB, row_bytes(cols), "int4")
    rows, count = packed_OB.shape
    nibbles_OP = zeros(packed_OB, (rows, count * _PER_BYTE))
    nibbles_OP[:, 0::2] = packed_OB & 15
    nibbles_OP[:, 1::2] = packed_OB >> 4
    if bool((nibbles_OP == 0).any()):
        raise FormatError(
            f"int4: {int((nibbles_OP == 0).sum())} nibbles are 0 (code -8), which is never written; damaged data"
        )
    return strip(cast(nibbles_OP, "int8") - 8, cols, _PER_BYTE, layout="int4")
