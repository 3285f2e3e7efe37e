"""Models of well-known shapes with random weights, to measure speed: written tensor by tensor, straight in the bytes of
the layout, so that 850 MB need neither their memory nor a quantiser.

The bytes are cut from a small pool of valid ones at random places: speed does not depend on what they are, only on
their number, and a checksum over them then costs more than they do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onebit.errors import ConfigError, nearest_name
from onebit.formats.description import ModelDescription, TensorPlan
from onebit.formats.layout import TILE_WIDTH, Activation, Geometry, Granularity, Kind, Layout
from onebit.formats.onebit_file import OneBitFile
from onebit.formats.onebit_writer import stream_file
from onebit.packing import ternary5_t16, ternary_t16
from onebit.packing.tiles import ROWS

__all__ = ["BODY_LAYOUTS", "SHAPES", "shape_file_name", "write_shape"]

SHAPES = {
    # microsoft/bitnet-b1.58-2B-4T
    "2b4t": ModelDescription(
        vocab_size=128256,
        hidden_size=2560,
        num_layers=30,
        num_heads=20,
        num_key_value_heads=5,
        head_dim=128,
        intermediate_size=6912,
        max_seq_len=4096,
        mlp="relu2_glu",
        sub_norm=True,
        rope_theta=500000.0,
    ),
    # BitNet b1.58 700M
    "700m": ModelDescription(
        vocab_size=32000,
        hidden_size=1536,
        num_layers=24,
        num_heads=16,
        num_key_value_heads=16,
        head_dim=96,
        intermediate_size=4096,
        max_seq_len=4096,
        mlp="swiglu",
    ),
    # GPT-2's vocabulary on 25 million weights: nine tenths of what a token reads are the head
    "45m": ModelDescription(
        vocab_size=50257,
        hidden_size=512,
        num_layers=6,
        num_heads=8,
        num_key_value_heads=8,
        head_dim=64,
        intermediate_size=2048,
        max_seq_len=4096,
        mlp="swiglu",
    ),
}
BODY_LAYOUTS = ("ternary_t16", "ternary5_t16", "binary_t16")

_POOL = 8 << 20
_CHUNK = 1 << 20
_TABLES = (Kind.TOKEN_EMBEDDING, Kind.HEAD)


def shape_file_name(shape: str, layout: str = BODY_LAYOUTS[0]) -> str:
    """The name that a shape's file has in a folder."""
    return f"{shape}-{layout}.1bit"


def write_shape(
    path: Path,
    shape: str,
    layout: str = BODY_LAYOUTS[0],
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Write a model of ``shape`` with random codes in ``layout`` and an int8 embedding, which is also its head, to
    ``path``; returns its size. ``progress`` is called with (bytes done, bytes in all)."""
    if shape not in SHAPES:
        raise ConfigError(f"shape must be one of {', '.join(SHAPES)}, got '{shape}'{nearest_name(shape, SHAPES)}")
    if layout not in BODY_LAYOUTS:
        raise ConfigError(
            f"layout must be one of {', '.join(BODY_LAYOUTS)}, got '{layout}'{nearest_name(layout, BODY_LAYOUTS)}"
        )
    description = SHAPES[shape]
    codes = Layout[layout.upper()]
    pools = _Pools(codes, np.random.default_rng(seed))
    tensors = {
        plan.name: _RandomTensor(plan.name, plan.kind, plan.layer, _geometry(plan, codes), _activation(plan), pools)
        for plan in description.plan()
        if plan.required
    }
    manifest = {"random_weights": {"shape": shape, "seed": seed}}
    return stream_file(path, OneBitFile(description=description, tensors={}, manifest=manifest), tensors, progress)


def _geometry(plan: TensorPlan, codes: Layout) -> Geometry:
    if plan.rows == 1:
        return Geometry(1, plan.cols, Layout.FLOAT32)
    if plan.kind in _TABLES:
        return Geometry(plan.rows, plan.cols, Layout.INT8, Granularity.PER_ROW)
    return Geometry(plan.rows, plan.cols, codes, Granularity.PER_TENSOR)


def _activation(plan: TensorPlan) -> Activation:
    return Activation.NONE if plan.rows == 1 else Activation.INT8


class _Pools:
    """Valid bytes of the layouts in use, and where to cut them."""

    def __init__(self, codes: Layout, rng: np.random.Generator) -> None:
        self._rng = rng
        valid = {codes: _valid_bytes(codes), Layout.INT8: np.arange(-127, 128).astype(np.int8).view(np.uint8)}
        self._pools = {layout: rng.choice(values, _POOL) for layout, values in valid.items()}

    def cut(self, layout: Layout, size: int) -> NDArray[np.uint8]:
        pool = self._pools[layout]
        out = np.empty(size, np.uint8)
        for begin in range(0, size, _CHUNK):
            part = out[begin : begin + _CHUNK]
            at = int(self._rng.integers(0, pool.size - part.size))
            part[:] = pool[at : at + part.size]
        return out


def _valid_bytes(layout: Layout) -> NDArray[np.uint8]:
    """Every byte that the layout can have, each once."""
    if layout is Layout.BINARY_T16:
        return np.arange(256).astype(np.uint8)
    pack, digits = (ternary_t16.pack, 4) if layout is Layout.TERNARY_T16 else (ternary5_t16.pack, 5)
    width = TILE_WIDTH[layout]
    codes = np.zeros((ROWS * math.ceil(3**digits / ROWS), width), np.int8)
    for j in range(digits):  # place j of byte 0 of a lane holds input 4 j
        codes[: 3**digits, 4 * j] = np.arange(3**digits) // 3**j % 3 - 1
    found: NDArray[np.uint8] = np.unique(np.asarray(pack(codes)).reshape(-1, 4)[: 3**digits, 0])
    return found


@dataclass(frozen=True)
class _RandomTensor:
    """A tensor whose bytes are made when the writer asks for them."""

    name: str
    kind: Kind
    layer: int | None
    geometry: Geometry
    activation: Activation
    pools: _Pools
    turned: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        return self.geometry.rows, self.geometry.cols

    @property
    def data(self) -> NDArray[np.uint8]:
        if self.geometry.layout is Layout.FLOAT32:
            return np.ones(self.geometry.cols, "<f4").view(np.uint8).copy()
        out = self.pools.cut(self.geometry.layout, self.geometry.data_bytes)
        if self.geometry.layout.is_tiled:
            self._pad(out)
        return out

    def _pad(self, out: NDArray[np.uint8]) -> None:
        """Inputs after the last one are 0 in the last tile of a row block, as the format has it."""
        width = TILE_WIDTH[self.geometry.layout]
        left = self.geometry.cols % width
        if left:
            tiles_NTRB = out.reshape(*self.geometry.tiles_shape[:2], ROWS, 4)
            rng = np.random.default_rng(0)
            last = rng.integers(-1, 1, (self.geometry.rows, left), endpoint=True).astype(np.int8)
            tiles_NTRB[:, -1:] = np.asarray(ternary5_t16.pack(last)).reshape(-1, 1, ROWS, 4)

    @property
    def scale_data(self) -> NDArray[np.uint8]:
        """What keeps activations near 1: codes times scale have the variance 1 / inputs, an embedding's rows 1."""
        if self.geometry.layout is Layout.FLOAT32:
            return np.empty(0, np.uint8)
        if self.geometry.layout is Layout.INT8:
            scale = math.sqrt(3) / 127
        else:
            scale = math.sqrt((1.0 if self.geometry.layout is Layout.BINARY_T16 else 1.5) / self.geometry.cols)
        return np.full(self.geometry.scale_shape, scale, "<f4").view(np.uint8)
