"""A ``.1bit`` model as a GGUF file: for llama.cpp, bitnet.cpp or Prism's fork, by what its tensors need.

Codes are carried over as they are. A block's scale is float16, so a float32 scale is rounded there, by 2^-12 of it at
most on average; the exact scales that differ lie in the metadata (``onebit.scales.NAME``), beside what GGUF has no
place for (``onebit.tensors``: granularity and activations; manifest, configuration), so that `gguf_import` gives back
the same codes and scales, bit for bit. The bytes are written by the gguf package.

Shape suffixes: O rows, I columns.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebit import __version__
from onebit.errors import ConfigError, FormatError, MissingExtraError
from onebit.formats.atomic import beside
from onebit.formats.description import ModelDescription
from onebit.formats.gguf_names import (
    FREQUENCIES,
    architecture_of,
    base_frequencies,
    names_of,
    pair_rows,
    program_of,
    reorders_rows,
)
from onebit.formats.gguf_rotation import rotation_metadata
from onebit.formats.gguf_tokenizer import tokenizer_metadata
from onebit.formats.gguf_types import FLOAT_TYPES, BlockType, encode, type_for, types_that_hold
from onebit.formats.layout import Kind, Layout, ScaleType
from onebit.formats.onebit_file import OneBitFile
from onebit.formats.stored_tensor import StoredTensor

__all__ = ["WrittenGGUF", "write_gguf"]

_TYPE_OF_FLOATS = {Layout.FLOAT32: "F32", Layout.FLOAT16: "F16"}


@dataclass(frozen=True)
class WrittenGGUF:
    """What was written: bytes of the file, its architecture, the program that runs it, matrices by type, and notes."""

    file_bytes: int
    architecture: str
    program: str
    types: dict[str, int]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Planned:
    """A tensor of the file before its bytes are made."""

    name: str
    tensor: StoredTensor
    kind: BlockType | None  # None: floats as they are
    order: NDArray[np.intp] | None  # of the rows

    @property
    def type_id(self) -> int:
        return FLOAT_TYPES[_TYPE_OF_FLOATS[self.tensor.layout]][0] if self.kind is None else self.kind.id

    @property
    def nbytes(self) -> int:
        rows, cols = self.tensor.shape
        if self.kind is not None:
            return self.kind.tensor_bytes(rows, cols)
        return rows * self.tensor.geometry.packed_row_bytes

    def made(self) -> NDArray[np.uint8]:
        tensor = self.tensor
        try:
            if self.kind is None:
                rows = tensor.rows_data()
                rows = rows if self.order is None else rows.reshape(len(self.order), -1)[self.order]
                return np.ascontiguousarray(rows).reshape(-1)
            codes_OI, scale = tensor.codes(), tensor.scales()
            if self.order is not None:
                codes_OI = codes_OI[self.order]
                scale = scale if scale.ndim == 0 else scale[self.order]
            return encode(self.kind, codes_OI, scale, tensor.geometry)
        except FormatError as error:
            raise FormatError(f"tensor {tensor.name}: {error}") from None


def write_gguf(
    path: Path,
    file: OneBitFile,
    gguf_type: str | None = None,
    *,
    name: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> WrittenGGUF:
    """Write a model as GGUF, whole or not at all.

    gguf_type: of binary and ternary matrices (`gguf_types.CODE_TYPES`); None takes for each the first of llama.cpp's
    that holds it. Raises ConfigError for what no architecture or no type can hold, with the field or the types.
    """
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise MissingExtraError("formats", "writing GGUF") from error
    description = file.description
    architecture = architecture_of(description)
    planned = list(_plan(file, architecture, gguf_type))
    tokenizer, notes = tokenizer_metadata(file.tokenizer_json, description)
    metadata: dict[str, Any] = {
        "general.name": name or path.stem,
        **_architecture_metadata(file, architecture, planned),
        **tokenizer,
        **_token_ids(description),
        **_own_metadata(file, planned),
        **rotation_metadata(file, {plan.tensor.name: plan.name for plan in planned}),
    }
    if file.chat_template is not None:
        metadata["tokenizer.chat_template"] = file.chat_template
    with beside(path) as temporary:
        writer = gguf.GGUFWriter(temporary, architecture)
        try:
            _write(writer, metadata, planned, progress)
        finally:
            writer.close()
        size = temporary.stat().st_size
    types: dict[str, int] = {}
    for plan in planned:
        if plan.tensor.shape[0] > 1:
            kind = _TYPE_OF_FLOATS[plan.tensor.layout] if plan.kind is None else plan.kind.name
            types[kind] = types.get(kind, 0) + 1
    programs = {plan.kind.program for plan in planned if plan.kind is not None} | {program_of(architecture)}
    return WrittenGGUF(size, architecture, _runner(programs), types, tuple(notes))


def _runner(programs: set[str]) -> str:
    """Forks run what llama.cpp runs; no program runs what belongs to two of them."""
    forks = sorted(programs - {"llama.cpp"})
    return forks[0] if len(forks) == 1 else "no program, as it needs " + " and ".join(forks) if forks else "llama.cpp"


def _write(
    writer: Any, metadata: dict[str, Any], planned: list[_Planned], progress: Callable[[int, int], None]
) -> None:
    for key, value in metadata.items():
        _add(writer, key, value)
    for plan in planned:
        rows, cols = plan.tensor.shape
        shape = (cols,) if rows == 1 and plan.kind is None else (rows, cols)
        # int8, not uint8: the package would take the shape for one of bytes and look up the type's block.
        writer.add_tensor_info(plan.name, shape, np.dtype(np.int8), plan.nbytes, raw_dtype=plan.type_id)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    done, total = 0, sum(plan.nbytes for plan in planned)
    for plan in planned:
        made = plan.made()
        assert made.nbytes == plan.nbytes, (plan.name, made.nbytes, plan.nbytes)
        writer.write_tensor_data(made)
        done += plan.nbytes
        progress(done, total)


def _add(writer: Any, key: str, value: Any) -> None:
    """Add a value with the type that llama.cpp expects for its Python type."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, np.ndarray):
        from gguf import GGUFValueType

        kind = {"f": GGUFValueType.FLOAT32, "i": GGUFValueType.INT8, "u": GGUFValueType.UINT32}[value.dtype.kind]
        writer.add_key_value(key, value.tolist(), GGUFValueType.ARRAY, sub_type=kind)
    else:
        writer.add_array(key, value)


def _plan(file: OneBitFile, architecture: str, gguf_type: str | None) -> Iterator[_Planned]:
    used = set()
    for plan, name in names_of(file.description):
        tensor = file.tensors.get(plan.name)
        if tensor is None:
            continue
        kind = None if tensor.layout.is_float else type_for(tensor, gguf_type)
        used.add(None if kind is None else kind.name)
        order = pair_rows(file.description, plan.kind) if reorders_rows(architecture, plan.kind) else None
        yield _Planned(name, tensor, kind, order)
    if FREQUENCIES in file.tensors:
        yield _frequencies(file, architecture)
    if gguf_type is not None and gguf_type not in used:
        coded = [tensor for tensor in file.tensors.values() if tensor.level in ("binary", "ternary")]
        advice = (
            f"they are {coded[0].level}, for which there is {', '.join(types_that_hold(coded[0]))}" if coded else ""
        )
        raise ConfigError(
            f"--gguf-type is {gguf_type}, which can hold no matrix of this model; {advice or 'leave it out'}"
        )


def _frequencies(file: OneBitFile, architecture: str) -> _Planned:
    """Rotary frequencies as llama.cpp has them: what those of rope_theta are divided by."""
    if architecture != "llama":
        raise ConfigError(
            f"the model has rotary frequencies of its own (rope_parameters), which {architecture} in GGUF "
            "does not read; export to .1bit or --to hf instead"
        )
    factors = base_frequencies(file.description) / file.tensors[FREQUENCIES].values().reshape(-1)
    tensor = StoredTensor.from_values(FREQUENCIES, Kind.ROPE_FREQUENCIES, None, factors)
    return _Planned("rope_freqs.weight", tensor, None, None)


def _architecture_metadata(file: OneBitFile, architecture: str, planned: list[_Planned]) -> dict[str, Any]:
    d = file.description
    numbers: dict[str, Any] = {
        "vocab_size": d.vocab_size,
        "context_length": d.max_seq_len,
        "embedding_length": d.hidden_size,
        "block_count": d.num_layers,
        "feed_forward_length": d.intermediate_size,
        "attention.head_count": d.num_heads,
        "attention.head_count_kv": d.num_key_value_heads,
        "attention.key_length": d.head_dim,
        "attention.value_length": d.head_dim,
        "attention.layer_norm_rms_epsilon": d.norm_eps,
        "rope.dimension_count": d.head_dim,
        "rope.freq_base": d.rope_theta,
    }
    sizes: dict[int, int] = {}
    for plan in planned:
        file_type = {0: 0, 1: 1}.get(plan.type_id, 0) if plan.kind is None else plan.kind.file_type
        sizes[file_type] = sizes.get(file_type, 0) + plan.tensor.shape[0] * plan.tensor.shape[1]
    return {
        "general.file_type": max(sizes, key=lambda file_type: sizes[file_type]),
        "general.quantization_version": 2,
        **{f"{architecture}.{name}": value for name, value in numbers.items()},
    }


def _token_ids(d: ModelDescription) -> dict[str, Any]:
    ids = {"bos": d.bos, "eos": d.eos, "padding": d.pad}
    found: dict[str, Any] = {f"tokenizer.ggml.{k}_token_id": v for k, v in ids.items() if v is not None}
    # As everywhere here: the BOS starts a text when there is one, and nothing ends it.
    return {**found, "tokenizer.ggml.add_bos_token": d.bos is not None, "tokenizer.ggml.add_eos_token": False}


def _own_metadata(file: OneBitFile, planned: list[_Planned]) -> dict[str, Any]:
    """What GGUF has no place for, in this file's own keys."""
    described: dict[str, dict[str, Any]] = {}
    scales: dict[str, Any] = {}
    for plan in planned:
        geometry = plan.tensor.geometry
        if plan.kind is None:
            if plan.tensor.activation:
                described[plan.name] = {"activation": plan.tensor.activation.name.lower()}
            continue
        described[plan.name] = {
            "level": plan.tensor.level,
            "granularity": geometry.granularity.name.lower(),
            "group_size": geometry.group_size,
            "activation": plan.tensor.activation.name.lower(),
        }
        if geometry.scale_type is ScaleType.FLOAT32 and not plan.kind.has_one_scale:
            scale = plan.tensor.scales()
            scale = scale if scale.ndim == 0 or plan.order is None else scale[plan.order]
            with np.errstate(over="ignore"):
                if not np.array_equal(scale.astype("<f2").astype(np.float32), scale):
                    scales[f"onebit.scales.{plan.name}"] = scale.reshape(-1)
    own: dict[str, Any] = {"onebit.version": __version__, "onebit.tensors": json.dumps(described), **scales}
    if FREQUENCIES in file.tensors:
        own["onebit.rope.inv_freq"] = file.tensors[FREQUENCIES].values().reshape(-1)
    if file.config is not None:
        own["onebit.config"] = json.dumps(file.config, ensure_ascii=False)
    if file.manifest is not None:
        own["onebit.manifest"] = json.dumps(file.manifest, ensure_ascii=False)
    return own
