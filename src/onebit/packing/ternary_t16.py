"""``ternary_t16``: tiles of 16 rows x 16 inputs, two bits a code (see ``tiles``).

======  ==================================================
bits    of byte b of lane r
======  ==================================================
1-0     code + 1 of row r, input b
3-2     code + 1 of row r, input 4 + b
5-4     code + 1 of row r, input 8 + b
7-6     code + 1 of row r, input 12 + b
======  ==================================================

Bit pairs are 0, 1, 2 for -1, 0, +1 (a kernel subtracts the sum of the activations once); 3 is refused. Padding is
code 0, so a tile of nothing but padding is 64 bytes of 0x55.
"""

from __future__ import annotations

from onebit.errors import FormatError
from onebit.packing.arrays import Array, cast, checked_codes
from onebit.packing.tiles import TILE_BYTES, from_tiles, planes, to_tiles

__all__ = ["WIDTH", "pack", "unpack"]

WIDTH = 16


def pack(codes_OI: Array, group_size: int | None = None) -> Array:
    """int8 codes [O, I] in {-1, 0, +1} -> uint8 [N, T, 64]."""
    parts = to_tiles(checked_codes(codes_OI, -1, 1, "ternary_t16"), WIDTH, group_size)
    bits = [cast(part + 1, "uint8") for part in parts]
    packed = bits[0] | bits[1] << 2 | bits[2] << 4 | bits[3] << 6
    return packed.reshape(packed.shape[0], packed.shape[1], TILE_BYTES)


def unpack(packed_NTB: Array, rows: int, cols: int, group_size: int | None = None) -> Array:
    """uint8 [N, T, 64] -> int8 codes [rows, cols]."""
    lanes = planes(packed_NTB, rows, cols, WIDTH, group_size, "ternary_t16")
    if bool(((lanes & lanes >> 1 & 0x55) != 0).any()):
        raise FormatError("ternary_t16: a code has the bits 11, which mean nothing; the data is damaged")
    parts = [cast(lanes >> 2 * j & 3, "int8") - 1 for j in range(4)]
    return from_tiles(parts, rows, cols, WIDTH, group_size, layout="ternary_t16")
