"""WikiText by name: written as three files, or a message that says what to put where."""

from __future__ import annotations

from pathlib import Path

import pytest

from onebit.data import hub
from onebit.data.documents import open_source
from onebit.data.wikitext import download_wikitext
from onebit.errors import DataError

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def hub_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_hub_answers", lambda name: True)


def test_the_three_files_are_written_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = datasets.Dataset.from_dict({"text": [" = Title = \n", "", " Some text . \n"]})
    monkeypatch.setattr(
        datasets, "load_dataset", lambda name, config, streaming: dict.fromkeys(("train", "validation", "test"), table)
    )
    folder = tmp_path / "wikitext-2"
    download_wikitext("wikitext-2", folder)
    assert sorted(p.name for p in folder.iterdir()) == ["test.txt", "train.txt", "valid.txt"]
    source = open_source(str(folder))
    assert [piece.text for piece in source.pieces()] == [" = Title = \n Some text . \n"]
    assert source.validation is not None
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: pytest.fail("downloaded again"))
    download_wikitext("wikitext-2", folder)


def test_without_the_hub_it_says_what_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DataError, match=r"as train\.txt, valid\.txt, test\.txt into") as caught:
        download_wikitext("wikitext-103", tmp_path / "w")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "w").exists()
