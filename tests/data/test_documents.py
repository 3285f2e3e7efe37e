"""Text sources: every kind is read whole and in order, the split is a partition, bad input is one clear line."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from onebit.data import documents, hub
from onebit.data.documents import Piece, TextSource, hold_out, open_source
from onebit.data.stdlib_corpus import EXCLUDED_FOLDERS, stdlib_files
from onebit.errors import DataError


def texts(source: TextSource) -> list[str]:
    return [piece.text for piece in source.pieces()]


def memory_source(count: int) -> TextSource:
    pieces = [Piece(name=f"p{i}", text=f"line {i}\n" * 20) for i in range(count)]
    return TextSource(description="memory", fingerprint="m", pieces=lambda: iter(pieces))


def test_stdlib_is_the_same_twice_and_leaves_tests_and_packages_out() -> None:
    names = [name for name, _ in stdlib_files()]
    assert names == sorted(names)
    assert names == [name for name, _ in stdlib_files()]
    assert {"json/__init__.py", "argparse.py"} <= set(names)
    assert not any(EXCLUDED_FOLDERS & set(name.split("/")[:-1]) for name in names)
    assert open_source("stdlib").fingerprint == open_source("stdlib").fingerprint


def test_stdlib_pieces_are_the_files() -> None:
    source = open_source("stdlib")
    piece = next(p for p in source.pieces() if p.name == "json/decoder.py")
    path = dict(stdlib_files())["json/decoder.py"]
    assert piece.text == path.read_bytes().decode()


def test_a_folder_is_read_in_order(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "b.txt").write_text("second\r\n", newline="")
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "first"}) + "\n\n" + json.dumps("bare") + "\n")
    pq.write_table(pa.table({"text": ["third", None, "", "fourth"]}), tmp_path / "c.parquet")
    (tmp_path / "ignored.bin").write_bytes(b"\xff")
    assert texts(open_source(str(tmp_path))) == ["first", "bare", "second\r\n", "third", "fourth"]


def test_named_splits_keep_the_test_text_out(tmp_path: Path) -> None:
    for name in ("train", "valid", "test"):
        (tmp_path / f"{name}.txt").write_text(name)
    source = open_source(str(tmp_path))
    assert texts(source) == ["train"]
    assert source.validation is not None
    assert texts(source.validation) == ["valid"]


def test_a_long_file_comes_in_pieces_that_join_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "PIECE_CHARACTERS", 100)
    text = "".join(f"line {i} ä\n" for i in range(200))
    (tmp_path / "long.txt").write_text(text, encoding="utf-8")
    pieces = list(open_source(str(tmp_path / "long.txt")).pieces())
    assert len(pieces) > 10
    assert "".join(p.text for p in pieces) == text
    assert all(p.text.endswith("\n") for p in pieces)
    assert [p.ends_document for p in pieces] == [False] * (len(pieces) - 1) + [True]
    assert len({p.name for p in pieces}) == len(pieces)


def test_the_fingerprint_follows_the_content(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one")
    first = open_source(str(file)).fingerprint
    file.write_text("two")
    assert open_source(str(file)).fingerprint != first


@pytest.mark.parametrize("count", [3, 200])
def test_hold_out_is_a_partition(count: int) -> None:
    source = memory_source(count)
    train, validation = hold_out(source, 0.2)
    assert validation is not None
    kept, held = texts(train), texts(validation)
    if count == 3:  # few pieces: the end of each, at a line end
        assert [a + b for a, b in zip(kept, held, strict=True)] == texts(source)
        assert all(text.endswith("\n") for text in kept)
    else:
        assert sorted(kept + held) == sorted(texts(source))
        assert 0.1 < len(held) / count < 0.3  # 200 draws at 0.2: 3.5 standard deviations either way
    assert train.fingerprint != validation.fingerprint != source.fingerprint


def test_hold_out_of_nothing_is_the_source() -> None:
    source = memory_source(3)
    assert hold_out(source, 0.0) == (source, None)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"tex": "y"}\n', "line 2: no column 'text' (it has tex)"),
        ("a.jsonl", b"{not json}\n", "line 1: not JSON"),
        ("a.jsonl", b'{"text": 3}\n', "holds int, text was expected"),
        ("a.txt", b"good\n\xff\xfe bad", "is not UTF-8 text"),
        ("a.parquet", b"PAR1 this is none", "as parquet"),
    ],
)
def test_bad_files_are_named_in_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(open_source(str(tmp_path)).pieces())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_column_in_parquet_names_the_columns(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"no column 'text' \(it has body\)"):
        list(open_source(str(tmp_path)).pieces())
    assert texts(open_source(str(tmp_path), text_column="body")) == ["x"]


@pytest.mark.parametrize("data", ["./nowhere", "nowhere.txt", "/no/such/folder"])
def test_a_missing_path_is_said(data: str) -> None:
    with pytest.raises(DataError, match="no file or folder"):
        open_source(data)


def test_a_folder_without_text_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b")
    with pytest.raises(DataError, match=r"holds no \.txt"):
        open_source(str(tmp_path))


def test_a_hub_name_that_cannot_be_had_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def refuse(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no network\nsecond line")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    monkeypatch.setattr(hub, "_hub_answers", lambda name: True)
    with pytest.raises(DataError, match="cannot be had: no network") as caught:
        open_source("someone/some-data")
    assert "\n" not in str(caught.value)


def test_a_hub_that_does_not_answer_is_asked_once(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    hub_client = pytest.importorskip("huggingface_hub")
    pytest.importorskip("datasets")

    def no_network(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(hub_client.HfApi, "dataset_info", no_network)
    before = hub_client.constants.HF_HUB_OFFLINE
    began = time.monotonic()
    with pytest.raises(DataError, match="the hub does not answer, and it is not in the cache"):
        open_source("someone/mistyped-folder")
    assert time.monotonic() - began < 5
    assert "Retrying" not in capfd.readouterr().err
    assert before == hub_client.constants.HF_HUB_OFFLINE


def test_a_hub_data_set_is_read_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked = []

    def load(name: str, config: str | None, streaming: bool) -> dict[str, object]:
        asked.append((name, config, streaming))
        table = datasets.Dataset.from_dict({"text": ["a", "", "b"]})
        return {"train": table, "validation": table.select([0])}

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(hub, "_hub_answers", lambda name: True)
    source = open_source("someone/some-data:small")
    assert asked == [("someone/some-data", "small", False)]
    assert texts(source) == ["a", "b"]
    assert source.validation is not None
    assert texts(source.validation) == ["a"]
