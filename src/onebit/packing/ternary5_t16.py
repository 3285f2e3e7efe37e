"""``ternary5_t16``: tiles of 16 rows x 20 inputs, five base-3 digits a byte (see ``tiles`` and ``ternary5``).

Digit j (0 is the most significant) of byte b of lane r is code + 1 of row r, input 4 j + b of the tile; the byte is
scaled as in ``ternary5``. Each group is padded to whole tiles by itself (64 inputs take 4 tiles, 128 take 7, 256 take
13). Padding is code 0, so a tile of nothing but padding is 64 bytes of 0x80.
"""

from __future__ import annotations

from onebit.packing.arrays import Array, checked_codes
from onebit.packing.ternary5 import decode, encode
from onebit.packing.tiles import TILE_BYTES, from_tiles, planes, to_tiles

__all__ = ["WIDTH", "pack", "unpack"]

WIDTH = 20


def pack(codes_OI: Array, group_size: int | None = None) -> Array:
    """int8 codes [O, I] in {-1, 0, +1} -> uint8 [N, T, 64]."""
    packed = encode(to_tiles(checked_codes(codes_OI, -1, 1, "ternary5_t16"), WIDTH, group_size))
    return packed.reshape(packed.shape[0], packed.shape[1], TILE_BYTES)


def unpack(packed_NTB: Array, rows: int, cols: int, group_size: int | None = None) -> Array:
    """uint8 [N, T, 64] -> int8 codes [rows, cols]."""
    lanes = planes(packed_NTB, rows, cols, WIDTH, group_size, "ternary5_t16")
    return from_tiles(decode(lanes, "ternary5_t16"), rows, cols, WIDTH, group_size, layout="ternary5_t16")
