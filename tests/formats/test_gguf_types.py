"""GGUF's blocks: bytes against the gguf package where it has the type, against plain loops and literals where not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onebit.errors import ConfigError, FormatError
from onebit.formats.gguf_types import BLOCK_TYPES, decode, encode, type_for, types_that_hold
from onebit.formats.layout import Geometry, Granularity, Kind, Layout
from onebit.formats.stored_tensor import StoredTensor

KINDS = {kind.name: kind for kind in BLOCK_TYPES}
LAYOUTS = {"ternary": Layout.TERNARY, "binary": Layout.BINARY, "int8": Layout.INT8, "int4": Layout.INT4}
LIMITS = {"ternary": 1, "binary": 1, "int8": 127, "int4": 7}


def codes_of(level: str, rows: int, cols: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    codes = rng.integers(-LIMITS[level], LIMITS[level] + 1, (rows, cols)).astype(np.int8)
    return np.where(codes >= 0, 1, -1).astype(np.int8) if level == "binary" else codes


def geometry_of(level: str, rows: int, cols: int, granularity: Granularity, group: int = 0) -> Geometry:
    return Geometry(rows, cols, LAYOUTS[level], granularity, group)


def value_of(name: str, block: bytes, j: int) -> int:
    """Code j of a block, element by element, from the description of the type: nothing of ours is used."""
    if name == "TQ2_0":
        half, plane, m = j // 128, j % 128 // 32, j % 32
        return (block[32 * half + m] >> 2 * plane & 3) - 1
    if name in ("Q2_0", "PQ2_0"):
        return (block[2 + j // 4] >> 2 * (j % 4) & 3) - 1
    if name == "Q1_0":
        return 2 * (block[2 + j // 8] >> j % 8 & 1) - 1
    if name == "Q8_0":
        return int.from_bytes(block[2 + j : 3 + j], "little", signed=True)
    if name == "Q4_0":
        return (block[2 + j % 16] >> 4 * (j // 16) & 15) - 8
    if name == "I2_S":
        return (block[j % 32] >> 6 - 2 * (j // 32) & 3) - 1
    stages = [(0, 32, 5), (32, 16, 5), (48, 4, 4)] if name == "TQ1_0" else [(0, 16, 5), (16, 8, 5), (24, 2, 4)]
    for start, width, digits in stages:
        if j < width * digits:
            byte = block[start + j % width]
            return ((byte * 3 ** (j // width) % 256) * 3 >> 8) - 1
        j -= width * digits
    raise AssertionError(j)


@pytest.mark.parametrize("name", KINDS)
def test_every_code_lies_where_the_type_has_it(name: str) -> None:
    kind = KINDS[name]
    level = kind.levels[0]
    codes = codes_of(level, 2, 2 * kind.block)
    geometry = geometry_of(
        level,
        2,
        2 * kind.block,
        Granularity.PER_TENSOR
        if level in ("ternary", "binary")
        else Granularity.PER_ROW
        if level == "int8"
        else Granularity.PER_GROUP,
        32 if level == "int4" else 0,
    )
    scale = {"int8": np.ones(2), "int4": np.ones((2, 2))}.get(level, np.ones(()))
    raw = encode(kind, codes, scale, geometry)
    assert raw.size == kind.tensor_bytes(2, 2 * kind.block)
    size = kind.code_bytes if kind.has_one_scale else kind.code_bytes + 2
    for b in range(4):
        block = raw[b * size : (b + 1) * size].tobytes()
        found = [value_of(name, block, j) for j in range(kind.block)]
        assert found == codes.reshape(4, kind.block)[b].tolist()


# First codes -1, 0, +1, +1, then zeros (Q1_0: +1 for 0); scale 0.5 (float16 00 38, float32 00 00 00 3f).
GOLDEN = {
    "Q2_0": "0038 a4 555555555555555555555555555555",
    "PQ2_0": "0038 a4" + "55" * 31,
    "I2_S": "15 55 95 95" + "55" * 28 + "0000003f" + "00" * 28,
    "PTQ1_0": "2b 80 d5 d5" + "80" * 20 + "7f 7f" + "0038",
    "Q1_0": "0038 fe" + "ff" * 15,
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_bytes_of_types_that_the_package_does_not_have(name: str) -> None:
    kind = KINDS[name]
    codes = np.zeros((1, kind.block), np.int8)
    codes[0, :4] = [-1, 0, 1, 1]
    level = kind.levels[0]
    codes = codes | 1 if level == "binary" else codes
    raw = encode(kind, codes, np.float32(0.5), geometry_of(level, 1, kind.block, Granularity.PER_TENSOR))
    assert raw.tobytes().hex() == GOLDEN[name].replace(" ", "")
    found, scales = decode(kind, raw, 1, kind.block)
    assert np.array_equal(found, codes)
    assert (scales == 0.5).all()


@pytest.mark.parametrize("name", ["TQ1_0", "TQ2_0", "Q8_0", "Q4_0"])
def test_the_gguf_package_reads_the_same(name: str) -> None:
    gguf = pytest.importorskip("gguf")
    if not hasattr(gguf.GGMLQuantizationType, name):
        pytest.skip("an older gguf package, without this type")
    kind = KINDS[name]
    level, rows, cols = kind.levels[0], 3, 512
    codes = codes_of(level, rows, cols)
    group = 32 if level == "int4" else 0
    granularity = Granularity.PER_GROUP if group else Granularity.PER_ROW
    scale = np.array([[0.5, 0.25, 2.0]], np.float32).T * np.ones((1, cols // 32 if group else 1), np.float32)
    geometry = geometry_of(level, rows, cols, granularity, group)
    raw = encode(kind, codes, scale if group else scale[:, 0], geometry)
    values = gguf.quants.dequantize(raw.reshape(rows, -1), gguf.GGMLQuantizationType[name])
    assert np.array_equal(values, codes * scale[:, :1])
    if name in ("TQ1_0", "TQ2_0"):  # its quantiser, fed with codes * scale, makes the same bytes
        assert np.array_equal(gguf.quants.quantize(values, gguf.GGMLQuantizationType[name]).reshape(-1), raw)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(KINDS)), st.integers(1, 5), st.integers(1, 3), st.integers(0, 2**31))
def test_codes_and_scales_come_back(name: str, rows: int, blocks: int, seed: int) -> None:
    kind = KINDS[name]
    level, cols = kind.levels[seed % len(kind.levels)], kind.block * blocks
    codes = codes_of(level, rows, cols, seed)
    rng = np.random.default_rng(seed)
    if kind.has_one_scale:
        geometry, scale = geometry_of(level, rows, cols, Granularity.PER_TENSOR), np.float32(rng.uniform(1e-3, 1))
        expected = scale
    elif level == "int8":
        geometry, scale = geometry_of(level, rows, cols, Granularity.PER_ROW), rng.uniform(1e-3, 1, rows).astype("f2")
        expected = np.repeat(scale[:, None], blocks, 1)
    else:
        geometry = geometry_of(level, rows, cols, Granularity.PER_GROUP, kind.block)
        scale = expected = rng.uniform(1e-3, 1, (rows, blocks)).astype("f2")
    found, scales = decode(kind, encode(kind, codes, scale, geometry), rows, cols)
    assert np.array_equal(found, codes)
    assert np.array_equal(scales, expected.astype(np.float32))


def tensor(level: str, cols: int, granularity: Granularity, group: int = 0, rows: int = 4) -> StoredTensor:
    shape = {Granularity.PER_TENSOR: (), Granularity.PER_ROW: (rows,)}.get(
        granularity, (rows, -(-cols // (group or 1)))
    )
    scale = np.ones(shape, np.float16 if granularity is Granularity.PER_GROUP else np.float32)
    codes = codes_of(level, rows, cols)
    return StoredTensor.from_codes("w", Kind.Q, 0, codes, scale, LAYOUTS[level], granularity, group)


@pytest.mark.parametrize(
    ("level", "cols", "granularity", "group", "usual", "holders"),
    [
        ("ternary", 256, Granularity.PER_TENSOR, 0, "TQ2_0", ["TQ2_0", "TQ1_0", "Q2_0", "I2_S", "PQ2_0", "PTQ1_0"]),
        ("ternary", 256, Granularity.PER_ROW, 0, "TQ2_0", ["TQ2_0", "TQ1_0", "Q2_0", "PQ2_0", "PTQ1_0"]),
        ("ternary", 384, Granularity.PER_ROW, 0, "Q2_0", ["Q2_0", "PQ2_0", "PTQ1_0"]),
        ("ternary", 256, Granularity.PER_GROUP, 128, "Q2_0", ["Q2_0", "PQ2_0", "PTQ1_0"]),
        ("ternary", 256, Granularity.PER_GROUP, 64, "Q2_0", ["Q2_0"]),
        ("binary", 384, Granularity.PER_GROUP, 128, "Q1_0", ["Q2_0", "Q1_0", "PQ2_0", "PTQ1_0"]),
        ("binary", 64, Granularity.PER_ROW, 0, "Q2_0", ["Q2_0"]),
        ("int8", 96, Granularity.PER_ROW, 0, "Q8_0", ["Q8_0"]),
        ("int4", 96, Granularity.PER_GROUP, 32, "Q4_0", ["Q4_0"]),
    ],
)
def test_the_usual_type(
    level: str, cols: int, granularity: Granularity, group: int, usual: str, holders: list[str]
) -> None:
    stored = tensor(level, cols, granularity, group)
    assert types_that_hold(stored) == holders
    assert type_for(stored, None).name == usual


@pytest.mark.parametrize(
    ("asked", "cols", "granularity", "group", "message"),
    [
        (
            "TQ2_0",
            256,
            Granularity.PER_GROUP,
            128,
            "TQ2_0 has one scale for 256 weights: types that hold it: Q2_0, PQ2_0",
        ),
        ("I2_S", 256, Granularity.PER_ROW, 0, "I2_S has one scale a tensor: types that hold it: TQ2_0, TQ1_0, Q2_0"),
        (
            "TQ1_0",
            192,
            Granularity.PER_TENSOR,
            0,
            "blocks of 256 weights, which do not divide 192: types that hold it: Q2",
        ),
        (None, 96, Granularity.PER_TENSOR, 0, "TQ2_0 and Q2_0 cannot hold it: no GGUF type holds it"),
        ("TQ3_0", 256, Granularity.PER_TENSOR, 0, "expected one of TQ2_0.*did you mean 'TQ2_0'"),
    ],
)
def test_what_a_type_cannot_hold_is_refused_with_those_that_can(
    asked: str | None, cols: int, granularity: Granularity, group: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        type_for(tensor("ternary", cols, granularity, group), asked)


def test_bits_and_scales_that_mean_nothing_are_refused() -> None:
    raw = np.full(66, 0xFF, np.uint8)
    with pytest.raises(FormatError, match="a scale is NaN or infinite"):
        decode(KINDS["TQ2_0"], raw, 1, 256)
    raw[-2:] = 0
    with pytest.raises(FormatError, match="256 codes have the bits 11"):
        decode(KINDS["TQ2_0"], raw, 1, 256)
    geometry = geometry_of("ternary", 1, 256, Granularity.PER_TENSOR)
    for scale in (1e6, 1e-9):
        with pytest.raises(FormatError, match="too large or too small for float16"):
            encode(KINDS["TQ2_0"], np.zeros((1, 256), np.int8), np.float32(scale), geometry)
