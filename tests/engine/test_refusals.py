"""What the engine refuses: hostile files, impossible requests. One clear line each, and nothing half-done."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onebit.engine import Model, _library
from onebit.errors import EngineError, FormatError
from onebit.formats.crc32c import crc32c

ATTACKS = Path(__file__).resolve().parents[1] / "attacks"
# The engine reads by kind, not name, and overlapping bytes are as safe as others; the Python reader is stricter.
HARMLESS = {"section_overlap", "tensor_name_twice"}


def _sealed(raw: bytearray) -> bytes:
    """The header's checksum made right again, so that the lie behind it is met."""
    (meta_bytes,) = struct.unpack_from("<Q", raw, 24)
    raw[12:16] = bytes(4)
    raw[12:16] = struct.pack("<I", crc32c(bytes(raw[: min(meta_bytes, len(raw))])))
    return bytes(raw)


@pytest.mark.parametrize("path", sorted(ATTACKS.glob("*.1bit")), ids=lambda path: path.stem)
def test_attacks(path: Path) -> None:
    if path.stem in HARMLESS:
        Model(path).logits([0, 1])
        return
    with pytest.raises(FormatError) as caught:
        Model(path)
    assert "\n" not in str(caught.value)


# The kept attacks on what is optional, by the beginnings of their names.
SAID = {
    "rope_frequency": r"rope frequency 2 is not a positive number up to 1",
    "rope_3": r"model\.rope\.inv_freq\) is 1 x 3, the model description asks for 1 x 4",
    "rope_float16": r"model\.rope\.inv_freq\) is a vector and must be float32",
    "rope_rounds": r"model\.rope\.inv_freq\) is a vector and must be float32",
    "rope_in_a_layer": r"model\.rope\.inv_freq\): kind 6 in layer 0 has no place",
    "rope_twice": r"model\.rope\.inv_freq\): kind 6 in layer 65535 is there twice",
    "hadamard_block_3": r"section HADAMARD: blocks of 3, expected a power of two that divides 4 inputs",
    "hadamard_signs": r"section HADAMARD: signs of more than 4 inputs",
    "hadamard_bytes": r"section HADAMARD has \d+ bytes",
    "hadamard_newer": r"section HADAMAR2 is required and unknown to this engine; it needs a newer onebit",
    "hadamard_turns_down_proj": r"down_proj\.weight\) turns its inputs, for which the file has no rotation",
    "hadamard_turns_norm": r"model\.norm\.weight\) is a vector",
    "hadamard_missing": r"turns its inputs, for which the file has no rotation",
}


@pytest.mark.parametrize("start", SAID)
def test_what_is_optional_is_refused_by_name(start: str) -> None:
    paths = sorted(ATTACKS.glob(f"{start}*.1bit"))
    assert paths
    for path in paths:
        with pytest.raises(FormatError, match=SAID[start]):
            Model(path)


def test_missing_empty_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="cannot open"):
        Model(tmp_path / "absent.1bit")
    with pytest.raises(FormatError, match="not a regular file"):
        Model(tmp_path)
    (tmp_path / "empty").touch()
    with pytest.raises(FormatError, match="empty"):
        Model(tmp_path / "empty")
    (tmp_path / "foreign").write_bytes(b"GGUF" + bytes(500))
    with pytest.raises(FormatError, match=r"not a \.1bit file"):
        Model(tmp_path / "foreign")


def test_flipped_tensor_bit_is_found_unless_told_not_to_look(make_file: Callable[..., Any]) -> None:
    path, _ = make_file(layout="ternary5_t16")
    raw = bytearray(path.read_bytes())
    raw[-70] ^= 4
    path.write_bytes(raw)
    for threads in (1, 2):
        with pytest.raises(FormatError, match="checksum"):
            Model(path, threads=threads)
    Model(path, verify=False)


@pytest.mark.parametrize("seed", range(8))
def test_random_lies_in_the_header(make_file: Callable[..., Any], seed: int) -> None:
    """Whatever the tables say, loading ends in a model or a FormatError, and a model runs."""
    layout = ("ternary_t16", "int4", "binary", "ternary5")[seed % 4]
    path, _ = make_file(layout=layout, granularity="per_group", hadamard_block=8 if seed >= 4 else 1)
    original, rng = path.read_bytes(), random.Random(seed)
    (meta_bytes,) = struct.unpack_from("<Q", original, 24)
    outcomes = {"loaded": 0, "refused": 0}
    for _ in range(150):
        raw = bytearray(original)
        for _ in range(rng.choice((1, 1, 2, 4))):
            at = rng.randrange(16, meta_bytes)
            raw[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        path.write_bytes(_sealed(raw))
        try:
            model = Model(path, verify=False, threads=1)
            model.session(min(4, model.description.max_seq_len)).prefill([0])
            outcomes["loaded"] += 1
        except (FormatError, EngineError):
            outcomes["refused"] += 1
    assert outcomes["refused"] > 20


def test_random_bytes_as_weights(make_file: Callable[..., Any]) -> None:
    """Codes and scales that mean nothing (10 pairs, NaN scales) must not crash; logits may be anything."""
    for layout in ("ternary", "ternary5", "ternary_t16", "ternary5_t16", "binary_t16", "int4", "float16"):
        path, _ = make_file(layout=layout, granularity="per_group")
        raw = bytearray(path.read_bytes())
        (meta_bytes,) = struct.unpack_from("<Q", raw, 24)
        raw[meta_bytes:] = random.Random(1).randbytes(len(raw) - meta_bytes)
        path.write_bytes(raw)
        for isa in ("scalar", "auto"):
            Model(path, verify=False, isa=isa).logits([1, 2, 3])


def test_a_context_beyond_memory_is_refused(make_file: Callable[..., Any]) -> None:
    path, _ = make_file({"max_seq_len": 1 << 24, "num_layers": 2, "num_heads": 2048, "num_key_value_heads": 2048})
    with pytest.raises(EngineError, match="memory"):
        Model(path).session()
    Model(path).session(8).prefill([1, 2])


def test_full_context_changes_nothing(make_file: Callable[..., Any]) -> None:
    session = Model(make_file({"max_seq_len": 8})[0]).session()
    session.prefill([1, 2, 3])
    for ids in ([1] * 6, [97], [-1], []):
        with pytest.raises(EngineError):
            session.prefill(ids)
    assert session.position == 3
    session.prefill([1] * 5)
    with pytest.raises(EngineError, match="context is full"):
        session.decode(1)
    with pytest.raises(EngineError, match="truncate"):
        session.truncate(9)


def test_bad_options(make_file: Callable[..., Any]) -> None:
    path, _ = make_file()
    with pytest.raises(EngineError, match="did you mean 'avx512'"):
        Model(path, isa="avx51")
    with pytest.raises(EngineError, match="threads"):
        Model(path, threads=0)
    with pytest.raises(EngineError, match="max_positions"):
        Model(path).session(65)
    with pytest.raises(EngineError, match="no tokenizer"):
        Model(path).generate("x")
    with pytest.raises(EngineError, match="whole numbers"):
        Model(path).logits(np.array([0.5]))


def test_a_library_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ONEBIT_ENGINE_LIBRARY", str(tmp_path / "nowhere.so"))
    with pytest.raises(EngineError, match="cmake"):
        _library.library_path()
