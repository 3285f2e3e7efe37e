"""Codes in the blocks of GGUF's low-bit types, and back: bytes only, scales apart.

Every type cuts a row into blocks of N weights; a block is the codes in some order and one float16 scale d before or
behind them. Orders, as llama.cpp's and its forks' readers have them:

=========  ====  =====  ==========================================================================================
type       N     bytes  codes of a block
=========  ====  =====  ==========================================================================================
TQ1_0      256   52     base 3: 32 bytes with weights m, m+32, ... (five digits, largest first), then 16 bytes of
                        the next 80, then 4 bytes with four digits; each value v is stored as (256 v + 242) // 243
PTQ1_0     128   26     the same with 16, 8 and 2 bytes
TQ2_0      256   64     two halves: byte m has weights m, m+32, m+64, m+96 in bits 0-1, 2-3, 4-5, 6-7, as code + 1
Q2_0       64    16     byte n has weights 4n to 4n+3 from the low bits up, as code + 1; 3 is +2
PQ2_0      128   32     the same
Q1_0       128   16     a bit a weight, the first in the low bit; 1 is +1, 0 is -1
Q8_0       32    32     int8
Q4_0       32    16     byte n has weight n in the low and n+16 in the high half, as code + 8
I2_S       128   32     byte p has weights p, p+32, p+64, p+96 in bits 6-7, 4-5, 2-3, 0-1, as code + 1; no d: one
                        float32 for the tensor behind its last block, 32 bytes with what pads them
=========  ====  =====  ==========================================================================================

Shape suffixes: B blocks, N weights of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from onebit.errors import FormatError

__all__ = ["Codes", "Packed", "packing_of"]

Codes: TypeAlias = NDArray[np.int8]
Packed: TypeAlias = NDArray[np.uint8]

# (bytes, digits in each) of the stages of a base-3 block.
_STAGES = {256: ((32, 5), (16, 5), (4, 4)), 128: ((16, 5), (8, 5), (2, 4))}


def _pack_trits(codes_BN: Codes) -> Packed:
    stages = _STAGES[codes_BN.shape[1]]
    digits_BN = (codes_BN + 1).astype(np.uint16)
    parts, at = [], 0
    for width, count in stages:
        planes = digits_BN[:, at : at + width * count].reshape(-1, count, width)
        value = sum(planes[:, n] * 3 ** (4 - n) for n in range(count))
        parts.append(((value.astype(np.uint32) * 256 + 242) // 243).astype(np.uint8))
        at += width * count
    return np.concatenate(parts, axis=1)


def _unpack_trits(packed_BP: Packed, size: int) -> Codes:
    parts, at = [], 0
    for width, count in _STAGES[size]:
        part = packed_BP[:, at : at + width].astype(np.uint16)
        planes = [((part * 3**n & 0xFF) * 3 >> 8) for n in range(count)]
        parts.append(np.stack(planes, axis=1).reshape(len(part), -1))
        at += width
    return np.concatenate(parts, axis=1).astype(np.int8) - 1


def _pack_tq2(codes_BN: Codes) -> Packed:
    bits = (codes_BN + 1).astype(np.uint8).reshape(-1, 2, 4, 32)
    return _joined([bits[:, :, n] for n in range(4)]).reshape(-1, 64)


def _unpack_tq2(packed_BP: Packed, size: int) -> Codes:
    halves = packed_BP.reshape(-1, 2, 1, 32)
    bits = halves >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    return _ternary(bits.reshape(-1, size).astype(np.int8) - 1)


def _pack_pairs(codes_BN: Codes) -> Packed:
    bits = (codes_BN + 1).astype(np.uint8).reshape(len(codes_BN), -1, 4)
    return _joined([bits[..., n] for n in range(4)])


def _joined(pairs: list[Packed]) -> Packed:
    """A byte of four bit pairs, the first in the low bits."""
    return np.asarray(pairs[0] | pairs[1] << 2 | pairs[2] << 4 | pairs[3] << 6, np.uint8)


def _unpack_pairs(packed_BP: Packed, size: int) -> Codes:
    bits = packed_BP[..., None] >> np.array([0, 2, 4, 6], np.uint8) & 3
    return bits.reshape(-1, size).astype(np.int8) - 1


def _pack_bits(codes_BN: Codes) -> Packed:
    return np.packbits(codes_BN > 0, axis=1, bitorder="little")


def _unpack_bits(packed_BP: Packed, size: int) -> Codes:
    return np.unpackbits(packed_BP, axis=1, bitorder="little").astype(np.int8) * 2 - 1


def _pack_int8(codes_BN: Codes) -> Packed:
    return np.ascontiguousarray(codes_BN).view(np.uint8)


def _unpack_int8(packed_BP: Packed, size: int) -> Codes:
    return np.ascontiguousarray(packed_BP).view(np.int8)


def _pack_int4(codes_BN: Codes) -> Packed:
    bits = (codes_BN + 8).astype(np.uint8)
    return np.asarray(bits[:, :16] | bits[:, 16:] << 4, np.uint8)


def _unpack_int4(packed_BP: Packed, size: int) -> Codes:
    return np.concatenate([packed_BP & 15, packed_BP >> 4], axis=1).astype(np.int8) - 8


def _pack_i2s(codes_BN: Codes) -> Packed:
    bits = (codes_BN + 1).astype(np.uint8).reshape(-1, 4, 32)
    return _joined([bits[:, 3 - n] for n in range(4)])


def _unpack_i2s(packed_BP: Packed, size: int) -> Codes:
    bits = packed_BP[:, None, :] >> np.array([6, 4, 2, 0], np.uint8)[:, None] & 3
    return _ternary(bits.reshape(-1, size).astype(np.int8) - 1)


def _ternary(codes_BN: Codes) -> Codes:
    if (wrong := int((codes_BN == 2).sum())) > 0:
        raise FormatError(f"{wrong} codes have the bits 11, which mean nothing")
    return codes_BN


_PACKING: dict[str, tuple[Callable[[Codes], Packed], Callable[[Packed, int], Codes]]] = {
    "TQ1_0": (_pack_trits, _unpack_trits),
    "PTQ1_0": (_pack_trits, _unpack_trits),
    "TQ2_0": (_pack_tq2, _unpack_tq2),
    "Q2_0": (_pack_pairs, _unpack_pairs),
    "PQ2_0": (_pack_pairs, _unpack_pairs),
    "Q1_0": (_pack_bits, _unpack_bits),
    "Q8_0": (_pack_int8, _unpack_int8),
    "Q4_0": (_pack_int4, _unpack_int4),
    "I2_S": (_pack_i2s, _unpack_i2s),
}


def packing_of(name: str) -> tuple[Callable[[Codes], Packed], Callable[[Packed, int], Codes]]:
    """(int8 [B, N] -> uint8 [B, bytes], and back given N) of a type's codes."""
    return _PACKING[name]
