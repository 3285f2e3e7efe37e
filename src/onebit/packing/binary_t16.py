"""``binary_t16``: tiles of 16 rows x 32 inputs, one bit a code (see ``tiles``).

Bit j of byte b of lane r holds row r, input 4 j + b of the tile: 1 is +1, 0 is -1. Padding bits are 0, and activations
beyond the last input must count as zero, since the bit itself reads as -1.
"""

from __future__ import annotations

from onebit.packing.arrays import Array, cast, checked_codes
from onebit.packing.tiles import TILE_BYTES, from_tiles, planes, to_tiles

__all__ = ["WIDTH", "pack", "unpack"]

WIDTH = 32


def pack(codes_OI: Array, group_size: int | None = None) -> Array:
    """int8 codes [O, I] in {-1, +1} -> uint8 [N, T, 64]."""
    bits_OI = cast(checked_codes(codes_OI, -1, 1, "binary_t16", zero=False) > 0, "uint8")
    parts = to_tiles(bits_OI, WIDTH, group_size)
    packed = parts[0]
    for j, part in enumerate(parts[1:], start=1):
        packed = packed | part << j
    return packed.reshape(packed.shape[0], packed.shape[1], TILE_BYTES)


def unpack(packed_NTB: Array, rows: int, cols: int, group_size: int | None = None) -> Array:
    """uint8 [N, T, 64] -> int8 codes [rows, cols]."""
    lanes = planes(packed_NTB, rows, cols, WIDTH, group_size, "binary_t16")
    parts = [lanes >> j & 1 for j in range(8)]
    return cast(from_tiles(parts, rows, cols, WIDTH, group_size, layout="binary_t16"), "int8") * 2 - 1
