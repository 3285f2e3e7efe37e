"""What the demo's report shows, measured on the exported file: codes and sizes.

Everything here reads the `.1bit` file itself, not the model in memory: the report is about what a user ships.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

from onebit.eval.charts import Segment, ShareRow
from onebit.formats.layout import Kind
from onebit.formats.onebit_file import OneBitFile
from onebit.formats.stored_tensor import StoredTensor

__all__ = ["bits_per_ternary_weight", "code_shares", "num_ternary", "sizes"]

_TABLES = (Kind.TOKEN_EMBEDDING, Kind.POSITION_EMBEDDING, Kind.HEAD)


def _ternary(file: OneBitFile) -> list[StoredTensor]:
    return [tensor for tensor in file.tensors.values() if tensor.level == "ternary"]


def _num_weights(tensors: Iterable[StoredTensor]) -> int:
    return sum(tensor.shape[0] * tensor.shape[1] for tensor in tensors)


def num_ternary(file: OneBitFile) -> int:
    """Weights stored as -1, 0 or +1."""
    return _num_weights(_ternary(file))


def bits_per_ternary_weight(file: OneBitFile) -> float:
    """Bits in the file per ternary weight, scales and padding included."""
    return 8 * sum(tensor.stored_bytes for tensor in _ternary(file)) / max(num_ternary(file), 1)


def code_shares(file: OneBitFile) -> list[tuple[str, list[ShareRow]]]:
    """Shares of -1, 0 and +1 in each ternary tensor, by layer."""
    groups = []
    for layer, tensors in groupby(_ternary(file), key=lambda tensor: tensor.layer):
        rows = [_share(tensor) for tensor in tensors]
        groups.append((f"layer {layer}", rows))
    return groups


def _share(tensor: StoredTensor) -> ShareRow:
    counts = np.bincount(tensor.codes().ravel().astype(np.int64) + 1, minlength=3) / tensor.codes().size
    return ShareRow(tensor.kind.name.lower(), *(float(share) for share in counts))


def sizes(file: OneBitFile, path: Path) -> tuple[list[Segment], list[Segment]]:
    """(the same weights as float16, computed; the file as it lies on disk), both in parts, in MB."""
    ternary = _ternary(file)
    tables = [tensor for tensor in file.tensors.values() if tensor.kind in _TABLES]
    rest = file.num_weights - _num_weights(ternary) - _num_weights(tables)
    computed = [2 * _num_weights(ternary), 2 * _num_weights(tables), 2 * rest]
    stored = [sum(tensor.stored_bytes for tensor in tensors) for tensors in (ternary, tables)]
    measured = [*stored, path.stat().st_size - sum(stored)]
    names = (("ternary weights", "ternary"), ("embedding", "embedding"), ("tokenizer, norms", "rest"))

    def parts(values: Sequence[int]) -> list[Segment]:
        return [Segment(label, value / 1e6, style) for (label, style), value in zip(names, values, strict=True)]

    return parts(computed), parts(measured)
