"""Hostile .1bit files: a tiny honest one with single lies in it, its checksums mended so that the lie itself is met.

``python tests/formats/attacks.py`` writes the ones that are kept in tests/attacks, which every reader must refuse, in
any language.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from onebit.formats.crc32c import crc32c
from onebit.formats.layout import Kind
from onebit.formats.onebit_file import write
from onebit.formats.random_model import random_description, random_file
from onebit.formats.stored_tensor import StoredTensor

SECTIONS, SECTION, TENSOR = 128, 32, 128


def honest() -> bytes:
    """A valid file of a few kilobytes with a CONFIG section and group scales."""
    description = random_description(
        vocab_size=3,
        hidden_size=4,
        num_layers=1,
        num_heads=2,
        num_key_value_heads=1,
        head_dim=2,
        intermediate_size=5,
        max_seq_len=4,
        mlp="relu2",
    )
    model = random_file(description, layout="ternary", granularity="per_group", config={"a": [1]}, tokenizer_json="{}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "honest.1bit"
        write(path, model)
        return path.read_bytes()


def honest_optional() -> bytes:
    """A valid file with what is optional: frequencies of its own, in the second record, and inputs that are turned."""
    description = random_description(
        vocab_size=3,
        hidden_size=4,
        num_layers=1,
        num_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        intermediate_size=5,
        max_seq_len=4,
        attention_scale=0.5,
    )
    model = random_file(description, layout="ternary", hadamard_block=4, config={"a": [1]})
    (first, embedding), *others = model.tensors.items()
    values = np.array([1.0, 0.5, 0.25, 0.125])
    frequencies = StoredTensor.from_values("model.rope.inv_freq", Kind.ROPE_FREQUENCIES, None, values)
    tensors = {first: embedding, frequencies.name: frequencies, **dict(others)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "honest.1bit"
        write(path, replace(model, tensors=tensors))
        return path.read_bytes()


def mended(raw: bytes) -> bytes:
    """The header's checksum made to fit again, where its fields allow that."""
    meta = struct.unpack_from("<Q", raw, 24)[0]
    if len(raw) < 128 or not 128 <= meta <= len(raw):
        return raw
    return raw[:12] + struct.pack("<I", crc32c(raw[:12] + bytes(4) + raw[16:meta])) + raw[16:]


def patched(raw: bytes, at: int, new: bytes) -> bytes:
    """``new`` over the bytes at ``at``, checksum mended."""
    return mended(raw[:at] + new + raw[at + len(new) :])


def u16(value: int) -> bytes:
    return struct.pack("<H", value)


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def header_attacks(raw: bytes) -> Iterator[tuple[str, bytes]]:
    """Lies in the first 128 bytes."""
    size = len(raw)
    yield "empty", b""
    yield "magic_only", raw[:8]
    yield "half_a_header", raw[:64]
    yield "truncated", raw[:-64]
    yield "trailing_bytes", raw + bytes(64)
    yield "line_ends_changed", raw.replace(b"\r\n", b"\n", 1) + b"\0"
    yield "version_0", patched(raw, 8, u32(0))
    yield "version_2", patched(raw, 8, u32(2))
    yield "header_checksum", raw[:12] + u32(0) + raw[16:]
    yield "file_bytes_huge", patched(raw, 16, u64(2**64 - 1))
    yield "file_bytes_small", patched(raw, 16, u64(128))
    yield "meta_bytes_huge", patched(raw, 24, u64(2**63))
    yield "meta_bytes_past_end", patched(raw, 24, u64(size + 64))
    yield "meta_bytes_small", patched(raw, 24, u64(127))
    yield "num_sections_huge", patched(raw, 32, u32(2**32 - 1))
    yield "num_sections_0", patched(raw, 32, u32(0))
    yield "num_tensors_huge", patched(raw, 36, u32(2**32 - 1))
    yield "num_tensors_0", patched(raw, 36, u32(0))
    yield "section_table_huge", patched(raw, 40, u64(2**64 - 32))
    yield "section_table_in_header", patched(raw, 40, u64(0))
    yield "section_table_unaligned", patched(raw, 40, u64(129))
    yield "tensor_table_huge", patched(raw, 48, u64(2**64 - 128))
    yield "tensor_table_on_sections", patched(raw, 48, u64(SECTIONS))
    yield "reserved_header", patched(raw, 100, b"\1")


def section_attacks(raw: bytes) -> Iterator[tuple[str, bytes]]:
    """Lies in the section table and in the sections."""
    second = SECTIONS + SECTION
    offset, size = struct.unpack_from("<QQ", raw, second + 16)
    yield "section_twice", patched(raw, second, b"MODEL\0\0\0")
    yield "section_unknown_required", patched(patched(raw, second, b"NEW\0\0\0\0\0"), second + 8, u32(1))
    yield "section_id_not_ascii", patched(raw, second, b"\xff\xfeABC\0\0\0")
    yield "section_id_empty", patched(raw, second, bytes(8))
    yield "section_id_hole", patched(raw, second, b"A\0B\0\0\0\0\0")
    yield "section_flags", patched(raw, second + 8, u32(6))
    yield "section_reserved", patched(raw, second + 12, u32(1))
    yield "section_past_end", patched(raw, second + 16, u64(len(raw)))
    yield "section_offset_wraps", patched(raw, second + 16, u64(2**64 - 8))
    yield "section_bytes_wrap", patched(raw, second + 24, u64(2**64 - offset))
    yield "section_unaligned", patched(raw, second + 16, u64(offset + 1))
    yield "section_overlap", patched(raw, second + 16, u64(offset - 128))
    yield "section_on_header", patched(raw, second + 16, u64(0))
    yield "model_missing", patched(patched(raw, SECTIONS, b"OTHER\0\0\0"), SECTIONS + 8, u32(0))
    yield "model_short", patched(raw, SECTIONS + 24, u64(120))
    yield "config_not_json", patched(raw, offset, b"{" * size)
    yield "config_not_object", patched(raw, offset, b"[1]".ljust(size))
    yield "config_not_utf8", patched(raw, offset, b"\xff")


def model_attacks(raw: bytes) -> Iterator[tuple[str, bytes]]:
    """Lies in the model description."""
    at = struct.unpack_from("<Q", raw, SECTIONS + 16)[0]
    names = ("vocab", "hidden", "layers", "heads", "kv_heads", "head_dim", "intermediate", "max_seq_len")
    for index, name in enumerate(names):
        for label, value in (("0", 0), ("huge", 2**32 - 1), ("other", 7)):
            if (name, label) != ("max_seq_len", "other"):  # 7 positions are as good as 4 with rope
                yield f"model_{name}_{label}", patched(raw, at + 4 * index, u32(value))
    for index, name in enumerate(("norm", "mlp", "position", "flags")):
        yield f"model_{name}_unknown", patched(raw, at + 32 + 4 * index, u32(99))
    for index, name in enumerate(("norm_eps", "rope_theta", "residual_scale")):
        for label, number in (("nan", float("nan")), ("inf", float("inf")), ("negative", -1.0), ("0", 0.0)):
            yield f"model_{name}_{label}", patched(raw, at + 48 + 4 * index, struct.pack("<f", number))
    for label, number in (("nan", float("nan")), ("inf", float("inf")), ("negative", -1.0)):  # 0 is the usual one
        yield f"model_attention_scale_{label}", patched(raw, at + 60, struct.pack("<f", number))
    yield "model_needs_qk_norm", patched(raw, at + 44, u32(5))
    yield "model_needs_head", patched(raw, at + 44, u32(0))
    yield "model_eos_out_of_vocabulary", patched(raw, at + 68, u32(3))
    yield "model_reserved", patched(raw, at + 124, u32(1))


def tensor_attacks(raw: bytes) -> Iterator[tuple[str, bytes]]:
    """Lies in the tensor table, on the record of q (the third)."""
    table = struct.unpack_from("<Q", raw, 48)[0]
    first, at = table, table + 2 * TENSOR
    data, data_bytes, scale, scale_bytes, stride = struct.unpack_from("<QQQQQ", raw, at + 88)
    yield "tensor_name_twice", patched(raw, at, raw[first : first + 64])
    yield "tensor_name_unknown", patched(raw, at, b"model.layers.0.attention.x_proj.weight".ljust(64, b"\0"))
    yield "tensor_name_unterminated", patched(raw, at, b"x" * 64)
    yield "tensor_name_empty", patched(raw, at, bytes(64))
    yield "tensor_name_control", patched(raw, at, b"a\nb".ljust(64, b"\0"))
    for name, offset, values in (
        ("kind", 64, (0, 3, 19, 999)),
        ("layer", 66, (1, 0xFFFF)),
    ):
        for value in values:
            yield f"tensor_{name}_{value}", patched(raw, at + offset, u16(value))
    for name, offset, bytes_ in (
        ("layout", 68, (0, 8, 10, 255)),
        ("granularity", 69, (0, 1, 2, 4)),
        ("activation", 70, (3, 255)),
        ("scale_type", 71, (0, 1, 3)),
    ):
        for value in bytes_:
            yield f"tensor_{name}_{value}", patched(raw, at + offset, bytes([value]))
    for name, offset, sizes in (
        ("rows", 72, (0, 5, 2**31, 2**32 - 1)),
        ("cols", 76, (0, 5, 2**31, 2**32 - 1)),
        ("group_size", 80, (0, 63, 128 + 1, 2**32 - 1)),
    ):
        for value in sizes:
            yield f"tensor_{name}_{value}", patched(raw, at + offset, u32(value))
    yield "tensor_checksum", patched(raw, at + 84, u32(struct.unpack_from("<I", raw, at + 84)[0] ^ 1))
    for name, offset, true, size in (("data", 88, data, data_bytes), ("scale", 104, scale, scale_bytes)):
        for label, value in (
            ("0", 0),
            ("unaligned", true + 8),
            ("in_header", 64),
            ("past_end", len(raw)),
            ("wraps", 2**64 - 64),
            ("on_embedding", struct.unpack_from("<Q", raw, first + 88)[0]),
        ):
            yield f"tensor_{name}_offset_{label}", patched(raw, at + offset, u64(value))
        for label, value in (("0", 0), ("more", size + 64), ("wraps", 2**64 - true), ("huge", 2**63)):
            yield f"tensor_{name}_bytes_{label}", patched(raw, at + offset + 8, u64(value))
    yield "tensor_row_stride_0", patched(raw, at + 120, u64(0))
    yield "tensor_row_stride_huge", patched(raw, at + 120, u64(2**63))
    yield "tensor_row_stride_tight", patched(raw, at + 120, u64(stride // 64))
    yield "gap_not_zero", raw[: scale + scale_bytes] + b"\1" + raw[scale + scale_bytes + 1 :]
    yield "data_changed", raw[:data] + bytes([raw[data] ^ 1]) + raw[data + 1 :]


def rope_attacks(raw: bytes) -> Iterator[tuple[str, bytes]]:
    """Lies in the frequencies of rope and in their record, the second."""
    table = struct.unpack_from("<Q", raw, 48)[0]
    at = table + TENSOR
    data = struct.unpack_from("<Q", raw, at + 88)[0]
    numbers = (("nan", "nan"), ("inf", "inf"), ("negative", "-0.5"), ("0", "0"), ("above_1", "1.5"))
    for label, number in numbers:
        values = raw[data : data + 8] + struct.pack("<f", float(number)) + raw[data + 12 : data + 64]
        changed = raw[:data] + values + raw[data + 64 :]
        yield f"rope_frequency_{label}", patched(changed, at + 84, u32(crc32c(values)))
    for cols in (3, 5):  # of the same bytes: a row takes 64
        yield f"rope_{cols}_frequencies", patched(raw, at + 76, u32(cols))
    yield (
        "rope_two_rows",
        patched(patched(patched(raw, at + 72, u32(2)), at + 96, u64(128)), at + 88, u64(len(raw) - 128)),
    )
    yield "rope_float16", patched(raw, at + 68, b"\1")
    yield "rope_rounds_inputs", patched(raw, at + 70, b"\1")
    yield "rope_in_a_layer", patched(raw, at + 66, u16(0))
    norm = next(k for k in range(table, len(raw), TENSOR) if raw[k:].startswith(b"model.norm.weight\0"))
    yield "rope_twice", patched(raw, norm, raw[at : at + 66])
    model = struct.unpack_from("<Q", raw, SECTIONS + 16)[0]
    yield "rope_with_learned_positions", patched(raw, model + 40, u32(0))


def hadamard_attacks(raw: bytes) -> Iterator[tuple[str, bytes]]:
    """Lies in section HADAMARD, the second: blocks of 4 for inputs 4 (hidden) and 16 (attention) wide."""
    record = SECTIONS + SECTION
    assert raw[record : record + 8] == b"HADAMARD"
    at, size = struct.unpack_from("<QQ", raw, record + 16)
    for label, block in (("1", 1), ("3", 3), ("8", 8), ("huge", 2**31)):
        yield f"hadamard_block_{label}", patched(raw, at, u32(block))
    yield "hadamard_block_of_the_mlp", patched(raw, at + 8, u32(4))
    yield "hadamard_no_block", patched(raw, at, u32(0))
    yield "hadamard_reserved", patched(raw, at + 12, u32(1))
    yield "hadamard_signs_beyond", patched(raw, at + 16, b"\x10")
    for length in (0, 15, 16, size - 8, size - 1):
        yield f"hadamard_bytes_{length}", patched(raw, record + 24, u64(length))
    yield "hadamard_missing", patched(patched(raw, record, b"OTHER\0\0\0"), record + 8, u32(0))
    yield "hadamard_newer", patched(raw, record, b"HADAMAR2")
    table = struct.unpack_from("<Q", raw, 48)[0]
    for name in (b"model.norm.weight", b"model.rope.inv_freq", b"model.layers.0.mlp.down_proj.weight"):
        tensor = next(k for k in range(table, len(raw), TENSOR) if raw[k:].startswith(name + b"\0"))
        turned = raw[tensor + 70] | 128
        yield f"hadamard_turns_{name.split(b'.')[-2].decode()}", patched(raw, tensor + 70, bytes([turned]))


def attacks() -> dict[str, bytes]:
    """name -> file, every one of them to be refused."""
    raw, optional = honest(), honest_optional()
    makers = (header_attacks, section_attacks, model_attacks, tensor_attacks)
    made = {name: file for maker in makers for name, file in maker(raw)}
    return made | dict([*rope_attacks(optional), *hadamard_attacks(optional)])


KEPT = (
    *("truncated", "trailing_bytes", "header_checksum", "version_2", "meta_bytes_huge", "num_tensors_huge"),
    *(
        "section_past_end",
        "section_offset_wraps",
        "section_unknown_required",
        "model_layers_huge",
        "model_norm_eps_nan",
    ),
    *("model_needs_qk_norm", "tensor_layout_255", "tensor_rows_4294967295", "tensor_data_offset_wraps", "data_changed"),
)


def kept() -> list[str]:
    """The names of those that are kept: one of each sort, and all of what is optional."""
    return [*KEPT, *(name for name in attacks() if name.startswith(("rope_", "hadamard_")))]


def main() -> None:
    """Write the kept attacks."""
    folder = Path(__file__).parent.parent / "attacks"
    folder.mkdir(exist_ok=True)
    made = attacks()
    for name in kept():
        (folder / f"{name}.1bit").write_bytes(made[name])


if __name__ == "__main__":
    main()
