"""A GGUF file as a ``.1bit`` model: codes and scales as they lie in its blocks, nothing quantised anew.

Scales of blocks become one of the tensor, of a row or of a group, whatever they are equal over; a file that onebit
wrote says itself what they were, and carries those that float16 had rounded. Blocks that are no codes of ours (Q4_K,
Q6_K, ...) become the floats that they stand for, which the gguf package computes.

Shape suffixes: O rows, I columns, G groups of columns.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebit.errors import FormatError, MissingExtraError
from onebit.formats.description import TensorPlan
from onebit.formats.export_text import binary_of, chat_strings_of
from onebit.formats.gguf_names import (
    FREQUENCIES,
    base_frequencies,
    names_of,
    pair_rows,
    read_description,
    reorders_rows,
)
from onebit.formats.gguf_reader import GGUFFile, GGUFTensor, read_gguf
from onebit.formats.gguf_rotation import read_rotation
from onebit.formats.gguf_scales import coded_tensor
from onebit.formats.gguf_tokenizer import tokenizer_json_of
from onebit.formats.gguf_types import FLOAT_TYPES, decode
from onebit.formats.layout import RUN_LAYOUT, Activation, Granularity, Kind, Layout
from onebit.formats.onebit_checks import check_model
from onebit.formats.onebit_file import OneBitFile
from onebit.formats.stored_tensor import StoredTensor

__all__ = ["from_gguf"]

_PROJECTIONS = (Kind.Q, Kind.K, Kind.V, Kind.O, Kind.GATE, Kind.UP, Kind.DOWN)
_UNUSED = ("rope_freqs.weight",)


def from_gguf(
    path: Path,
    *,
    activation: str | None = None,
    layout: str = "run",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> OneBitFile:
    """Read a model of the architectures in `gguf_names`.

    activation: what projections round their inputs to; None is what a file of ours says, int8 for BitNet and none for
    every other model. layout: run or exchange, as of `onebit export`. Raises FormatError, naming the file, for what is
    damaged and for what .1bit has no place for.
    """
    gguf = read_gguf(path)
    try:
        return _convert(gguf, activation, layout, progress)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from None


def _convert(gguf: GGUFFile, activation: str | None, layout: str, progress: Callable[[int, int], None]) -> OneBitFile:
    metadata = gguf.metadata
    architecture, description = read_description(metadata, set(gguf.tensors))
    rotations, turned = read_rotation(metadata, description)
    said, is_ours = _said(metadata), "onebit.tensors" in metadata
    plans = {name: plan for plan, name in names_of(description) if name in gguf.tensors}
    if unknown := sorted(gguf.tensors.keys() - plans.keys() - set(_UNUSED)):
        raise FormatError(
            f"{len(unknown)} tensors are unknown to architecture {architecture} ({', '.join(unknown[:3])})"
        )
    usual = activation or ("int8" if architecture.startswith("bitnet") else "none")
    tensors: dict[str, StoredTensor] = {}
    for name, plan in plans.items():
        about = said.get(name, {})
        rounds_to = usual if activation or not is_ours else about.get("activation", "none")
        is_matrix = plan.kind in (*_PROJECTIONS, Kind.TOKEN_EMBEDDING, Kind.HEAD)
        tensor = _tensor(gguf.tensors[name], plan, about, metadata.get(f"onebit.scales.{name}"), is_matrix)
        if reorders_rows(architecture, plan.kind):
            tensor = _reordered(tensor, pair_rows(description, plan.kind, back=True))
        is_projection = plan.kind in _PROJECTIONS or (is_ours and is_matrix)
        tensor = _replaced(
            tensor,
            activation=_activation(name, rounds_to) if is_projection else Activation.NONE,
            turned=name in turned,
        )
        tensors[plan.name] = (
            tensor.with_layout(RUN_LAYOUT.get(tensor.layout, tensor.layout)) if layout == "run" else tensor
        )
        progress(len(tensors), len(plans))
    if (frequencies := _frequencies(gguf, description)) is not None:
        tensors[FREQUENCIES] = frequencies
    tensors = {plan.name: tensors[plan.name] for plan in description.plan() if plan.name in tensors}
    check_model(description, tensors, rotations)
    tokenizer_json = tokenizer_json_of(metadata)
    template = metadata.get("tokenizer.chat_template")
    template = template if isinstance(template, str) else None
    used = {site: rotation for site, rotation in rotations.items() if turned}
    return OneBitFile(
        description=description,
        tensors=tensors,
        config=_json(metadata, "onebit.config"),
        tokenizer_json=tokenizer_json,
        tokenizer_binary=binary_of(tokenizer_json, description),
        chat_template=template,
        chat_strings=chat_strings_of(template, tokenizer_json, description),
        manifest=_json(metadata, "onebit.manifest"),
        rotations=used,
    )


def _said(metadata: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What a file of ours says of its tensors; empty for the files of others."""
    value = _json(metadata, "onebit.tensors") or {}
    if not all(isinstance(about, dict) for about in value.values()):
        raise FormatError("onebit.tensors does not describe tensors")
    return value


def _json(metadata: dict[str, Any], key: str) -> dict[str, Any] | None:
    text = metadata.get(key)
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise FormatError(f"{key} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise FormatError(f"{key} is JSON of type {type(value).__name__}, expected an object")
    return value


def _activation(name: str, said: Any) -> Activation:
    known = {entry.name.lower(): entry for entry in Activation}
    if said not in known:
        raise FormatError(f"tensor {name}: activation {str(said)[:20]!r}, expected one of {', '.join(known)}")
    return known[said]


def _replaced(tensor: StoredTensor, **changes: Any) -> StoredTensor:
    return StoredTensor(**{**vars(tensor), **changes})


def _tensor(found: GGUFTensor, plan: TensorPlan, about: dict[str, Any], exact: Any, is_matrix: bool) -> StoredTensor:
    if (found.rows, found.cols) != (plan.rows, plan.cols):
        raise FormatError(
            f"tensor {found.name}: {found.rows} x {found.cols}, expected {plan.rows} x {plan.cols} by the metadata"
        )
    try:
        if found.kind is not None and is_matrix:
            coded = coded_tensor(found, plan, about, exact)
            if coded is not None:
                return coded
        values_OI = _values(found)
        fits = is_matrix and found.type_name != "F32" and _is_float16(values_OI)
        layout = Layout.FLOAT16 if fits else Layout.FLOAT32
        return StoredTensor.from_values(plan.name, plan.kind, plan.layer, values_OI, layout)
    except FormatError as error:
        message = str(error).removeprefix(f"tensor {plan.name}: ")
        raise FormatError(f"tensor {found.name}: {message}") from None


def _values(found: GGUFTensor) -> NDArray[np.float32]:
    """float32 [O, I] of any tensor."""
    shape = (found.rows, found.cols)
    if found.type_name in FLOAT_TYPES:
        raw = found.data.view(FLOAT_TYPES[found.type_name][1])
        if found.type_name == "BF16":
            return np.asarray((raw.astype(np.uint32) << 16).view(np.float32)).reshape(shape)
        return np.asarray(raw, np.float32).reshape(shape)
    if found.kind is not None:
        codes_OI, scale_OB = decode(found.kind, found.data, *shape)
        whole_OB = np.broadcast_to(scale_OB, (found.rows, found.cols // found.kind.block))
        return codes_OI.astype(np.float32) * np.repeat(whole_OB, found.kind.block, axis=1)
    try:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize
    except ModuleNotFoundError as error:
        raise MissingExtraError("formats", f"reading {found.type_name}") from error
    rows_OP = found.data.reshape(found.rows, -1)
    values: NDArray[np.float32] = dequantize(rows_OP, GGMLQuantizationType[found.type_name])
    return values.reshape(shape)


def _is_float16(values_OI: NDArray[np.float32]) -> bool:
    with np.errstate(over="ignore"):
        return bool(np.array_equal(values_OI.astype(np.float16).astype(np.float32), values_OI))


def _reordered(tensor: StoredTensor, order: NDArray[np.intp]) -> StoredTensor:
    """Rows (or the values of a bias) in another order."""
    if tensor.layout.is_float:
        values_OI = tensor.values()
        values_OI = values_OI[:, order] if values_OI.shape[0] == 1 else values_OI[order]
        return StoredTensor.from_values(tensor.name, tensor.kind, tensor.layer, values_OI, tensor.layout)
    scale = tensor.scales()
    geometry = tensor.geometry
    scale = scale if scale.ndim == 0 else scale[order]
    stored = scale.astype(np.float16) if geometry.granularity is Granularity.PER_GROUP else scale
    return StoredTensor.from_codes(
        tensor.name,
        tensor.kind,
        tensor.layer,
        tensor.codes()[order],
        stored,
        geometry.layout,
        geometry.granularity,
        geometry.group_size,
    )


def _frequencies(gguf: GGUFFile, description: Any) -> StoredTensor | None:
    """Rotary frequencies that are not those of rope_theta."""
    metadata, architecture = gguf.metadata, gguf.metadata["general.architecture"]
    kind = metadata.get(f"{architecture}.rope.scaling.type", "none")
    factor = metadata.get(f"{architecture}.rope.scaling.factor", 1.0)
    if kind not in ("none", "linear") or not isinstance(factor, float) or not factor >= 1.0:
        raise FormatError(f"rope.scaling is {str(kind)[:20]!r} with factor {factor!r}; onebit reads linear from 1 on")
    exact, tensor = metadata.get("onebit.rope.inv_freq"), gguf.tensors.get("rope_freqs.weight")
    if isinstance(exact, np.ndarray) and exact.dtype == np.dtype("<f4"):
        values = exact
    elif tensor is not None or factor != 1.0:
        factors = np.ones(1, np.float32) if tensor is None else _values(tensor).reshape(-1)
        base = base_frequencies(description)
        if factors.size not in (1, base.size) or not (factors >= 1).all():
            raise FormatError(f"rope_freqs.weight: {factors.size} factors, expected {base.size} from 1 on")
        values = base / factors / np.float32(factor)
    else:
        return None
    return StoredTensor.from_values(FREQUENCIES, Kind.ROPE_FREQUENCIES, None, values)
