"""From the scales of a GGUF tensor's blocks to those of a tensor, its rows or its groups.

A file of others says only what its blocks have: equal scales are taken for one. A file of ours says what it was written
from, and the exact float32 scales where float16 rounded them; both must be what its blocks have.

Shape suffixes: O rows, I columns, B blocks of a row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebit.errors import FormatError
from onebit.formats.description import TensorPlan
from onebit.formats.gguf_reader import GGUFTensor
from onebit.formats.gguf_types import decode
from onebit.formats.layout import GROUP_SIZES, INT4_GROUP, Granularity, Layout
from onebit.formats.stored_tensor import StoredTensor

__all__ = ["coded_tensor"]

_LAYOUT_OF = {"ternary": Layout.TERNARY, "binary": Layout.BINARY, "int8": Layout.INT8, "int4": Layout.INT4}
_Shared = tuple[Granularity, int, NDArray[Any]]


def coded_tensor(found: GGUFTensor, plan: TensorPlan, about: dict[str, Any], exact: Any) -> StoredTensor | None:
    """A tensor of codes, row by row; None for blocks that only floats hold: int8 whose blocks differ, int4 with -8.

    about: what a file of ours says of the tensor, and exact its scales; {} and None for the files of others.
    """
    assert found.kind is not None
    codes_OI, scale_OB = decode(found.kind, found.data, found.rows, found.cols)
    level = found.kind.levels[0]
    if level == "ternary" and bool((codes_OI == 2).any()):
        level = "int4"  # +2 is a code of Q2_0's blocks, and of int4
    if level == "int4" and bool((codes_OI < -7).any()):
        return None
    if about:
        level = "binary" if level == "ternary" and about.get("level") == "binary" else level
        granularity, group, scale = _as_said(about, exact, scale_OB, found)
    elif level == "int4":
        granularity, group = Granularity.PER_GROUP, INT4_GROUP
        scale = np.repeat(_whole(scale_OB, found), found.kind.block // INT4_GROUP, axis=1).astype(np.float16)
    else:
        granularity, group, scale = _shared(scale_OB, found.kind.block)
    if level == "int8":
        if granularity is Granularity.PER_TENSOR:
            granularity, scale = Granularity.PER_ROW, np.full(found.rows, scale, np.float32)
        if granularity is not Granularity.PER_ROW:
            return None
    return StoredTensor.from_codes(
        plan.name, plan.kind, plan.layer, codes_OI, scale, _LAYOUT_OF[level], granularity, group
    )


def _whole(scale_OB: NDArray[np.float32], found: GGUFTensor) -> NDArray[np.float32]:
    """The scale of every block, [O, B]."""
    assert found.kind is not None
    return np.broadcast_to(scale_OB, (found.rows, found.cols // found.kind.block))


def _shared(scale_OB: NDArray[np.float32], block: int) -> _Shared:
    """The coarsest granularity over which scales of blocks are equal: (granularity, group size, scales)."""
    if scale_OB.ndim == 0:
        return Granularity.PER_TENSOR, 0, scale_OB
    if bool((scale_OB == scale_OB[0, 0]).all()):
        return Granularity.PER_TENSOR, 0, np.full((), scale_OB[0, 0], np.float32)
    if bool((scale_OB == scale_OB[:, :1]).all()):
        return Granularity.PER_ROW, 0, np.ascontiguousarray(scale_OB[:, 0])
    return Granularity.PER_GROUP, block, scale_OB.astype(np.float16)


def _as_said(about: dict[str, Any], exact: Any, scale_OB: NDArray[np.float32], found: GGUFTensor) -> _Shared:
    """The granularity that the file names, with the exact scales."""
    assert found.kind is not None
    names = {entry.name.lower(): entry for entry in Granularity if entry is not Granularity.NONE}
    granularity, group = names.get(str(about.get("granularity"))), about.get("group_size")
    is_grouped = granularity is Granularity.PER_GROUP
    if (
        granularity is None
        or type(group) is not int
        or group not in ((INT4_GROUP, *GROUP_SIZES) if is_grouped else (0,))
    ):
        raise FormatError(f"onebit.tensors gives granularity {str(about.get('granularity'))[:20]!r}, {str(group)[:20]}")
    if group % found.kind.block:
        raise FormatError(f"onebit.tensors gives groups of {group}, which are no whole blocks of {found.kind.block}")
    whole_OB = _whole(scale_OB, found)
    step = group // found.kind.block if is_grouped else whole_OB.shape[1]
    rounded = whole_OB[:1, :1] if granularity is Granularity.PER_TENSOR else whole_OB[:, ::step]
    spread = np.repeat(rounded, step, axis=1)[:, : whole_OB.shape[1]]
    if not np.array_equal(np.broadcast_to(spread, whole_OB.shape), whole_OB):
        raise FormatError("onebit.tensors gives a granularity over which the scales of its blocks differ")
    if is_grouped:
        return granularity, group, rounded.astype(np.float16)
    scale = np.ascontiguousarray(rounded).reshape(-1)
    if exact is not None:
        if not isinstance(exact, np.ndarray) or exact.dtype != np.dtype("<f4") or exact.shape != scale.shape:
            raise FormatError(f"onebit.scales are not {scale.size} float32 numbers")
        with np.errstate(over="ignore", invalid="ignore"):
            if not np.array_equal(exact.astype("<f2").astype(np.float32), scale):
                raise FormatError("onebit.scales are not what its blocks have rounded: the file was changed")
        scale = exact.astype(np.float32)
    return granularity, 0, scale.reshape(()) if granularity is Granularity.PER_TENSOR else scale
