"""Writes a ``.1bit`` file: lays out offsets first, then streams the bytes into a temporary file that is renamed at
the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from onebit.errors import FormatError
from onebit.formats.atomic import replacing
from onebit.formats.crc32c import crc32c
from onebit.formats.hadamard_section import rotations_to_bytes
from onebit.formats.layout import TURNED, align
from onebit.formats.onebit_checks import check_model
from onebit.formats.records import (
    HEADER_BYTES,
    REQUIRED,
    SECTION_BYTES,
    TENSOR_BYTES,
    Header,
    SectionRecord,
    TensorRecord,
)
from onebit.formats.stored_tensor import TensorSource

if TYPE_CHECKING:
    from onebit.formats.onebit_file import OneBitFile

__all__ = ["json_bytes", "meta_bytes", "stream_file", "write_file"]


def write_file(path: Path, file: OneBitFile) -> int:
    """Write ``file`` to ``path`` atomically and return its size."""
    return stream_file(path, file, file.tensors)


def stream_file(
    path: Path,
    file: OneBitFile,
    tensors: Mapping[str, TensorSource],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Write ``file`` with ``tensors`` for its own, each asked for its bytes once, so that they need never be in memory
    together. ``progress`` is called with (bytes done, bytes in all)."""
    check_model(file.description, tensors, file.rotations)
    meta, records, total = _lay_out(file, tensors)
    with replacing(path) as out:
        out.write(bytes(len(meta)))
        for i, (record, tensor) in enumerate(zip(records, tensors.values(), strict=True)):
            data, scales = tensor.data, tensor.scale_data
            for offset, part in ((record.data_offset, data), (record.scale_offset, scales)):
                out.write(bytes(offset - out.tell()) if part.size else b"")
                out.write(part.data)
            records[i] = replace(record, crc=crc32c(data, scales))
            progress(out.tell(), total)
        out.write(bytes(total - out.tell()))
        out.seek(0)
        out.write(_with_checksums(meta, records))
    return total


def meta_bytes(file: OneBitFile, num_tensors: int) -> int:
    """Bytes before the tensors, not yet aligned to 64; only the texts of ``file`` count."""
    sections = _sections(file).values()
    payloads = sum(align(len(payload), 8) for _, payload in sections)
    return HEADER_BYTES + SECTION_BYTES * len(sections) + TENSOR_BYTES * num_tensors + payloads


def _sections(file: OneBitFile) -> dict[str, tuple[int, bytes]]:
    """id -> (flags, payload), in file order."""
    found: dict[str, tuple[int, bytes]] = {"MODEL": (REQUIRED, file.description.to_bytes())}
    if file.rotations:
        found["HADAMARD"] = (REQUIRED, rotations_to_bytes(file.rotations))
    optional = {
        "CONFIG": json_bytes(file.config) if file.config is not None else None,
        "TOKJSON": file.tokenizer_json.encode() if file.tokenizer_json is not None else None,
        "TOKBIN": file.tokenizer_binary,
        "CHATTPL": file.chat_template.encode() if file.chat_template is not None else None,
        "CHATSTR": file.chat_strings.to_bytes() if file.chat_strings is not None else None,
        "MANIFEST": json_bytes(file.manifest) if file.manifest is not None else None,
        **file.other_sections,
    }
    found |= {name: (0, payload) for name, payload in optional.items() if payload is not None}
    for name in found:
        if not (name.isascii() and name.isprintable() and 0 < len(name) <= 8 and " " not in name):
            raise FormatError(f"section id {name!r}: expected 1 to 8 printable ASCII characters")
    return found


def json_bytes(value: object) -> bytes:
    """JSON as the sections hold it."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")).encode()


def _lay_out(file: OneBitFile, tensors: Mapping[str, TensorSource]) -> tuple[bytes, list[TensorRecord], int]:
    """Give every part its place; returns (all bytes before the tensors, without checksums; records; file size)."""
    sections = _sections(file)
    section_table = HEADER_BYTES
    tensor_table = section_table + SECTION_BYTES * len(sections)
    position = tensor_table + TENSOR_BYTES * len(tensors)
    section_records, payloads = [], b""
    start = position
    for name, (flags, payload) in sections.items():
        section_records.append(SectionRecord(name, flags, start + len(payloads), len(payload)))
        payloads += payload + bytes(align(len(payload), 8) - len(payload))
    meta_bytes = align(start + len(payloads))
    records, total = _place_tensors(tensors, meta_bytes)
    header = Header(0, total, meta_bytes, len(sections), len(tensors), section_table, tensor_table)
    rest = b"".join(record.to_bytes() for record in section_records)
    rest += bytes(TENSOR_BYTES * len(tensors)) + payloads
    rest += bytes(meta_bytes - HEADER_BYTES - len(rest))
    return header.to_bytes() + rest, records, total


def _with_checksums(meta: bytes, records: list[TensorRecord]) -> bytes:
    """The bytes before the tensors, with the tensors' records and the checksum over it all."""
    header = Header.from_bytes(meta)
    table = b"".join(record.to_bytes() for record in records)
    rest = meta[HEADER_BYTES : header.tensor_table] + table + meta[header.tensor_table + len(table) :]
    return replace(header, crc=crc32c(header.to_bytes(), rest)).to_bytes() + rest


def _place_tensors(tensors: Mapping[str, TensorSource], position: int) -> tuple[list[TensorRecord], int]:
    placed = []
    for tensor in tensors.values():
        geometry = tensor.geometry
        data_offset = position
        scale_offset = align(data_offset + geometry.data_bytes) if geometry.scale_bytes else 0
        position = align(
            scale_offset + geometry.scale_bytes if geometry.scale_bytes else data_offset + geometry.data_bytes
        )
        record = TensorRecord(
            name=tensor.name,
            kind=tensor.kind,
            layer=tensor.layer,
            layout=geometry.layout,
            granularity=geometry.granularity,
            activation=tensor.activation | (TURNED if tensor.turned else 0),
            scale_type=geometry.scale_type,
            rows=geometry.rows,
            cols=geometry.cols,
            group_size=geometry.group_size,
            crc=0,
            data_offset=data_offset,
            data_bytes=geometry.data_bytes,
            scale_offset=scale_offset,
            scale_bytes=geometry.scale_bytes,
            row_stride=geometry.row_stride,
        )
        placed.append(record)
    return placed, position
