"""CRC-32C against published values and a byte-by-byte loop."""

from __future__ import annotations

import numpy as np
import pytest

from onebit.formats.crc32c import crc32c


def slow(data: bytes) -> int:
    """The textbook loop, one bit at a time."""
    state = 0xFFFFFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = state >> 1 ^ (0x82F63B78 if state & 1 else 0)
    return state ^ 0xFFFFFFFF


def test_published_values() -> None:
    # RFC 3720, appendix B.4, and the check value of the polynomial
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert crc32c() == crc32c(b"") == 0


@pytest.mark.parametrize("size", [1, 63, 4095, 4096, 4097, 65_537, 300_007])
def test_lanes_equal_the_loop_and_parts_equal_the_whole(size: int) -> None:
    data = np.random.default_rng(size).integers(0, 256, size).astype(np.uint8)
    expected = slow(data.tobytes())
    assert crc32c(data) == expected
    assert crc32c(data[: size // 3], data[size // 3 :].tobytes()) == expected
