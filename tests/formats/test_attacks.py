"""Hostile files: the reader says FormatError in one line, quickly, and takes no memory on a file's word."""

from __future__ import annotations

import contextlib
import importlib.util
import random
import re
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onebit.errors import FormatError
from onebit.formats.onebit_file import read

_SPEC = importlib.util.spec_from_file_location("onebit_attacks", Path(__file__).with_name("attacks.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
attacks: Any = importlib.util.module_from_spec(_SPEC)
sys.modules["onebit_attacks"] = attacks
_SPEC.loader.exec_module(attacks)

HONEST: bytes = attacks.honest()
OPTIONAL: bytes = attacks.honest_optional()
MADE: dict[str, bytes] = attacks.attacks()
KEPT = sorted((Path(__file__).parent.parent / "attacks").glob("*.1bit"))
META = int.from_bytes(HONEST[24:32], "little")


def refused(path: Path) -> str:
    with pytest.raises(FormatError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def read_all(path: Path) -> None:
    """Open and decode everything."""
    for tensor in read(path).tensors.values():
        tensor.values()


@pytest.mark.parametrize("honest", [HONEST, OPTIONAL])
def test_the_honest_files_are_fine(honest: bytes, tmp_path: Path) -> None:
    (tmp_path / "honest.1bit").write_bytes(honest)
    read_all(tmp_path / "honest.1bit")


@pytest.mark.parametrize("name", MADE)
def test_lies_are_refused(name: str, tmp_path: Path) -> None:
    assert MADE[name] != HONEST
    path = tmp_path / f"{name}.1bit"
    path.write_bytes(MADE[name])
    tracemalloc.start()
    try:
        refused(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The file has a few kilobytes and the checksum's tables a megabyte; a believed size would be gigabytes.
    assert peak < 8e6


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_kept_attacks_are_refused(path: Path) -> None:
    refused(path)
    assert path.read_bytes() == MADE[path.stem], "run tests/formats/attacks.py again"


def test_all_attacks_that_are_to_be_kept_are_there() -> None:
    assert [path.stem for path in KEPT] == sorted(attacks.kept()), "run tests/formats/attacks.py again"


# What an attack that is kept must be told; tests/engine/test_refusals.py has the engine's words.
SAID = {
    "rope_frequency": "model.rope.inv_freq: a frequency is not a positive number up to 1",
    "rope_3": r"model.rope.inv_freq: shape \(1, 3\), expected \(1, 4\)",
    "rope_float16": "model.rope.inv_freq: layout float16 is not for this kind",
    "rope_rounds": "model.rope.inv_freq: activation int8 is not for this kind",
    "rope_in_a_layer": "model.rope.inv_freq: kind rope_frequencies of layer 0, expected",
    "rope_twice": "tensor model.rope.inv_freq is there twice",
    "hadamard_block_3": "section HADAMARD: blocks of 3, expected a power of two that divides 4",
    "hadamard_signs": "section HADAMARD: signs of more than 4 inputs",
    "hadamard_bytes": "section HADAMARD",
    "hadamard_newer": "section HADAMAR2 is required and unknown to this onebit; a newer one is needed",
    "hadamard_turns": "turns its inputs, for which the file has no rotation",
}


@pytest.mark.parametrize("name", [name for name in MADE if name.startswith(tuple(SAID))])
def test_what_is_optional_is_refused_by_name(name: str, tmp_path: Path) -> None:
    (tmp_path / "m.1bit").write_bytes(MADE[name])
    expected = next(said for start, said in SAID.items() if name.startswith(start))
    assert re.search(expected, refused(tmp_path / "m.1bit"))


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "absent.1bit")
    assert "cannot be read" in refused(tmp_path)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    """At every byte of header and first tables, then at and around every line of 64 bytes."""
    path = tmp_path / "cut.1bit"
    lines = {at + near for at in range(0, len(HONEST), 64) for near in (-1, 0, 1)}
    for size in sorted(size for size in {*range(300), *lines} if 0 <= size < len(HONEST)):
        path.write_bytes(HONEST[:size])
        with pytest.raises(FormatError):
            read(path, verify=False)


def test_deeply_nested_json_is_refused(tmp_path: Path) -> None:
    from onebit.formats.onebit_file import write
    from onebit.formats.random_model import random_file

    path = tmp_path / "deep.1bit"
    write(path, random_file(tokenizer_json="x", config={"k": "0" * 400_000}))
    raw = path.read_bytes()
    at = raw.index(b'{"k":"0')
    nested = raw[:at] + b'{"k":' + b"[" * 200_000 + raw[at + 200_005 :]
    path.write_bytes(attacks.mended(nested))
    assert "CONFIG" in refused(path)


def flips(count: int | None) -> list[int]:
    bits = range(8 * len(HONEST))
    return list(bits) if count is None else random.Random(7).sample(bits, count)


@pytest.mark.parametrize("count", [800, pytest.param(None, marks=pytest.mark.slow)])
def test_every_flipped_bit_is_noticed(count: int | None, tmp_path: Path) -> None:
    path = tmp_path / "flip.1bit"
    for bit in flips(count):
        damaged = bytearray(HONEST)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(FormatError):
            read(path)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([HONEST, OPTIONAL]),
    st.lists(st.tuples(st.integers(0, META - 1), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_random_damage_with_a_good_checksum(tmp_path: Path, honest: bytes, changes: list[tuple[int, int]]) -> None:
    """Whatever the header says, reading and decoding end well or in FormatError."""
    damaged = bytearray(honest)
    for at, value in changes:
        damaged[at] = value
    path = tmp_path / "fuzz.1bit"
    path.write_bytes(attacks.mended(bytes(damaged)))
    with contextlib.suppress(FormatError):
        read_all(path)
