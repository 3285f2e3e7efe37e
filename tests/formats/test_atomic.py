"""Files appear whole or not at all, and errors name the file that the user gave."""

from __future__ import annotations

from pathlib import Path

import pytest

from onebit.formats.atomic import beside, replacing


def test_a_file_appears_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with replacing(path) as out:
        out.write(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [path]


def test_what_was_there_stays_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(TypeError), beside(path) as temporary, replacing(temporary) as out:
        out.write("no bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_errors_name_the_file_and_not_its_forerunner(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "file"
    with pytest.raises(FileNotFoundError) as caught, beside(path) as temporary, replacing(temporary) as out:
        out.write(b"never")
    assert caught.value.filename == str(path)
