"""CRC-32C (Castagnoli, reflected polynomial 0x82f63b78) in numpy, fast enough for files of hundreds of megabytes.

A CRC is a chain, one step a byte. Here the data is cut into many lanes of equal length that step together, each
starting from 0, four bytes a step by two tables of 65536 entries. CRCs being linear over GF(2), neighbouring lanes
then join by ``crc(A B) = shift(crc(A), len(B)) ^ crc(B)``; the shift is a 32 x 32 bit matrix that is squared at each
level of the tree.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["crc32c"]

_POLYNOMIAL = 0x82F63B78
_LANES = 1 << 14  # 64 KiB of state: with the two tables it stays in a level-2 cache
_BLOCK_WORDS = 1 << 10  # words a lane handles between two joins: 64 MiB of data a block at most
_SMALL = 4096  # below this the byte loop is faster than setting lanes up

_Words = NDArray[np.uint32]


@cache
def _byte_table() -> _Words:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ np.uint32(_POLYNOMIAL), table >> 1).astype(np.uint32)
    return table


@cache
def _byte_list() -> list[int]:
    return [int(entry) for entry in _byte_table()]


@cache
def _word_tables() -> tuple[_Words, _Words]:
    """Tables that carry the low and the high 16 bits of the state over four zero bytes."""
    bytes_ = _byte_table()
    low, high = np.arange(1 << 16, dtype=np.uint32), np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)
    for _ in range(4):
        low = bytes_[low & 255] ^ low >> np.uint32(8)
        high = bytes_[high & 255] ^ high >> np.uint32(8)
    return low, high


def _bytewise(state: int, data: NDArray[np.uint8]) -> int:
    table = _byte_list()
    for byte in data.tobytes():
        state = table[(state ^ byte) & 255] ^ state >> 8
    return state


def _apply(matrix: _Words, states: _Words) -> _Words:
    """Multiply 32-bit column vectors by a matrix given as its 32 columns."""
    out = np.zeros_like(states)
    for bit in range(32):
        out ^= matrix[bit] * (states >> np.uint32(bit) & np.uint32(1))
    return out


def _square(matrix: _Words) -> _Words:
    return _apply(matrix, matrix)


@cache
def _shift_by_words(words: int) -> _Words:
    """The matrix that carries a state over ``4 * words`` zero bytes, ``words`` a power of two."""
    if words == 1:
        low, high = _word_tables()
        ones = np.uint32(1) << np.arange(32, dtype=np.uint32)
        columns: _Words = low[ones & 0xFFFF] ^ high[ones >> np.uint32(16)]
        return columns
    return _square(_shift_by_words(words // 2))


def _shift_state(state: int, words: int) -> int:
    out, step = np.array([state], np.uint32), 1
    while words:
        if words & 1:
            out = _apply(_shift_by_words(step), out)
        words, step = words >> 1, step * 2
    return int(out[0])


def _lanewise(words_LW: _Words) -> int:
    """The state of [lanes, words per lane] read in memory order, from 0; both sizes powers of two."""
    low, high = _word_tables()
    lanes, per_lane = words_LW.shape
    columns_WL = np.ascontiguousarray(words_LW.T)
    state = np.zeros(lanes, np.uint32)
    for column in columns_WL:
        state ^= column
        state = low[state & 0xFFFF] ^ high[state >> np.uint32(16)]
    while lanes > 1:
        state = _apply(_shift_by_words(per_lane), state[0::2]) ^ state[1::2]
        lanes, per_lane = lanes // 2, per_lane * 2
    return int(state[0])


def crc32c(*parts: NDArray[np.uint8] | bytes) -> int:
    """CRC-32C of the parts one after another (``crc32c(b"123456789") == 0xe3069283``)."""
    state = 0xFFFFFFFF
    for part in parts:
        data = np.frombuffer(part, np.uint8) if isinstance(part, bytes) else part.reshape(-1).view(np.uint8)
        position = 0
        while data.size - position >= _SMALL:
            lanes, per_lane = _block_shape((data.size - position) // 4)
            count = lanes * per_lane
            words = np.frombuffer(data[position : position + 4 * count], "<u4").astype(np.uint32, copy=False)
            state = _shift_state(state, count) ^ _lanewise(words.reshape(lanes, per_lane))
            position += 4 * count
        state = _bytewise(state, data[position:])
    return state ^ 0xFFFFFFFF


def _block_shape(words: int) -> tuple[int, int]:
    """The largest block of lanes x words, both powers of two, that fits: few words a lane while the block is small."""
    size = min(1 << words.bit_length() - 1, _LANES * _BLOCK_WORDS)
    per_lane = max(16, size // _LANES)
    return size // per_lane, per_lane
