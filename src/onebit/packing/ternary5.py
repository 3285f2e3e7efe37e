"""``ternary5``: five codes a byte in base 3, row by row; 1.6 bits a code.

A byte holds the digits d0..d4 = code + 1 of five successive inputs, the first as the most significant digit: ``v = 81
d0 + 27 d1 + 9 d2 + 3 d3 + d4`` (0 to 242), then scaled to the whole byte, ``byte = (v * 256 + 242) // 243``, so that
digit i comes back by multiplication alone: ``d_i = ((byte * 3^i mod 256) * 3) >> 8``.

==================  =====  =====
codes               v      byte
==================  =====  =====
-1 -1 -1 -1 -1      0      0x00
 0  0  0  0  0      121    0x80
+1 +1 +1 +1 +1      242    0xff
+1  0 -1  0 +1      194    0xcd
==================  =====  =====

With a group size each group starts a new byte (13, 26, 52 bytes for 64, 128, 256 inputs). Padding is code 0, the digit
1. The 13 byte values that no v gives are refused.
"""

from __future__ import annotations

from onebit.errors import FormatError
from onebit.packing.arrays import Array, cast, checked_bytes, checked_codes, zeros
from onebit.packing.padding import pad, padded_cols, strip

__all__ = ["decode", "encode", "pack", "row_bytes", "unpack"]

PER_BYTE = 5


def row_bytes(cols: int, group_size: int | None = None) -> int:
    """Bytes of one packed row, without alignment."""
    return padded_cols(cols, PER_BYTE, group_size) // PER_BYTE


def encode(digits: list[Array]) -> Array:
    """Five arrays of codes (most significant first) -> the scaled bytes, uint8."""
    v = cast(digits[0], "int32") + 1
    for digit in digits[1:]:
        v = v * 3 + digit + 1
    return cast((v * 256 + 242) // 243, "uint8")


def decode(packed: Array, layout: str) -> list[Array]:
    """Scaled bytes -> five int8 arrays of codes, most significant first; impossible bytes raise FormatError."""
    digits = []
    for i in range(PER_BYTE):
        rest = packed * 3**i  # uint8: the product wraps, which is the "mod 256" of the formula
        digits.append(cast(cast(rest, "int16") * 3 >> 8, "int8") - 1)
    impossible = encode(digits) != packed
    if bool(impossible.any()):
        raise FormatError(f"{layout}: {int(impossible.sum())} bytes encode no five digits; damaged data")
    return digits


def pack(codes_OI: Array, group_size: int | None = None) -> Array:
    """int8 codes [O, I] in {-1, 0, +1} -> uint8 [O, bytes], each group (if any) starting a new byte."""
    codes_OP = pad(checked_codes(codes_OI, -1, 1, "ternary5"), PER_BYTE, group_size)
    return encode([codes_OP[:, j::PER_BYTE] for j in range(PER_BYTE)])


def unpack(packed_OB: Array, cols: int, group_size: int | None = None) -> Array:
    """uint8 [O, bytes] -> int8 codes [O, cols]."""
    checked_bytes(packed_OB, row_bytes(cols, group_size), "ternary5")
    rows, count = packed_OB.shape
    codes_OP = cast(zeros(packed_OB, (rows, count * PER_BYTE)), "int8")
    for j, digit in enumerate(decode(packed_OB, "ternary5")):
        codes_OP[:, j::PER_BYTE] = digit
    return strip(codes_OP, cols, PER_BYTE, group_size, layout="ternary5")
