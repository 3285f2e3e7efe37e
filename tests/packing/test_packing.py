"""Packing against bytes worked out by hand, against golden vectors made one code at a time, and against itself."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onebit.errors import FormatError
from onebit.packing import binary, binary_t16, int4, int8, ternary, ternary5, ternary5_t16, ternary_t16
from onebit.packing.tiles import scales_from_tiles, scales_to_tiles

ROW = ("ternary", "ternary5", "binary", "int4", "int8")
TILED = ("ternary_t16", "ternary5_t16", "binary_t16")
GOLDEN = Path(__file__).parent.parent / "golden" / "layouts.txt"


def module(layout: str) -> Any:
    return importlib.import_module(f"onebit.packing.{layout}")


def codes(*rows: list[int]) -> np.ndarray:
    return np.array(rows, np.int8)


def unpack(layout: str, packed: Any, rows: int, cols: int, group: int | None) -> Any:
    """The one call that differs between the two families."""
    keywords = {"group_size": group} if group else {}
    place = (rows, cols) if layout in TILED else (cols,)
    return module(layout).unpack(packed, *place, **keywords)


@st.composite
def matrices(draw: Any) -> tuple[str, np.ndarray, int | None]:
    """A layout, codes that it can hold (odd sizes included) and a group size where it takes one."""
    layout = draw(st.sampled_from(ROW + TILED))
    rows, cols = draw(st.integers(1, 35)), draw(st.integers(1, 300))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    largest = {"int4": 7, "int8": 127}.get(layout, 1)
    matrix = rng.integers(-largest, largest, (rows, cols), endpoint=True).astype(np.int8)
    if layout.startswith("binary"):
        matrix = np.where(matrix >= 0, 1, -1).astype(np.int8)
    grouped = layout in (*TILED, "ternary5")
    return layout, matrix, draw(st.sampled_from([None, 64, 128, 256])) if grouped else None


def test_row_bytes_by_hand() -> None:
    assert ternary.pack(codes([0, 1, -1, 0, 1])).tolist() == [[0b00_11_01_00, 0b01]]
    assert binary.pack(codes([1, -1, 1, -1, -1, -1, -1, -1, 1])).tolist() == [[0b101, 0b1]]
    assert int4.pack(codes([0, 7, -7])).tolist() == [[0xF8, 0x81]]
    assert int8.pack(codes([0, 1, -1, 127, -127])).tolist() == [[0, 1, 255, 127, 129]]
    # v = 2*81 + 1*27 + 0*9 + 1*3 + 2 = 194; 194 * 256 = 49664, + 242 = 49906 = 205 * 243 + 91
    assert ternary5.pack(codes([1, 0, -1, 0, 1])).tolist() == [[205]]
    assert ternary5.pack(codes([-1] * 5, [0] * 5, [1] * 5)).tolist() == [[0x00], [0x80], [0xFF]]


def test_tile_bytes_by_hand() -> None:
    # Row 1, inputs 0 and 5 of a 2 x 16 matrix: lane 1 = bytes 4..7; input 5 = 4 * 1 + 1 is bit pair 1 of byte 1.
    matrix = np.zeros((2, 16), np.int8)
    matrix[1, 0], matrix[1, 5] = 1, -1
    expected = bytearray([0x55] * 64)
    expected[4] = 0b01_01_01_10
    expected[5] = 0b01_01_00_01
    assert ternary_t16.pack(matrix).tobytes() == bytes(expected)
    bits = np.full((1, 32), -1, np.int8)
    bits[0, 30] = 1  # 30 = 4 * 7 + 2: bit 7 of byte 2
    assert binary_t16.pack(bits).tobytes() == bytes([0, 0, 0x80, 0]) + bytes(60)
    digits = np.zeros((1, 20), np.int8)
    digits[0, 0] = 1  # the most significant digit of byte 0: v = 121 + 81 = 202, (202 * 256 + 242) // 243 = 213
    assert ternary5_t16.pack(digits).tobytes() == bytes([213]) + bytes([0x80] * 63)


def golden_cases() -> list[tuple[str, int, int, int, list[int], bytes]]:
    lines = [line.split() for line in GOLDEN.read_text().splitlines() if not line.startswith("#")]
    return [
        (
            case[1],
            int(case[2]),
            int(case[3]),
            int(case[4]),
            [int(code) for code in values[1:]],
            bytes.fromhex(packed[1]),
        )
        for case, values, packed in zip(lines[0::3], lines[1::3], lines[2::3], strict=True)
    ]


@pytest.mark.parametrize("case", golden_cases(), ids=lambda case: "-".join(map(str, case[:4])))
def test_golden_vectors(case: tuple[str, int, int, int, list[int], bytes]) -> None:
    layout, rows, cols, group, values, expected = case
    matrix = np.array(values, np.int8).reshape(rows, cols)
    packed = module(layout).pack(matrix, **({"group_size": group} if group else {}))
    assert packed.tobytes() == expected
    assert np.array_equal(unpack(layout, packed, rows, cols, group or None), matrix)


@settings(max_examples=150, deadline=None)
@given(matrices())
def test_round_trip_is_exact_and_the_same_in_torch(drawn: tuple[str, np.ndarray, int | None]) -> None:
    torch = pytest.importorskip("torch")
    layout, matrix, group = drawn
    keywords = {"group_size": group} if group else {}
    packed = module(layout).pack(matrix, **keywords)
    assert packed.dtype == np.uint8
    back = unpack(layout, packed, *matrix.shape, group)
    assert back.dtype == np.int8
    assert np.array_equal(back, matrix)
    packed_torch = module(layout).pack(torch.from_numpy(matrix), **keywords)
    assert packed_torch.dtype == torch.uint8
    assert np.array_equal(packed_torch.numpy(), packed)
    assert np.array_equal(unpack(layout, packed_torch, *matrix.shape, group).numpy(), matrix)


@pytest.mark.parametrize("layout", ROW + TILED)
def test_codes_out_of_range_are_refused(layout: str) -> None:
    largest = {"int4": 7, "int8": 127}.get(layout, 1)
    for bad in (largest + 1, -largest - 1):
        matrix = np.ones((2, 9), np.int16)
        matrix[1, 4] = bad
        with pytest.raises(FormatError, match=rf"{layout}: 1 codes are out of range"):
            module(layout).pack(matrix)
    if layout.startswith("binary"):
        with pytest.raises(FormatError, match="out of range"):
            module(layout).pack(np.zeros((1, 4), np.int8))
    for shape in ((4,), (0, 4), (2, 0)):
        with pytest.raises(FormatError, match="rows, cols"):
            module(layout).pack(np.ones(shape, np.int8))


def test_bytes_that_mean_nothing_are_refused() -> None:
    with pytest.raises(FormatError, match="bits 10"):
        ternary.unpack(np.array([[0b10_00]], np.uint8), 4)
    with pytest.raises(FormatError, match="bits 11"):
        ternary_t16.unpack(np.full((1, 1, 64), 0x57, np.uint8), 16, 16)
    with pytest.raises(FormatError, match="code -8"):
        int4.unpack(np.array([[0x80]], np.uint8), 2)
    with pytest.raises(FormatError, match="-128"):
        int8.unpack(np.array([[0x80]], np.uint8), 1)
    impossible = set(range(256)) - {(v * 256 + 242) // 243 for v in range(243)}
    assert len(impossible) == 13
    for byte in impossible:
        with pytest.raises(FormatError, match="encode no five digits"):
            ternary5.unpack(np.array([[byte]], np.uint8), 5)


def test_padding_that_is_not_zero_is_refused() -> None:
    with pytest.raises(FormatError, match="padding"):
        ternary.unpack(np.array([[0b01_00_00_00]], np.uint8), 3)
    with pytest.raises(FormatError, match="padding"):
        binary.unpack(np.array([[0b1000]], np.uint8), 3)
    with pytest.raises(FormatError, match="padding"):
        ternary5.unpack(ternary5.pack(codes([0, 0, 0, 0, 1])), 4)
    with pytest.raises(FormatError, match="rows after the last"):
        ternary_t16.unpack(ternary_t16.pack(np.ones((2, 16), np.int8)), 1, 16)
    grouped = ternary5.pack(np.ones((1, 128), np.int8), 64)
    grouped[0, 12] = 0xFF  # the 65th digit of the first group, which holds 64
    with pytest.raises(FormatError, match="padding"):
        ternary5.unpack(grouped, 128, 64)


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(FormatError, match="expected 2 packed bytes"):
        ternary.unpack(np.zeros((1, 3), np.uint8), 8)
    with pytest.raises(FormatError, match="uint8"):
        ternary.unpack(np.zeros((1, 2), np.int16), 8)
    with pytest.raises(FormatError, match="take tiles"):
        binary_t16.unpack(np.zeros((1, 2, 64), np.uint8), 16, 32)


def test_groups_take_the_bytes_of_the_design() -> None:
    assert [ternary5.row_bytes(group, group) for group in (64, 128, 256)] == [13, 26, 52]
    assert ternary5.row_bytes(64 * 3 + 1, 64) == 3 * 13 + 1
    assert [ternary5_t16.pack(np.zeros((1, g), np.int8), g).shape[1] for g in (64, 128, 256)] == [4, 7, 13]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 9))
def test_group_scales_to_tiles_and_back(rows: int, groups: int) -> None:
    scale = np.arange(1, rows * groups + 1, dtype=np.float16).reshape(rows, groups)
    tiles = scales_to_tiles(scale)
    assert tiles.shape == (-(-rows // 16), groups, 16)
    for row in range(rows):
        assert np.array_equal(tiles[row // 16, :, row % 16], scale[row])
    assert tiles[-1, :, (rows - 1) % 16 + 1 :].sum() == 0
    assert np.array_equal(scales_from_tiles(tiles, rows), scale)
