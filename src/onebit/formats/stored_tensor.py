"""One tensor of a ``.1bit`` file: its record, its bytes, and codes or values decoded when asked for.

The bytes may be a view into a memory-mapped file: nothing is read until ``codes``, ``scales`` or ``values`` is called.
Legend: O rows, I columns, G groups of columns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onebit.errors import FormatError
from onebit.formats.layout import (
    EXCHANGE_LAYOUT,
    LEVEL_OF,
    RUN_LAYOUT,
    Activation,
    Geometry,
    Granularity,
    Kind,
    Layout,
    ScaleType,
)
from onebit.packing import (
    binary,
    binary_t16,
    int4,
    int8,
    ternary,
    ternary5,
    ternary5_t16,
    ternary_t16,
)
from onebit.packing.tiles import scales_from_tiles, scales_to_tiles

__all__ = ["StoredTensor", "TensorSource"]


class TensorSource(Protocol):
    """What a writer asks of a tensor; the bytes may be made when they are asked for."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> Kind: ...
    @property
    def layer(self) -> int | None: ...
    @property
    def geometry(self) -> Geometry: ...
    @property
    def activation(self) -> Activation: ...
    @property
    def turned(self) -> bool: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def data(self) -> NDArray[np.uint8]: ...
    @property
    def scale_data(self) -> NDArray[np.uint8]: ...


_ROW_PACKING: dict[Layout, Any] = {
    Layout.INT8: int8,
    Layout.INT4: int4,
    Layout.BINARY: binary,
    Layout.TERNARY: ternary,
    Layout.TERNARY5: ternary5,
}
_TILED_PACKING: dict[Layout, Any] = {
    Layout.BINARY_T16: binary_t16,
    Layout.TERNARY_T16: ternary_t16,
    Layout.TERNARY5_T16: ternary5_t16,
}


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A named tensor as it lies in the file: ``data`` and ``scale_data`` are flat uint8, exactly the bytes on disk.

    turned: its inputs are turned first by the rotation of their site (`hadamard_section`), and so is the basis of its
    columns.
    """

    name: str
    kind: Kind
    layer: int | None
    geometry: Geometry
    activation: Activation
    data: NDArray[np.uint8]
    scale_data: NDArray[np.uint8]
    turned: bool = False

    def __post_init__(self) -> None:
        expected = (self.geometry.data_bytes, self.geometry.scale_bytes)
        if (self.data.size, self.scale_data.size) != expected:
            raise FormatError(
                f"tensor {self.name}: {self.data.size} bytes of data and {self.scale_data.size} of scales,"
                f" expected {expected[0]} and {expected[1]}"
            )

    @classmethod
    def from_values(
        cls, name: str, kind: Kind, layer: int | None, values_OI: NDArray[Any], layout: Layout = Layout.FLOAT32
    ) -> StoredTensor:
        """Store float values as float32 or float16 (rounded to nearest even); a vector becomes one row."""
        values = np.atleast_2d(np.asarray(values_OI, np.float32))
        _refuse_not_finite(name, values)
        geometry = Geometry(values.shape[0], values.shape[1], layout)
        with np.errstate(over="ignore"):
            stored = values.astype("<f2" if layout is Layout.FLOAT16 else "<f4")
        if not np.isfinite(stored).all():
            raise FormatError(f"tensor {name}: values above 65504 do not fit float16; use float32")
        rows = np.ascontiguousarray(stored).view(np.uint8)
        return cls(name, kind, layer, geometry, Activation.NONE, _with_stride(rows, geometry.row_stride), _EMPTY)

    @classmethod
    def from_codes(
        cls,
        name: str,
        kind: Kind,
        layer: int | None,
        codes_OI: NDArray[Any],
        scale: NDArray[Any],
        layout: Layout,
        granularity: Granularity,
        group_size: int = 0,
        activation: Activation = Activation.NONE,
    ) -> StoredTensor:
        """Store int8 codes [O, I] and their scales ([] or [1], [O] float32, or [O, G] float16) exactly."""
        geometry = Geometry(codes_OI.shape[0], codes_OI.shape[1], layout, granularity, group_size)
        try:
            data = _pack(codes_OI, geometry)
            scale_data = _pack_scales(scale, geometry)
        except FormatError as error:
            raise FormatError(f"tensor {name}: {error}") from None
        return cls(name, kind, layer, geometry, activation, data, scale_data)

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.geometry.rows, self.geometry.cols

    @property
    def layout(self) -> Layout:
        """How the data lies in bytes."""
        return self.geometry.layout

    @property
    def level(self) -> str:
        """binary, ternary, int4, int8, float16 or float32: the layout without its arrangement."""
        return LEVEL_OF[self.layout]

    @property
    def stored_bytes(self) -> int:
        """Bytes in the file, scales and padding included."""
        return self.geometry.data_bytes + self.geometry.scale_bytes

    @property
    def bits_per_weight(self) -> float:
        """Measured bits per weight, scales and padding included."""
        return 8 * self.stored_bytes / (self.shape[0] * self.shape[1])

    def rows_data(self) -> NDArray[np.uint8]:
        """Row layouts: packed rows without their alignment, [O, packed row bytes]."""
        rows = self.data.reshape(self.geometry.rows, self.geometry.row_stride)
        return rows[:, : self.geometry.packed_row_bytes]

    def codes(self) -> NDArray[np.int8]:
        """int8 codes [O, I]; FormatError if the tensor is float or a byte means nothing."""
        geometry = self.geometry
        if geometry.layout.is_float:
            raise FormatError(f"tensor {self.name} holds {geometry.layout.label} values, not codes")
        try:
            if geometry.layout.is_tiled:
                tiles = self.data.reshape(geometry.tiles_shape)
                packing = _TILED_PACKING[geometry.layout]
                codes = packing.unpack(tiles, geometry.rows, geometry.cols, geometry.packing_group)
            elif geometry.layout is Layout.TERNARY5:
                codes = ternary5.unpack(self.rows_data(), geometry.cols, geometry.packing_group)
            else:
                codes = _ROW_PACKING[geometry.layout].unpack(self.rows_data(), geometry.cols)
        except FormatError as error:
            raise FormatError(f"tensor {self.name}: {error}") from None
        return np.asarray(codes, np.int8)

    def scales(self) -> NDArray[np.float32]:
        """float32 scales: [] per tensor, [O] per row, [O, G] per group (float16 on disk); float layouts have none."""
        geometry = self.geometry
        if geometry.scale_type is ScaleType.NONE:
            raise FormatError(f"tensor {self.name} holds {geometry.layout.label} values and has no scales")
        dtype = "<f2" if geometry.scale_type is ScaleType.FLOAT16 else "<f4"
        stored = np.frombuffer(self.scale_data, dtype).reshape(geometry.scale_shape).astype(np.float32)
        if not np.isfinite(stored).all():
            raise FormatError(f"tensor {self.name}: a scale is not a finite number; the data is damaged")
        match geometry.granularity:
            case Granularity.PER_TENSOR:
                return stored.reshape(())
            case Granularity.PER_ROW:
                return stored[: geometry.rows]
            case _:
                return np.asarray(scales_from_tiles(stored, geometry.rows) if geometry.layout.is_tiled else stored)

    def values(self) -> NDArray[np.float32]:
        """float32 values [O, I]: the stored ones, or codes * scale."""
        geometry = self.geometry
        if geometry.layout.is_float:
            dtype = "<f2" if geometry.layout is Layout.FLOAT16 else "<f4"
            values = np.ascontiguousarray(self.rows_data()).view(dtype).astype(np.float32)
            _refuse_not_finite(self.name, values)
            return values
        scale = self.scales()
        if geometry.granularity is Granularity.PER_ROW:
            scale = scale[:, None]
        elif geometry.granularity is Granularity.PER_GROUP:
            scale = np.repeat(scale, geometry.group_size, axis=1)[:, : geometry.cols]
        return self.codes().astype(np.float32) * scale

    def with_layout(self, layout: Layout) -> StoredTensor:
        """The same codes and scales in another layout of the same level; exact, both ways."""
        if layout is self.layout:
            return self
        if LEVEL_OF[layout] != self.level or layout.is_float:
            raise FormatError(
                f"tensor {self.name}: {self.layout.label} cannot become {layout.label}: another level of precision"
            )
        geometry = replace(self.geometry, layout=layout)
        scale = self.scales()
        return replace(
            self, geometry=geometry, data=_pack(self.codes(), geometry), scale_data=_pack_scales(scale, geometry)
        )

    def for_exchange(self) -> StoredTensor:
        """Row by row instead of tiles."""
        return self.with_layout(EXCHANGE_LAYOUT.get(self.layout, self.layout))

    def for_running(self) -> StoredTensor:
        """Tiles instead of row by row, where there is a tiled layout."""
        return self.with_layout(RUN_LAYOUT.get(self.layout, self.layout))


_EMPTY: NDArray[np.uint8] = np.zeros(0, np.uint8)


def _refuse_not_finite(name: str, values: NDArray[Any]) -> None:
    if not np.isfinite(values).all():
        raise FormatError(f"tensor {name}: {int((~np.isfinite(values)).sum())} values are NaN or infinite")


def _with_stride(rows_OB: NDArray[np.uint8], stride: int) -> NDArray[np.uint8]:
    padded = np.zeros((rows_OB.shape[0], stride), np.uint8)
    padded[:, : rows_OB.shape[1]] = rows_OB
    return padded.reshape(-1)


def _pack(codes_OI: NDArray[Any], geometry: Geometry) -> NDArray[np.uint8]:
    if geometry.layout.is_float:
        raise FormatError(f"layout {geometry.layout.label} holds values, not codes")
    if geometry.layout.is_tiled:
        tiles = _TILED_PACKING[geometry.layout].pack(codes_OI, geometry.packing_group)
        return np.asarray(tiles, np.uint8).reshape(-1)
    if geometry.layout is Layout.TERNARY5:
        return _with_stride(ternary5.pack(codes_OI, geometry.packing_group), geometry.row_stride)
    return _with_stride(_ROW_PACKING[geometry.layout].pack(codes_OI), geometry.row_stride)


def _pack_scales(scale: NDArray[Any], geometry: Geometry) -> NDArray[np.uint8]:
    expected = {
        Granularity.PER_TENSOR: (1,),
        Granularity.PER_ROW: (geometry.rows,),
        Granularity.PER_GROUP: (geometry.rows, geometry.groups),
    }[geometry.granularity]
    given = np.asarray(scale)
    if given.shape == () and geometry.granularity is Granularity.PER_TENSOR:
        given = given.reshape(1)
    if given.shape != expected:
        raise FormatError(f"scales of shape {given.shape}, expected {expected}")
    dtype = "<f2" if geometry.scale_type is ScaleType.FLOAT16 else "<f4"
    with np.errstate(over="ignore"):
        exact = given.astype(dtype)
    if not np.isfinite(exact).all() or not np.array_equal(exact.astype(np.float64), given.astype(np.float64)):
        width = "float16" if dtype == "<f2" else "float32"
        raise FormatError(f"a scale is not finite or not a {width} number; scales are stored exactly as trained")
    if geometry.layout.is_tiled and geometry.granularity is Granularity.PER_GROUP:
        exact = scales_to_tiles(exact)
    elif geometry.layout.is_tiled and geometry.granularity is Granularity.PER_ROW:
        padded = np.zeros(geometry.scale_shape, dtype)
        padded[: geometry.rows] = exact
        exact = padded
    return np.ascontiguousarray(exact).reshape(-1).view(np.uint8)
