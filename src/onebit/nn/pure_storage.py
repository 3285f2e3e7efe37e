"""Codes and counters as a training step keeps them: packed, read and written part by part, without checks.

The bytes are those of `onebit.packing`, so that a checkpoint's codes are an exported file's: ternary codes in the
layout `ternary` (rows of four codes a byte, two's complement in two bits: unpacking is a shift), binary ones in
`binary`, int4 counters in `int4`. Those functions refuse damaged data, which waits for the device; here data is ours.
Rows are whole bytes, so that a division into rows is a slice.

Shape suffixes: O outputs, I inputs, B bytes of a row.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from onebit.quant.counters import Counter

__all__ = ["pack_codes", "pack_counters", "packed_width", "unpack_codes", "unpack_counters"]


def packed_width(cols: int, bits: int) -> int:
    """Bytes of a row of `cols` numbers of 1, 2, 4 or 8 bits."""
    return -(-cols * bits // 8)


def unpack_codes(packed_OB: Tensor, cols: int, *, is_binary: bool) -> Tensor:
    """uint8 [O, B] -> int8 [O, I]."""
    if is_binary:
        shifts = torch.arange(8, device=packed_OB.device, dtype=torch.uint8)
        bits = packed_OB.unsqueeze(-1) >> shifts & 1
        return (bits.view(torch.int8).flatten(1) * 2 - 1)[:, :cols]
    return _unpack_pairs(packed_OB, cols)


def pack_codes(codes_OI: Tensor, *, is_binary: bool) -> Tensor:
    """int8 [O, I] -> uint8 [O, B], zeros in the padding."""
    if not is_binary:
        return _pack_pairs(codes_OI)
    bits = _columns((codes_OI > 0).to(torch.uint8), 8)
    packed = bits[..., 0]
    for n in range(1, 8):
        packed = packed | bits[..., n] << n
    return packed


def unpack_counters(stored_OB: Tensor, cols: int, counter: Counter) -> Tensor:
    """The buffer of a kind of counters -> int8 [O, I]."""
    if counter.name == "int8":
        return stored_OB
    if counter.name == "none":
        return _unpack_pairs(stored_OB, cols)
    nibbles = torch.stack((stored_OB & 15, stored_OB >> 4), dim=-1)
    return (nibbles.view(torch.int8).flatten(1) - 8)[:, :cols]


def pack_counters(counters_OI: Tensor, counter: Counter) -> Tensor:
    """int8 [O, I] -> int8 [O, I] or uint8 [O, B]."""
    if counter.name == "int8":
        return counters_OI
    if counter.name == "none":
        return _pack_pairs(counters_OI)
    nibbles = _columns((counters_OI + 8).view(torch.uint8), 2, padding=8)
    return nibbles[..., 0] | nibbles[..., 1] << 4


def _unpack_pairs(packed_OB: Tensor, cols: int) -> Tensor:
    shifts = torch.tensor([6, 4, 2, 0], device=packed_OB.device, dtype=torch.uint8)
    # Each pair goes to the top of its byte, from where an arithmetic shift brings its sign down.
    return ((packed_OB.unsqueeze(-1) << shifts).view(torch.int8) >> 6).flatten(1)[:, :cols]


def _pack_pairs(codes_OI: Tensor) -> Tensor:
    pairs = _columns(codes_OI.view(torch.uint8) & 3, 4)
    return pairs[..., 0] | pairs[..., 1] << 2 | pairs[..., 2] << 4 | pairs[..., 3] << 6


def _columns(x_OI: Tensor, per_byte: int, padding: int = 0) -> Tensor:
    """[O, I] -> [O, B, per_byte]."""
    missing = -x_OI.shape[1] % per_byte
    grouped: Tensor = F.pad(x_OI, (0, missing), value=padding).unflatten(1, (-1, per_byte))
    return grouped
