"""`--to web`: a folder that is whole or not there, and refusals in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from onebit.cli.main import execute
from onebit.cli.model_path import tiny_model_path
from onebit.errors import ConfigError, EngineError, FormatError
from onebit.formats import onebit_file, web_folder
from onebit.formats.convert import differences
from onebit.formats.web_folder import write_web_folder


def test_the_command_writes_page_engine_and_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["convert", str(tiny_model_path()), str(tmp_path / "page"), "--to", "web"]) == 0
    names = {path.name for path in (tmp_path / "page").iterdir()}
    assert {"index.html", "chat.css", "chat.js", "onebit.js", "onebit.d.ts", "onebit.wasm", "model.1bit"} <= names
    assert "continues what is typed" in capsys.readouterr().out
    written = onebit_file.read(tmp_path / "page" / "model.1bit")
    assert not differences(onebit_file.read(tiny_model_path()), written)
    assert "ternary5_t16" not in {
        tensor.layout.label for tensor in written.tensors.values()
    }  # two bits, the same codes


def test_the_page_asks_for_nothing_from_elsewhere(tmp_path: Path) -> None:
    write_web_folder(tmp_path / "page", onebit_file.read(tiny_model_path()))
    for path in (tmp_path / "page").glob("*.*"):
        if path.suffix in (".html", ".css", ".js"):
            text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "").replace("https?://", "")
            assert "://" not in text, path.name


def test_what_cannot_be_is_refused_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = onebit_file.read(tiny_model_path())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep", encoding="utf-8")
    with pytest.raises(ConfigError, match="not empty"):
        write_web_folder(tmp_path / "full", file)
    with pytest.raises(FormatError, match="no tokenizer for the engine"):
        write_web_folder(tmp_path / "bare", replace(file, tokenizer_binary=None))
    monkeypatch.setattr(web_folder, "MOST_BYTES", 1_000_000)
    with pytest.raises(ConfigError, match="serve it instead"):
        write_web_folder(tmp_path / "large", file)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_a_copy_without_engine_says_how_to_get_one(real_wasm_path: Callable[[str], Path]) -> None:
    with pytest.raises(EngineError, match=r"clang-16 and lld-16.*make wasm"):
        real_wasm_path("none.wasm")
