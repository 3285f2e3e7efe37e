"""Hostile GGUF files, each one lie in an honest file; made here, not kept."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from onebit.formats.gguf_writer import write_gguf
from onebit.formats.random_model import random_description, random_file

FLAT = {
    "hidden_size": 64,
    "num_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "intermediate_size": 128,
    "num_layers": 1,
    "vocab_size": 11,
}


def honest(folder: Path) -> bytes:
    """A small model with float32 scales that float16 rounds, and Q8_0 tables."""
    file = random_file(random_description(**FLAT), granularity="per_row", embedding_layout="int8")
    write_gguf(folder / "honest.gguf", file)
    return (folder / "honest.gguf").read_bytes()


def patched(raw: bytes, at: int, new: bytes) -> bytes:
    return raw[:at] + new + raw[at + len(new) :]


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def value_at(raw: bytes, key: str) -> int:
    """Where the type of a metadata value lies."""
    named = u64(len(key)) + key.encode()
    return raw.index(named) + len(named)


def info_at(raw: bytes, name: str) -> int:
    """Where the number of dimensions of a tensor lies."""
    return value_at(raw, name)


def replaced_text(raw: bytes, key: str, new: str) -> bytes:
    """Another text, padded with spaces to the old one's length."""
    at = value_at(raw, key) + 4
    size = struct.unpack_from("<Q", raw, at)[0]
    assert len(new) <= size
    return patched(raw, at + 8, new.encode().ljust(size))


def said(raw: bytes, name: str, **changes: Any) -> bytes:
    """onebit.tensors with other words about one tensor."""
    at = value_at(raw, "onebit.tensors") + 4
    size = struct.unpack_from("<Q", raw, at)[0]
    about = json.loads(raw[at + 8 : at + 8 + size])
    about = {name: {**about[name], **changes}}
    return replaced_text(raw, "onebit.tensors", json.dumps(about))


def attacks(raw: bytes) -> Iterator[tuple[str, bytes]]:
    """(name, file), every one to be refused."""
    yield "magic", patched(raw, 0, b"GGUX")
    yield "empty", b"GGUF"
    for version in (0, 1, 4, 0x03000000):
        yield f"version_{version}", patched(raw, 4, u32(version))
    for name, at in (("tensors", 8), ("metadata", 16)):
        for label, count in (
            ("huge", 2**63),
            ("more", 1 << 20),
            ("one_more", struct.unpack_from("<Q", raw, at)[0] + 1),
        ):
            yield f"{name}_{label}", patched(raw, at, u64(count))
    yield "key_huge", patched(raw, 24, u64(2**62))
    architecture = value_at(raw, "general.architecture")
    yield "value_type_13", patched(raw, architecture, u32(13))
    yield "text_huge", patched(raw, architecture + 4, u64(2**40))
    yield "text_not_utf8", patched(raw, architecture + 12, b"\xff")
    yield "architecture_unknown", patched(raw, architecture + 12, b"gemma")
    scales = value_at(raw, "onebit.scales.blk.0.attn_q.weight")
    yield "array_of_arrays", patched(raw, scales + 4, u32(9))
    yield "array_huge", patched(raw, scales + 8, u64(2**61))
    yield "array_of_texts_huge", patched(patched(raw, scales + 4, u32(8)), scales + 8, u64(2**61))
    yield "scales_changed", patched(raw, scales + 16, struct.pack("<f", 9.0))
    yield "scales_nan", patched(raw, scales + 16, struct.pack("<f", float("nan")))
    for field, value in (
        ("embedding_length", 0),
        ("embedding_length", 2**31),
        ("block_count", 0),
        ("block_count", 2**32 - 1),
        ("attention.head_count", 0),
        ("attention.head_count_kv", 0),
        ("attention.head_count_kv", 3),
        ("feed_forward_length", 2**32 - 1),
        ("context_length", 0),
        ("attention.key_length", 2**32 - 1),
        ("vocab_size", 2**32 - 1),
    ):
        yield f"{field}_{value}", patched(raw, value_at(raw, f"llama.{field}") + 4, u32(value))
    for value in (float("nan"), -1.0, 0.0):
        yield (
            f"eps_{value}",
            patched(raw, value_at(raw, "llama.attention.layer_norm_rms_epsilon") + 4, struct.pack("<f", value)),
        )
    yield "said_no_json", replaced_text(raw, "onebit.tensors", "{")
    yield "said_deep", replaced_text(raw, "onebit.tensors", "[" * 400)
    yield "said_list", replaced_text(raw, "onebit.tensors", '{"a": 1}')
    q = "blk.0.attn_q.weight"
    for label, changes in (
        ("granularity", {"granularity": "per_planet"}),
        ("tensor", {"granularity": "per_tensor"}),
        ("group", {"granularity": "per_group", "group_size": 2**40}),
        ("group_small", {"granularity": "per_group", "group_size": 32}),
        ("activation", {"activation": "int7"}),
    ):
        yield f"said_{label}", said(raw, q, **changes)
    info = info_at(raw, q)
    yield "dimensions_0", patched(raw, info, u32(0))
    yield "dimensions_5", patched(raw, info, u32(5))
    for label, cols in (("0", 0), ("huge", 2**63), ("other", 128), ("uneven", 65)):
        yield f"cols_{label}", patched(raw, info + 4, u64(cols))
    for kind in (9, 15, 35, 36, 39, 43, 143, 255, 2**32 - 1):
        yield f"type_{kind}", patched(raw, info + 20, u32(kind))
    for label, offset in (("huge", 2**63), ("unaligned", 8), ("end", 1 << 20), ("first", 0)):
        yield f"offset_{label}", patched(raw, info + 24, u64(offset))
    yield "name_twice", raw.replace(b"blk.0.attn_q.weight", b"blk.0.attn_k.weight")
    yield "name_unknown", raw.replace(b"blk.0.ffn_up.weight", b"blk.0.ffn_xy.weight")
    yield "alignment_0", raw.replace(b"general.file_type", b"general.alignment")
    yield "truncated", raw[:-40]
    yield "trailing", raw + bytes(64)
    yield "scale_infinite", patched(raw, len(raw) - 32 * (len(raw) // 4 // 32), b"\x00\x7c" * 16)


def flips(raw: bytes, seed: int, count: int) -> bytes:
    """Random bytes changed, most of them before the tensors."""
    rng = np.random.default_rng(seed)
    damaged = bytearray(raw)
    for _ in range(count):
        at = int(rng.integers(0, len(raw) if rng.random() < 0.1 else min(len(raw), 6000)))
        damaged[at] = int(rng.integers(0, 256))
    return bytes(damaged)
