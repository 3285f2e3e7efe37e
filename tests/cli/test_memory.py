"""`onebit memory` as a user gives it: two tables, JSON, a picture, and one line for what cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from onebit.cli.main import execute

pytest.importorskip("torch")

Capture = pytest.CaptureFixture[str]


def test_tables_and_picture(checkpoint: Path, tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "memory.svg"
    methods = ["--method", "hybrid-bf16", "--method", "pure-int8"]
    assert execute(["memory", str(checkpoint), *methods, "--plot", str(picture)]) == 0, capsys.readouterr().err
    told = capsys.readouterr()
    rows = {line.split()[0]: line.split()[1:] for line in told.out.splitlines() if line.startswith(("hybrid", "pure"))}
    assert rows.keys() == {"hybrid-bf16", "pure-int8"}
    assert told.out.count("pure-int8") == 2
    assert told.err == f"picture: {picture}\n"
    assert ElementTree.parse(picture).getroot().tag.endswith("svg")


def test_json_adds_up_and_what_fits_fits(checkpoint: Path, capsys: Capture) -> None:
    arguments = ["memory", str(checkpoint), "--json", "--method", "pure-int8", "--batch-size", "3", "--length", "16"]
    assert execute([*arguments, "--accumulation-steps", "2", "--codes", "binary"]) == 0, capsys.readouterr().err
    told = json.loads(capsys.readouterr().out)
    (method,) = told["methods"]
    assert (method["batch"], method["length"]) == (3, 16)
    assert sum(method["bytes"].values()) == method["sum"]
    weights = told["parameters"]["matrices"]
    assert method["bytes"]["counters"] == weights
    assert weights < method["bytes"]["accumulation"] < 2 * weights  # in int8, rows filled up to whole blocks
    assert weights / 8 <= method["parts"]["matrices"]["weights"] < weights / 4
    assert all(batch > 3 and length == 16 for batch, length in method["fits"].values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing"], "no such configuration"),
        (["bitnett"], "did you mean 'bitnet'"),
        (["bitnet", "--method", "pure-int"], "did you mean 'pure-int8'"),
        (["bitnet", "--length", "100000"], "--length is 100000"),
        (["bitnet", "--plot", "memory.txt"], "must end in one of .png"),
        (["bitnet", "--plot", "nowhere/memory.png"], "there is no folder"),
        (["bitnet", "--batch-size", "0"], "batch-size"),
        (["bitnet", "--granularity", "per_tenser"], "did you mean 'per_tensor'"),
        (["bitnet", "--granularity", "per_tensor"], "has its own granularity"),
    ],
)
def test_what_cannot_be_is_one_line(arguments: list[str], message: str, capsys: Capture) -> None:
    assert execute(["memory", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_a_file_to_run_is_no_model_to_train(model_file: Path, capsys: Capture) -> None:
    assert execute(["memory", str(model_file)]) == 2
    assert "give the checkpoint's folder" in capsys.readouterr().err
