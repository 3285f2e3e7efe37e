"""`onebit bench` as a user gives it: a table, a record, a picture, and one line for what cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onebit.cli.main import execute

Capture = pytest.CaptureFixture[str]
QUICK = ["--prompt-lengths", "8", "--new-tokens", "4", "--threads", "1", "--rounds", "1"]


def test_table_record_and_picture(model_file: Path, tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("matplotlib")
    record, picture = tmp_path / "bench.json", tmp_path / "bench.png"
    arguments = ["bench", str(model_file), *QUICK, "--json", str(record), "--picture", str(picture)]
    assert execute(arguments) == 0, capsys.readouterr().err
    assert "of the limit" in capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")
    content = json.loads(record.read_text())
    assert content["benchmark"] == "bench"
    assert content["figures"]["decode_1t_tokens_per_s"] > 0
    assert content["samples"][0]["what"] == "decode"


def test_json_alone_on_standard_output(model_file: Path, capsys: Capture) -> None:
    assert execute(["bench", str(model_file), *QUICK, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["config"]["prompt_lengths"] == [8]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "MODEL or --shape"),
        (["x.1bit", "--shape", "45m"], "MODEL or --shape"),
        (["--shape", "45"], "did you mean '45m'"),
        (["missing.1bit"], "no such file"),
        (["tiny", "--prompt-lengths", "1,b"], "whole numbers"),
        (["tiny", "--threads", "0"], "threads must be"),
        (["tiny", "--prompt-lengths", "1000000"], "max_seq_len"),
        (["tiny", "--kv", "int2"], "kv must be one of"),
    ],
)
def test_what_cannot_be_is_one_line(arguments: list[str], message: str, capsys: Capture) -> None:
    assert execute(["bench", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
