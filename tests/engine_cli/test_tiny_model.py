"""The model inside the package: small enough, described, and the same greedy answer from every path that runs it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from onebit.cli.main import execute
from onebit.cli.model_path import tiny_model_path
from onebit.engine import Model
from onebit.errors import EngineError
from onebit.formats import onebit_file
from onebit.formats.statistics import summarise

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "tiny_greedy.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512", "auto"])
def test_every_instruction_set_gives_the_golden_tokens(isa: str) -> None:
    try:
        model = Model(tiny_model_path(), isa=isa)
    except EngineError as missing:
        pytest.skip(str(missing))
    generation = model.generate(GOLDEN["prompt"], max_new_tokens=len(GOLDEN["ids"]))
    assert "".join(generation) == GOLDEN["text"]
    assert generation.ids == GOLDEN["ids"]


def test_the_native_program_writes_the_golden_text(run: Callable[..., CompletedProcess[str]]) -> None:
    length = len(GOLDEN["ids"])
    done = run(tiny_model_path(), "-p", GOLDEN["prompt"], "-n", length, "--temperature", 0)
    assert done.returncode == 0, done.stderr
    assert GOLDEN["text"] in done.stdout


def test_it_is_as_small_and_as_large_as_promised() -> None:
    path = tiny_model_path()
    assert path.stat().st_size <= 1_500_000
    file = onebit_file.read(path)
    ternary = sum(t["rows"] * t["cols"] for t in summarise(file)["tensors"] if t["layout"].startswith("ternary"))
    assert 3_500_000 <= ternary <= 4_500_000
    manifest = json.loads(path.with_name("tiny_manifest.json").read_text(encoding="utf-8"))
    assert manifest["training_steps"] > 0
    assert manifest["status"] == "complete"


def test_info_knows_it_by_name_and_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["info", "tiny", "--json"]) == 0
    named = json.loads(capsys.readouterr().out)
    assert execute(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == named
