"""A model as a C header: weights in exchange layout, for firmware that has no file system.

One ``static const`` array, aligned to 64 bytes, for each tensor's data and scales, and a table of them. Rows are
packed without the file's alignment, since flash is dear. The header is C11 and C++11, warns about nothing under
``-Wall -Wextra -pedantic``, and needs about 3.6 characters a byte: for models of a few megabytes, not of gigabytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebit.formats.atomic import replacing
from onebit.formats.layout import Layout, ScaleType
from onebit.formats.onebit_file import OneBitFile
from onebit.formats.stored_tensor import StoredTensor

__all__ = ["write_c_header"]

_TYPES = """\
#ifndef ONEBIT_TENSOR_DEFINED
#define ONEBIT_TENSOR_DEFINED

#ifdef __cplusplus
#define ONEBIT_ALIGNED alignas(64)
#else
#define ONEBIT_ALIGNED _Alignas(64)
#endif

/* One tensor. A weight is code * scale. Numbers as in docs/format.md:
   layout       0 float32, 1 float16 (bits in uint16_t), 2 int8, 3 int4,
                4 binary (8 codes a byte, bit 0 first, 1 is +1, 0 is -1),
                5 ternary (4 codes a byte, low bits first, 00 = 0, 01 = +1, 11 = -1),
                6 ternary5 (5 codes a byte in base 3)
   granularity  0 none, 1 per tensor, 2 per row, 3 per group of group_size columns
   scale_type   0 none, 1 float, 2 float16 (bits in uint16_t) */
typedef struct onebit_tensor {
    const char *name;
    uint16_t kind;
    int32_t layer; /* -1: not in a layer */
    uint8_t layout, granularity, activation, scale_type;
    uint32_t rows, cols, group_size;
    uint32_t row_bytes; /* from one row of data to the next */
    const void *data;   /* [rows][row_bytes] */
    const void *scales; /* [1], [rows] or [rows][groups]; NULL for float layouts */
} onebit_tensor;

#endif
"""


def write_c_header(path: Path, file: OneBitFile, name: str | None = None) -> int:
    """Write ``path`` atomically; symbols start with ``name`` (the file's stem unless given). Returns the bytes
    written."""
    prefix = re.sub(r"\W", "_", name or path.stem)
    prefix = f"m_{prefix}" if prefix[:1].isdigit() else prefix
    with replacing(path) as out:
        for piece in _pieces(prefix, file.for_exchange()):
            out.write(piece.encode("ascii"))
        return out.tell()


def _pieces(prefix: str, file: OneBitFile) -> Iterator[str]:
    upper = prefix.upper()
    yield f"/* {prefix}: weights of a onebit model, written by onebit export. */\n"
    yield f"#ifndef {upper}_H\n#define {upper}_H\n\n#include <stddef.h>\n#include <stdint.h>\n\n{_TYPES}\n"
    yield from _sizes(upper, file)
    rows = []
    for tensor in file.tensors.values():
        symbol = f"{prefix}_{re.sub(r'[^0-9A-Za-z]', '_', tensor.name.removeprefix('model.'))}"
        yield from _array(symbol, _typed(tensor.rows_data(), tensor.layout))
        scaled = tensor.geometry.scale_type is not ScaleType.NONE
        if scaled:
            yield from _array(f"{symbol}_scale", _typed_scales(tensor))
        rows.append(_row(tensor, symbol, scaled))
    yield f"static const onebit_tensor {prefix}_tensors[{upper}_NUM_TENSORS] = {{\n{''.join(rows)}}};\n\n#endif\n"


def _sizes(upper: str, file: OneBitFile) -> Iterator[str]:
    model = file.description
    for name in (
        *("vocab_size", "hidden_size", "num_layers", "num_heads", "num_key_value_heads", "head_dim"),
        *("intermediate_size", "max_seq_len"),
    ):
        yield f"#define {upper}_{name.upper()} {getattr(model, name)}\n"
    for name in ("norm_eps", "rope_theta", "residual_scale"):
        yield f"#define {upper}_{name.upper()} {_float(getattr(model, name))}\n"
    for name in ("qk_norm", "sub_norm", "tied_head"):
        yield f"#define {upper}_{name.upper()} {int(getattr(model, name))}\n"
    for name in ("norm", "mlp", "position"):
        yield f"#define {upper}_{name.upper()}_{getattr(model, name).upper()} 1\n"
    yield f"#define {upper}_NUM_TENSORS {len(file.tensors)}\n\n"


def _typed(rows_OB: NDArray[np.uint8], layout: Layout) -> NDArray[Any]:
    """The packed rows as numbers of the C type they are meant as."""
    flat = np.ascontiguousarray(rows_OB).reshape(-1)
    return flat.view({Layout.FLOAT32: "<f4", Layout.FLOAT16: "<u2", Layout.INT8: "i1"}.get(layout, "u1"))


def _typed_scales(tensor: StoredTensor) -> NDArray[Any]:
    return tensor.scale_data.view("<f4" if tensor.geometry.scale_type is ScaleType.FLOAT32 else "<u2")


_C_TYPES = {"f": "float", "u1": "uint8_t", "u2": "uint16_t", "i": "int8_t"}
_LINE = 32


def _array(symbol: str, values: NDArray[Any]) -> Iterator[str]:
    kind = values.dtype.kind
    c_type = _C_TYPES[kind if kind != "u" else f"u{values.dtype.itemsize}"]
    yield f"ONEBIT_ALIGNED static const {c_type} {symbol}[{values.size}] = {{\n"
    for start in range(0, values.size, _LINE):
        line = values[start : start + _LINE].tolist()
        yield ",".join(_float(value) for value in line) if kind == "f" else ",".join(map(str, line))
        yield ",\n"
    yield "};\n\n"


def _float(value: float) -> str:
    """Nine significant digits, which give back any float32 exactly."""
    text = f"{value:.9g}"
    return f"{text}f" if "." in text or "e" in text else f"{text}.0f"


def _row(tensor: StoredTensor, symbol: str, scaled: bool) -> str:
    geometry = tensor.geometry
    numbers = (
        *(int(tensor.kind), -1 if tensor.layer is None else tensor.layer, int(geometry.layout)),
        *(int(geometry.granularity), int(tensor.activation), int(geometry.scale_type)),
        *(geometry.rows, geometry.cols, geometry.group_size, geometry.packed_row_bytes),
    )
    listed = ", ".join(str(number) for number in numbers)
    return f'    {{"{tensor.name}", {listed}, {symbol}, {f"{symbol}_scale" if scaled else "NULL"}}},\n'
