"""What is inside a ``.1bit`` file, in numbers: for ``onebit info``, reports and tests.

Codes are counted by a histogram of the packed bytes, fifty times faster than unpacking them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebit.errors import FormatError
from onebit.formats.layout import EXCHANGE_LAYOUT, Layout
from onebit.formats.onebit_file import OneBitFile
from onebit.formats.stored_tensor import StoredTensor

__all__ = ["TensorSummary", "count_codes", "format_by_layout", "summarise"]

_INVALID = 2
_CHUNK = 1 << 24  # bytes counted at a time: bincount widens them to eight bytes each


@dataclass(frozen=True)
class TensorSummary:
    """One tensor, as a table shows it. ``shares`` are those of -1, 0 and +1, None for layouts with more values."""

    name: str
    rows: int
    cols: int
    layout: str
    granularity: str
    group_size: int | None
    activation: str
    turned: bool
    bytes: int
    bits_per_weight: float
    shares: tuple[float, float, float] | None


def count_codes(tensor: StoredTensor) -> tuple[int, int, int] | None:
    """How many codes are -1, 0 and +1; None for layouts other than binary and ternary."""
    if tensor.level not in ("binary", "ternary"):
        return None
    table_BC = _codes_of_bytes(EXCHANGE_LAYOUT.get(tensor.layout, tensor.layout), tensor.layout.is_tiled)
    packed = tensor.data if tensor.layout.is_tiled else tensor.rows_data()
    histogram_B = _histogram(packed)
    counts = [int(histogram_B @ (table_BC == code).sum(1)) for code in (-1, 0, 1, _INVALID)]
    if counts.pop():
        raise FormatError(f"tensor {tensor.name}: some {tensor.layout.label} bytes mean nothing; the data is damaged")
    padding_code = -1 if tensor.level == "binary" else 0
    counts[padding_code + 1] -= sum(counts) - tensor.shape[0] * tensor.shape[1]
    return counts[0], counts[1], counts[2]


def _histogram(packed: NDArray[np.uint8]) -> NDArray[np.int64]:
    counts = np.zeros(256, np.int64)
    step = max(1, _CHUNK // packed.shape[-1]) if packed.ndim == 2 else _CHUNK
    for start in range(0, packed.shape[0], step):
        counts += np.bincount(packed[start : start + step].reshape(-1), minlength=256)
    return counts


@cache
def _codes_of_bytes(layout: Layout, tiled: bool) -> NDArray[np.int8]:
    """The codes of every byte, [256, codes per byte]; 2 where they mean nothing."""
    byte = np.arange(256)[:, None]
    if layout is Layout.BINARY:
        return ((byte >> np.arange(8) & 1) * 2 - 1).astype(np.int8)
    if layout is Layout.TERNARY:
        meaning = np.array([-1, 0, 1, _INVALID] if tiled else [0, 1, _INVALID, -1], np.int8)
        return np.asarray(meaning[byte >> 2 * np.arange(4) & 3], np.int8)
    table = np.full((256, 5), _INVALID, np.int8)
    for v in range(243):
        table[(v * 256 + 242) // 243] = [v // 3 ** (4 - i) % 3 - 1 for i in range(5)]
    return table


def summarise_tensor(tensor: StoredTensor) -> TensorSummary:
    """The figures of one tensor."""
    geometry = tensor.geometry
    counts = count_codes(tensor)
    weights = geometry.rows * geometry.cols
    return TensorSummary(
        name=tensor.name,
        rows=geometry.rows,
        cols=geometry.cols,
        layout=tensor.layout.label,
        granularity=geometry.granularity.name.lower(),
        group_size=geometry.group_size or None,
        activation=tensor.activation.name.lower(),
        turned=tensor.turned,
        bytes=tensor.stored_bytes,
        bits_per_weight=tensor.bits_per_weight,
        shares=None if counts is None else (counts[0] / weights, counts[1] / weights, counts[2] / weights),
    )


def summarise(file: OneBitFile) -> dict[str, Any]:
    """Plain values for JSON: description, sections, tensors, totals, and the cost that export measured (or None)."""
    tensors = [summarise_tensor(tensor) for tensor in file.tensors.values()]
    return {
        "description": asdict(file.description),
        "sections": _sections(file),
        "tensors": [asdict(tensor) for tensor in tensors],
        "totals": _totals(file, tensors),
        "tables_cost": (file.manifest or {}).get("tables_cost"),
    }


def _sections(file: OneBitFile) -> dict[str, bool]:
    known = {
        "CONFIG": file.config,
        "TOKJSON": file.tokenizer_json,
        "TOKBIN": file.tokenizer_binary,
        "CHATTPL": file.chat_template,
        "CHATSTR": file.chat_strings,
        "MANIFEST": file.manifest,
        "HADAMARD": file.rotations or None,
    }
    return {name: value is not None for name, value in known.items()} | dict.fromkeys(file.other_sections, True)


def _totals(file: OneBitFile, tensors: list[TensorSummary]) -> dict[str, Any]:
    weights = file.num_weights
    stored = sum(tensor.bytes for tensor in tensors)
    coded = [tensor for tensor in tensors if tensor.shares is not None]
    coded_weights = sum(tensor.rows * tensor.cols for tensor in coded)
    shares = None
    if coded_weights:
        weighted = np.array([[share * tensor.rows * tensor.cols for share in tensor.shares or ()] for tensor in coded])
        shares = dict(zip(("-1", "0", "+1"), (weighted.sum(0) / coded_weights).tolist(), strict=True))
    return {
        "weights": weights,
        "tensor_bytes": stored,
        "bits_per_weight": 8 * stored / weights,
        "float16_bytes": 2 * weights,
        "smaller_than_float16": 2 * weights / stored,
        "coded_weights": coded_weights,
        "coded_bits_per_weight": 8 * sum(t.bytes for t in coded) / coded_weights if coded_weights else None,
        "shares": shares,
    }


def format_by_layout(summary: dict[str, Any]) -> str:
    """A small table of a summary: tensors, weights, bytes and bits per weight of each layout."""
    rows: dict[str, list[int]] = {}
    for tensor in summary["tensors"]:
        row = rows.setdefault(tensor["layout"], [0, 0, 0])
        for place, amount in enumerate((1, tensor["rows"] * tensor["cols"], tensor["bytes"])):
            row[place] += amount
    lines = [f"{'layout':<13} {'tensors':>7} {'weights':>14} {'bytes':>13} {'bpw':>7}"]
    for layout, (count, weights, stored) in sorted(rows.items(), key=lambda item: -item[1][2]):
        lines.append(f"{layout:<13} {count:>7} {weights:>14,} {stored:>13,} {8 * stored / weights:>7.3f}")
    return "\n".join(lines)
