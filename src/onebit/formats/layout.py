"""The numbers of a ``.1bit`` file: what kinds, layouts, granularities and activations there are, and how many bytes
each takes.

docs/format.md is the specification; the values here are the ones on disk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

from onebit.errors import FormatError
from onebit.packing import binary, int4, int8, ternary, ternary5
from onebit.packing.tiles import ROWS, TILE_BYTES, row_blocks, tile_count

__all__ = [
    "ALIGNMENT",
    "EXCHANGE_LAYOUT",
    "GROUP_SIZES",
    "LEVEL_OF",
    "RUN_LAYOUT",
    "TILE_WIDTH",
    "TURNED",
    "Activation",
    "Geometry",
    "Granularity",
    "Kind",
    "Layout",
    "ScaleType",
    "align",
]

ALIGNMENT = 64
GROUP_SIZES = (64, 128, 256)
INT4_GROUP = 32


class Kind(IntEnum):
    """What a tensor is for."""

    TOKEN_EMBEDDING = 1
    POSITION_EMBEDDING = 2
    FINAL_NORM = 3
    FINAL_NORM_BIAS = 4
    HEAD = 5
    ROPE_FREQUENCIES = 6
    ATTENTION_NORM = 16
    ATTENTION_NORM_BIAS = 17
    Q = 18
    K = 19
    V = 20
    O = 21  # noqa: E741 - the projection's name
    Q_NORM = 22
    K_NORM = 23
    ATTENTION_SUB_NORM = 24
    MLP_NORM = 25
    MLP_NORM_BIAS = 26
    GATE = 27
    UP = 28
    DOWN = 29
    MLP_SUB_NORM = 30
    Q_BIAS = 34
    K_BIAS = 35
    V_BIAS = 36
    O_BIAS = 37
    GATE_BIAS = 43
    UP_BIAS = 44
    DOWN_BIAS = 45


class Layout(IntEnum):
    """How codes or values lie in bytes; see ``onebit.packing``."""

    FLOAT32 = 0
    FLOAT16 = 1
    INT8 = 2
    INT4 = 3
    BINARY = 4
    TERNARY = 5
    TERNARY5 = 6
    BINARY_T16 = 7
    TERNARY_T16 = 8
    TERNARY5_T16 = 9

    @property
    def label(self) -> str:
        """The name used in flags, tables and packing modules."""
        return self.name.lower()

    @property
    def is_float(self) -> bool:
        """Values rather than codes with scales."""
        return self <= Layout.FLOAT16

    @property
    def is_tiled(self) -> bool:
        """Tiles of 16 rows rather than row by row."""
        return self >= Layout.BINARY_T16


class Granularity(IntEnum):
    """How many weights share a scale."""

    NONE = 0
    PER_TENSOR = 1
    PER_ROW = 2
    PER_GROUP = 3


class Activation(IntEnum):
    """What the layer's inputs are rounded to before the product."""

    NONE = 0
    INT8 = 1
    SIGN = 2


TURNED = 0x80
"""Beside an activation in a tensor record: the inputs are turned before they are rounded (section HADAMARD)."""


class ScaleType(IntEnum):
    """How a scale is stored; it follows from the granularity."""

    NONE = 0
    FLOAT32 = 1
    FLOAT16 = 2


RUN_LAYOUT = {
    Layout.BINARY: Layout.BINARY_T16,
    Layout.TERNARY: Layout.TERNARY_T16,
    Layout.TERNARY5: Layout.TERNARY5_T16,
}
EXCHANGE_LAYOUT = {tiled: row for row, tiled in RUN_LAYOUT.items()}
TILE_WIDTH = {Layout.BINARY_T16: 32, Layout.TERNARY_T16: 16, Layout.TERNARY5_T16: 20}

LEVEL_OF = {
    Layout.FLOAT32: "float32",
    Layout.FLOAT16: "float16",
    Layout.INT8: "int8",
    Layout.INT4: "int4",
    Layout.BINARY: "binary",
    Layout.BINARY_T16: "binary",
    Layout.TERNARY: "ternary",
    Layout.TERNARY5: "ternary",
    Layout.TERNARY_T16: "ternary",
    Layout.TERNARY5_T16: "ternary",
}

_SCALE_TYPE = {
    Granularity.NONE: ScaleType.NONE,
    Granularity.PER_TENSOR: ScaleType.FLOAT32,
    Granularity.PER_ROW: ScaleType.FLOAT32,
    Granularity.PER_GROUP: ScaleType.FLOAT16,
}


def align(size: int, to: int = ALIGNMENT) -> int:
    """Round up to a multiple."""
    return -(-size // to) * to


@dataclass(frozen=True)
class Geometry:
    """Shape, layout and granularity of a tensor, and every size that follows from them.

    ``group_size`` is 0 unless the granularity is per group. A combination the format does not have raises FormatError.
    """

    rows: int
    cols: int
    layout: Layout
    granularity: Granularity = Granularity.NONE
    group_size: int = 0

    def __post_init__(self) -> None:
        if not (0 < self.rows < 1 << 31 and 0 < self.cols < 1 << 31):
            raise FormatError(f"shape {self.rows} x {self.cols}: both sizes must be 1 to 2^31 - 1")
        allowed = _GRANULARITIES[self.layout]
        if self.granularity not in allowed:
            names = " or ".join(entry.name.lower() for entry in allowed)
            raise FormatError(
                f"layout {self.layout.label} needs granularity {names}, got {self.granularity.name.lower()}"
            )
        sizes: tuple[int, ...] = (0,)
        if self.granularity is Granularity.PER_GROUP:
            sizes = (INT4_GROUP,) if self.layout is Layout.INT4 else GROUP_SIZES
        if self.group_size not in sizes:
            names = ", ".join(str(size) for size in sizes)
            raise FormatError(f"layout {self.layout.label}: group_size must be {names}, got {self.group_size}")

    @property
    def packing_group(self) -> int | None:
        """The group size where it changes how codes are padded, as the packing functions take it."""
        return self.group_size or None

    @property
    def packed_row_bytes(self) -> int:
        """Bytes of a row before alignment; row layouts only."""
        match self.layout:
            case Layout.FLOAT32:
                return 4 * self.cols
            case Layout.FLOAT16:
                return 2 * self.cols
            case Layout.INT8:
                return int8.row_bytes(self.cols)
            case Layout.INT4:
                return int4.row_bytes(self.cols)
            case Layout.BINARY:
                return binary.row_bytes(self.cols)
            case Layout.TERNARY:
                return ternary.row_bytes(self.cols)
            case Layout.TERNARY5:
                return ternary5.row_bytes(self.cols, self.packing_group)
            case _:
                raise AssertionError(f"{self.layout.label} has no rows")

    @property
    def row_stride(self) -> int:
        """Bytes from one row to the next, 0 for tiled layouts."""
        return 0 if self.layout.is_tiled else align(self.packed_row_bytes)

    @property
    def tiles_shape(self) -> tuple[int, int, int]:
        """[row blocks, tiles, 64]; tiled layouts only."""
        return row_blocks(self.rows), tile_count(self.cols, TILE_WIDTH[self.layout], self.packing_group), TILE_BYTES

    @property
    def data_bytes(self) -> int:
        """Bytes of the codes or values, alignment of rows included."""
        return math.prod(self.tiles_shape) if self.layout.is_tiled else self.rows * self.row_stride

    @property
    def groups(self) -> int:
        """Groups along the inputs, the last possibly short."""
        return -(-self.cols // self.group_size) if self.group_size else 1

    @property
    def scale_type(self) -> ScaleType:
        """How the scales are stored."""
        return _SCALE_TYPE[self.granularity]

    @property
    def scale_shape(self) -> tuple[int, ...]:
        """Shape of the scales as stored: (0,), (1,), (rows,), (rows, groups) or (blocks, groups, 16)."""
        match self.granularity:
            case Granularity.NONE:
                return (0,)
            case Granularity.PER_TENSOR:
                return (1,)
            case Granularity.PER_ROW:
                return (row_blocks(self.rows) * ROWS if self.layout.is_tiled else self.rows,)
            case Granularity.PER_GROUP:
                tiled = (row_blocks(self.rows), self.groups, ROWS)
                return tiled if self.layout.is_tiled else (self.rows, self.groups)

    @property
    def scale_bytes(self) -> int:
        """Bytes of the scales."""
        return math.prod(self.scale_shape) * (2 if self.scale_type is ScaleType.FLOAT16 else 4)

    @property
    def file_bytes(self) -> int:
        """Bytes that the tensor takes in a file, data and scales each aligned."""
        return align(self.data_bytes) + align(self.scale_bytes)


_ANY = (Granularity.PER_TENSOR, Granularity.PER_ROW, Granularity.PER_GROUP)
_GRANULARITIES: dict[Layout, tuple[Granularity, ...]] = {
    Layout.FLOAT32: (Granularity.NONE,),
    Layout.FLOAT16: (Granularity.NONE,),
    Layout.INT8: (Granularity.PER_ROW,),
    Layout.INT4: (Granularity.PER_GROUP,),
    **dict.fromkeys([*RUN_LAYOUT, *EXCHANGE_LAYOUT], _ANY),
}
