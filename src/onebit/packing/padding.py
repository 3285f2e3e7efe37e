"""Padding of the inputs axis: whole rows or each group by itself, up to a whole number of bytes or tiles.

Legend: O output rows, I input columns, P padded columns. ``width`` is how many codes one byte or one tile holds.
A group whose length is a multiple of the width needs no padding of its own, except a short last one, so only
``ternary5`` (5 a byte) and ``ternary5_t16`` (20 a tile) ever pad inside a row.
"""

from __future__ import annotations

from onebit.errors import FormatError
from onebit.packing.arrays import Array, zeros

__all__ = ["pad", "padded_cols", "strip"]


def _split(cols: int, width: int, group_size: int | None) -> tuple[int, int, int]:
    """Return (full groups, padded length of a full group, padded length of the rest)."""
    if cols < 1 or (group_size is not None and group_size < 1):
        raise FormatError(f"expected at least one column and a positive group size, got {cols} and {group_size}")
    if group_size is None or group_size % width == 0:
        return 0, 0, -(-cols // width) * width
    full, rest = divmod(cols, group_size)
    return full, -(-group_size // width) * width, -(-rest // width) * width


def padded_cols(cols: int, width: int, group_size: int | None = None) -> int:
    """How many code slots a row of ``cols`` codes takes."""
    full, group, rest = _split(cols, width, group_size)
    return full * group + rest


def pad(codes_OI: Array, width: int, group_size: int | None = None) -> Array:
    """[O, I] -> [O, P] with zeros in the padding."""
    rows, cols = codes_OI.shape
    full, group, rest = _split(cols, width, group_size)
    padded_OP = zeros(codes_OI, (rows, full * group + rest))
    done = 0
    if full and group_size is not None:
        done = full * group_size
        by_group = zeros(codes_OI, (rows, full, group))
        by_group[:, :, :group_size] = codes_OI[:, :done].reshape(rows, full, group_size)
        padded_OP[:, : full * group] = by_group.reshape(rows, full * group)
    padded_OP[:, full * group : full * group + cols - done] = codes_OI[:, done:]
    return padded_OP


def strip(padded_OP: Array, cols: int, width: int, group_size: int | None = None, *, layout: str) -> Array:
    """[O, P] -> [O, I]; padding that is not zero is refused, since a writer always leaves it zero."""
    rows = padded_OP.shape[0]
    full, group, rest = _split(cols, width, group_size)
    if padded_OP.shape[1] != full * group + rest:
        raise FormatError(f"{layout}: {cols} columns take {full * group + rest} slots, got {padded_OP.shape[1]}")
    tail = padded_OP[:, full * group :]
    if not full or group_size is None:
        _refuse_padding(tail[:, cols:], layout)
        return tail[:, :cols]
    by_group = padded_OP[:, : full * group].reshape(rows, full, group)
    done = full * group_size
    _refuse_padding(by_group[:, :, group_size:], layout)
    _refuse_padding(tail[:, cols - done :], layout)
    codes_OI = zeros(padded_OP, (rows, cols))
    codes_OI[:, :done] = by_group[:, :, :group_size].reshape(rows, done)
    codes_OI[:, done:] = tail[:, : cols - done]
    return codes_OI


def _refuse_padding(padding: Array, layout: str) -> None:
    if bool((padding != 0).any()):
        raise FormatError(f"{layout}: the padding after the last code is not zero; the data is damaged")
