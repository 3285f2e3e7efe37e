"""Reads a ``.1bit`` file and believes nothing in it: every offset, size and number is checked before it is used.

The order matters. The file's true length comes first, then the header, then its checksum (over no more bytes than there
are), then the tables, then each section and tensor; memory is only ever taken for bytes that exist.
"""

from __future__ import annotations

import itertools
import json
import mmap
from enum import IntEnum
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from onebit.errors import FormatError
from onebit.formats.chat_strings import ChatStrings
from onebit.formats.crc32c import crc32c
from onebit.formats.description import ModelDescription
from onebit.formats.hadamard_section import read_rotations
from onebit.formats.layout import ALIGNMENT, TURNED, Activation, Geometry, Granularity, Kind, Layout
from onebit.formats.onebit_checks import check_model
from onebit.formats.onebit_file import OneBitFile
from onebit.formats.records import (
    CRC_AT,
    HEADER_BYTES,
    SECTION_BYTES,
    TENSOR_BYTES,
    Header,
    SectionRecord,
    TensorRecord,
)
from onebit.formats.stored_tensor import StoredTensor

__all__ = ["mapped", "read_file"]

_KNOWN = ("MODEL", "CONFIG", "TOKJSON", "TOKBIN", "CHATTPL", "CHATSTR", "MANIFEST", "HADAMARD")
_Bytes = NDArray[np.uint8]
_Enum = TypeVar("_Enum", bound=IntEnum)


def read_file(path: Path, *, verify: bool) -> OneBitFile:
    """Map and check a file; see ``onebit_file.read``."""
    try:
        return _read(mapped(path), verify)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from None


def mapped(path: Path) -> _Bytes:
    """The bytes of a file, mapped; FormatError when there is none, or nothing in it."""
    try:
        with open(path, "rb") as handle:
            size = handle.seek(0, 2)
            if size == 0:
                raise FormatError("the file is empty")
            return np.frombuffer(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except FileNotFoundError:
        raise FormatError("no such file") from None
    except (OSError, ValueError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _read(raw: _Bytes, verify: bool) -> OneBitFile:
    header = Header.from_bytes(raw[:HEADER_BYTES].tobytes())
    _check_header(header, raw)
    extents = [(0, HEADER_BYTES, "the header")]
    sections = _read_sections(header, raw, extents)
    description = ModelDescription.from_bytes(sections["MODEL"])
    _no_overlap(extents)
    records = _read_records(header, raw)
    tensors = _map_tensors(records, header, raw)
    rotations = read_rotations(sections["HADAMARD"], description) if "HADAMARD" in sections else {}
    check_model(description, tensors, rotations)
    if verify:
        _verify(records, tensors, header, raw)
    return OneBitFile(
        description=description,
        tensors=tensors,
        config=_json_object(sections, "CONFIG"),
        tokenizer_json=_text(sections, "TOKJSON"),
        tokenizer_binary=sections.get("TOKBIN"),
        chat_template=_text(sections, "CHATTPL"),
        chat_strings=ChatStrings.from_bytes(sections["CHATSTR"]) if "CHATSTR" in sections else None,
        manifest=_json_object(sections, "MANIFEST"),
        rotations=rotations,
        other_sections={name: payload for name, payload in sections.items() if name not in _KNOWN},
    )


def _check_header(header: Header, raw: _Bytes) -> None:
    if header.file_bytes != raw.size:
        what = "truncated" if header.file_bytes > raw.size else "followed by other data"
        raise FormatError(f"the file has {raw.size} bytes but says {header.file_bytes}: it is {what}")
    if not HEADER_BYTES <= header.meta_bytes <= raw.size:
        raise FormatError(f"meta_bytes is {header.meta_bytes}, expected {HEADER_BYTES} to {raw.size}")
    meta = raw[: header.meta_bytes]
    found = crc32c(meta[:CRC_AT], bytes(4), meta[CRC_AT + 4 :])
    if found != header.crc:
        raise FormatError(f"the header's checksum is {found:08x}, expected {header.crc:08x}: the file is damaged")
    for name, offset, count, size in (
        ("section", header.section_table, header.num_sections, SECTION_BYTES),
        ("tensor", header.tensor_table, header.num_tensors, TENSOR_BYTES),
    ):
        if offset % 8 or not HEADER_BYTES <= offset <= header.meta_bytes or count * size > header.meta_bytes - offset:
            raise FormatError(
                f"the {name} table ({count} records at {offset}) does not lie"
                f" within the first {header.meta_bytes} bytes"
            )


def _read_sections(header: Header, raw: _Bytes, extents: list[tuple[int, int, str]]) -> dict[str, bytes]:
    extents.append(
        (header.section_table, header.section_table + SECTION_BYTES * header.num_sections, "the section table")
    )
    extents.append((header.tensor_table, header.tensor_table + TENSOR_BYTES * header.num_tensors, "the tensor table"))
    sections: dict[str, bytes] = {}
    for index in range(header.num_sections):
        at = header.section_table + index * SECTION_BYTES
        record = SectionRecord.from_bytes(raw[at : at + SECTION_BYTES].tobytes())
        end = record.offset + record.size
        if record.id in sections:
            raise FormatError(f"section {record.id} is there twice")
        if record.required and record.id not in _KNOWN:
            raise FormatError(f"section {record.id} is required and unknown to this onebit; a newer one is needed")
        if record.offset % 8 or record.offset < HEADER_BYTES or end > header.meta_bytes:
            raise FormatError(
                f"section {record.id} ({record.size} bytes at {record.offset}) does not lie where sections do"
            )
        extents.append((record.offset, end, f"section {record.id}"))
        sections[record.id] = raw[record.offset : end].tobytes()
        _no_overlap(extents[-1:] + extents[:3])
    if "MODEL" not in sections:
        raise FormatError("section MODEL is missing")
    return sections


def _no_overlap(extents: list[tuple[int, int, str]]) -> None:
    ordered = sorted(extent for extent in extents if extent[1] > extent[0])
    for (_, end, name), (start, _, other) in itertools.pairwise(ordered):
        if start < end:
            raise FormatError(f"{other} overlaps {name}")


def _read_records(header: Header, raw: _Bytes) -> list[TensorRecord]:
    records: list[TensorRecord] = []
    names: set[str] = set()
    for index in range(header.num_tensors):
        at = header.tensor_table + index * TENSOR_BYTES
        record = TensorRecord.from_bytes(raw[at : at + TENSOR_BYTES].tobytes())
        if record.name in names:
            raise FormatError(f"tensor {record.name} is there twice")
        names.add(record.name)
        records.append(record)
    return records


def _enum(kind: type[_Enum], value: int, name: str, field: str) -> _Enum:
    try:
        return kind(value)
    except ValueError:
        raise FormatError(f"tensor {name}: {field} {value} is unknown to this onebit") from None


def _map_tensors(records: list[TensorRecord], header: Header, raw: _Bytes) -> dict[str, StoredTensor]:
    extents = [(0, header.meta_bytes, "the header")]
    tensors = {}
    for record in records:
        geometry = _geometry(record)
        for what, offset, size in (
            ("data", record.data_offset, record.data_bytes),
            ("scales", record.scale_offset, record.scale_bytes),
        ):
            if size == 0 and offset == 0:
                continue
            if offset % ALIGNMENT or offset < header.meta_bytes or offset + size > raw.size:
                raise FormatError(
                    f"tensor {record.name}: {what} ({size} bytes at {offset}) do not lie within the file"
                    " or are not aligned to 64"
                )
            extents.append((offset, offset + size, f"tensor {record.name}"))
        tensors[record.name] = StoredTensor(
            record.name,
            _enum(Kind, record.kind, record.name, "kind"),
            record.layer,
            geometry,
            _enum(Activation, record.activation & ~TURNED, record.name, "activation"),
            raw[record.data_offset : record.data_offset + record.data_bytes],
            raw[record.scale_offset : record.scale_offset + record.scale_bytes],
            turned=bool(record.activation & TURNED),
        )
    _no_overlap(extents)
    return tensors


def _geometry(record: TensorRecord) -> Geometry:
    layout = _enum(Layout, record.layout, record.name, "layout")
    granularity = _enum(Granularity, record.granularity, record.name, "granularity")
    try:
        geometry = Geometry(record.rows, record.cols, layout, granularity, record.group_size)
    except FormatError as error:
        raise FormatError(f"tensor {record.name}: {error}") from None
    for field, given, expected in (
        ("scale_type", record.scale_type, int(geometry.scale_type)),
        ("row_stride", record.row_stride, geometry.row_stride),
        ("data_bytes", record.data_bytes, geometry.data_bytes),
        ("scale_bytes", record.scale_bytes, geometry.scale_bytes),
    ):
        if given != expected:
            raise FormatError(f"tensor {record.name}: {field} is {given}, expected {expected} for its shape and layout")
    return geometry


def _verify(records: list[TensorRecord], tensors: dict[str, StoredTensor], header: Header, raw: _Bytes) -> None:
    """Compare every tensor's checksum, and refuse anything but zeros between the tensors."""
    used = []
    for record in records:
        tensor = tensors[record.name]
        found = crc32c(tensor.data, tensor.scale_data)
        if found != record.crc:
            raise FormatError(
                f"tensor {record.name}: checksum {found:08x}, expected {record.crc:08x}: the data is damaged"
            )
        used += [(record.data_offset, record.data_bytes), (record.scale_offset, record.scale_bytes)]
    position = header.meta_bytes
    for offset, size in [*sorted(extent for extent in used if extent[1]), (raw.size, 0)]:
        if raw[position:offset].any():
            raise FormatError(f"bytes {position} to {offset} belong to no tensor but are not zero: the file is damaged")
        position = offset + size


def _text(sections: dict[str, bytes], name: str) -> str | None:
    if name not in sections:
        return None
    try:
        return sections[name].decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"section {name} is not UTF-8: {error}") from None


def _json_object(sections: dict[str, bytes], name: str) -> dict[str, Any] | None:
    text = _text(sections, name)
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"section {name} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise FormatError(f"section {name} is JSON of type {type(value).__name__}, expected an object")
    return value
