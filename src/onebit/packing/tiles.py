"""Tiles of 16 rows: the arrangement that the three ``_t16`` layouts share.

Rows are taken in blocks of 16 (missing rows are padded), inputs in tiles of W (16, 20 or 32). A tile is 64 bytes:
sixteen 32-bit little-endian lanes, lane r for row r of the block; byte b of a lane holds the inputs k = 4 j + b of
the tile, j being the bit pair, bit or base-3 digit inside the byte. One 64-byte load then meets four broadcast
activations with no shift or permutation, on 4, 8 or 16 lanes alike. Order in memory: row block, then tile along the
inputs.

Legend: N row blocks, T tiles, R = 16 rows, J positions in a byte, 4 bytes of a lane.
"""

from __future__ import annotations

from onebit.errors import FormatError
from onebit.packing.arrays import Array, checked_bytes, zeros
from onebit.packing.padding import pad, padded_cols, strip

__all__ = [
    "ROWS",
    "TILE_BYTES",
    "from_tiles",
    "planes",
    "row_blocks",
    "scales_from_tiles",
    "scales_to_tiles",
    "tile_count",
    "to_tiles",
]

ROWS = 16
TILE_BYTES = 64
_LANE_BYTES = 4


def row_blocks(rows: int) -> int:
    """Blocks of 16 rows, the last one padded."""
    return -(-rows // ROWS)


def tile_count(cols: int, width: int, group_size: int | None = None) -> int:
    """Tiles along the inputs; each group is padded to whole tiles by itself."""
    return padded_cols(cols, width, group_size) // width


def to_tiles(codes_OI: Array, width: int, group_size: int | None = None) -> list[Array]:
    """[O, I] -> J arrays [N, T, R, 4]: the codes that position j of each byte holds, zeros in the padding."""
    rows = codes_OI.shape[0]
    blocks, tiles = row_blocks(rows), tile_count(codes_OI.shape[1], width, group_size)
    codes_OP = pad(codes_OI, width, group_size)
    full = zeros(codes_OP, (blocks * ROWS, codes_OP.shape[1]))
    full[:rows] = codes_OP
    per_byte = width // _LANE_BYTES
    tiled = full.reshape(blocks, ROWS, tiles, per_byte, _LANE_BYTES)
    return [tiled[:, :, :, j].swapaxes(1, 2) for j in range(per_byte)]


def planes(packed_NTB: Array, rows: int, cols: int, width: int, group_size: int | None, layout: str) -> Array:
    """Check the shape of packed tiles and return them as lanes, uint8 [N, T, R, 4]."""
    checked_bytes(packed_NTB, TILE_BYTES, layout)
    expected = (row_blocks(rows), tile_count(cols, width, group_size), TILE_BYTES)
    if tuple(packed_NTB.shape) != expected:
        raise FormatError(f"{layout}: {rows} x {cols} codes take tiles {expected}, got {tuple(packed_NTB.shape)}")
    return packed_NTB.reshape(expected[0], expected[1], ROWS, _LANE_BYTES)


def from_tiles(
    parts: list[Array], rows: int, cols: int, width: int, group_size: int | None = None, *, layout: str
) -> Array:
    """J arrays [N, T, R, 4] -> [O, I]; anything but zeros in the padding is refused."""
    blocks, tiles = parts[0].shape[:2]
    tiled = zeros(parts[0], (blocks, ROWS, tiles, len(parts), _LANE_BYTES))
    for j, part in enumerate(parts):
        tiled[:, :, :, j] = part.swapaxes(1, 2)
    full = tiled.reshape(blocks * ROWS, tiles * width)
    if bool((full[rows:] != 0).any()):
        raise FormatError(f"{layout}: the rows after the last one are not zero; the data is damaged")
    return strip(full[:rows], cols, width, group_size, layout=layout)


def scales_to_tiles(scale_OG: Array) -> Array:
    """Group scales [O, G] -> [N, G, 16], zeros for the rows that pad the last block."""
    rows, groups = scale_OG.shape
    full = zeros(scale_OG, (row_blocks(rows) * ROWS, groups))
    full[:rows] = scale_OG
    return full.reshape(row_blocks(rows), ROWS, groups).swapaxes(1, 2)


def scales_from_tiles(scale_NGR: Array, rows: int) -> Array:
    """Group scales [N, G, 16] -> [O, G]."""
    blocks, groups, _ = scale_NGR.shape
    return scale_NGR.swapaxes(1, 2).reshape(blocks * ROWS, groups)[:rows]
