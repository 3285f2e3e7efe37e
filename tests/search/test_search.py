"""Whole searches through the command line: the budget on disk, resuming, processes, Ctrl-C, what is written."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from onebit.cli.main import execute
from onebit.errors import ConfigError, OnebitError
from onebit.search.run import search
from onebit.search.settings import STRATEGIES, SearchSettings

pytest.importorskip("scipy")
pytest.importorskip("networkx")


def settings_of(checkpoint: Path, text: Path, folder: Path, **changes: Any) -> SearchSettings:
    """A search of seven units at three levels, on 256 tokens."""
    values: dict[str, Any] = {
        "checkpoint": checkpoint,
        "val_data": text,
        "output": folder / "best.json",
        "units": "kind",
        "levels": ("binary", "int4", "int8"),
        "max_tokens": 256,
        "max_evaluations": 40,
        "max_size_mb": 0.12,
        "quiet": True,
    }
    return SearchSettings(**{**values, **changes})


def rows(folder: Path) -> int:
    """Evaluations that are on disk."""
    with sqlite3.connect(folder / "best.search" / "evaluations.sqlite") as database:
        return int(database.execute("SELECT COUNT(*) FROM scores").fetchone()[0])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_exported_file_keeps_the_budget(strategy: str, checkpoint: Path, text: Path, tmp_path: Path) -> None:
    result = search(settings_of(checkpoint, text, tmp_path, strategy=strategy))
    told = json.loads((tmp_path / "best.json").read_text())
    assert told["evaluations"] == len(result.trials.done) <= 40
    out = tmp_path / "m.1bit"
    arguments = ["export", "--model-dir", str(checkpoint), "--output", str(out), "--no-verify"]
    assert execute([*arguments, "--bit-width-map", str(tmp_path / "best.json")]) == 0
    assert out.stat().st_size == told["size_bytes"] <= 120_000
    front = (tmp_path / "best.search" / "pareto.csv").read_text().splitlines()
    assert front[0].startswith("size_bytes,loss,accuracy,embed_tokens,q_proj")
    losses = [float(line.split(",")[1]) for line in front[1:]]
    assert losses == sorted(losses, reverse=True)
    for name in ("pareto.png", "layers.png"):
        assert (tmp_path / "best.search" / name).read_bytes().startswith(b"\x89PNG")
    uniform = result.trials.done[result.trials.space.uniform("binary")]
    assert told["loss"] <= uniform.score.loss


def test_an_impossible_budget_is_refused_before_anything_is_measured(
    checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"the smallest file .* has ([\d,]+) bytes") as caught:
        search(settings_of(checkpoint, text, tmp_path, max_size_mb=0.01))
    assert list(tmp_path.iterdir()) == []
    least = float(str(caught.value).rsplit(" ", 1)[1])
    result = search(settings_of(checkpoint, text, tmp_path, max_size_mb=least, max_evaluations=3))
    assert result.size <= least * 1e6
    with pytest.raises(ConfigError):
        search(settings_of(checkpoint, text, tmp_path, max_size_mb=least - 1e-4))


def test_an_accuracy_that_no_map_reaches_is_said(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(OnebitError, match=r"--min-accuracy 0.999.*the best has 0\."):
        search(settings_of(checkpoint, text, tmp_path, min_accuracy=0.999, max_evaluations=6))
    free = search(settings_of(checkpoint, text, tmp_path))
    accuracies = sorted(t.score.accuracy for t in free.trials.done.values() if free.trials.fits(t.choice))
    kept = search(settings_of(checkpoint, text, tmp_path, min_accuracy=accuracies[-1]))
    assert kept.score.accuracy >= accuracies[-1]


def test_two_processes_give_the_answer_of_one(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    results = []
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        folder.mkdir()
        search(settings_of(checkpoint, text, folder, workers=workers, max_evaluations=25))
        told = json.loads((folder / "best.json").read_text())
        results.append({name: value for name, value in told.items() if name != "search_time_secs"})
    assert results[0] == results[1]


# The command with an evaluator that is killed, as by the system, in the middle of its 18th evaluation.
KILLED = """
import os, signal, sys
from onebit.search.evaluator import Evaluator

score, calls = Evaluator.score, []

def dying(self, levels):
    calls.append(levels)
    found = score(self, levels)
    if len(calls) == 18:
        os.kill(os.getpid(), signal.SIGKILL)
    return found

Evaluator.score = dying
from onebit.cli.main import run
run(sys.argv[1:])
"""


def test_a_killed_search_goes_on_and_measures_nothing_twice(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    expected = search(settings_of(checkpoint, text, whole))
    flags = "--units kind --levels binary,int4,int8 --max-tokens 256 --max-evaluations 40 --max-size-mb 0.12 --quiet"
    command = ["search", "--checkpoint", checkpoint, "--val-data", text, "--output", killed / "best.json"]
    done = subprocess.run([sys.executable, "-c", KILLED, *map(str, command), *flags.split()], timeout=280)
    assert done.returncode == -signal.SIGKILL
    assert rows(killed) == 17
    resumed = search(settings_of(checkpoint, text, killed))
    assert resumed.trials.measured == expected.trials.measured - 17
    assert rows(killed) == expected.trials.measured
    assert resumed.best == expected.best
    again = search(settings_of(checkpoint, text, killed))
    assert (again.trials.measured, again.best) == (0, expected.best)


def test_ctrl_c_keeps_the_best_map(
    checkpoint: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onebit.search.evaluator import Evaluator, Score

    score, calls = Evaluator.score, []

    def stop_at_ten(self: Evaluator, levels: dict[str, str]) -> Score:
        calls.append(levels)
        if len(calls) == 10:
            os.kill(os.getpid(), signal.SIGINT)
        return score(self, levels)

    monkeypatch.setattr(Evaluator, "score", stop_at_ten)
    flags = "--units kind --levels binary,int4,int8 --max-tokens 256 --max-size-mb 0.12"
    command = ["search", "--checkpoint", checkpoint, "--val-data", text, "--output", tmp_path / "best.json"]
    assert execute([*map(str, command), *flags.split()]) == 130
    told = json.loads((tmp_path / "best.json").read_text())
    assert told["interrupted"] is True
    assert told["evaluations"] == rows(tmp_path) == 9
    assert told["size_bytes"] <= 120_000


def test_one_map_is_scored_as_the_search_scored_it(
    checkpoint: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = search(settings_of(checkpoint, text, tmp_path, max_evaluations=8))
    arguments = ["eval-config", "--checkpoint", checkpoint / "model.safetensors", "--val-data", text, "--json"]
    arguments += ["--model-config", checkpoint / "config.json", "--tokenizer", checkpoint / "tokenizer.json"]
    arguments += ["--quant-config", tmp_path / "best.json", "--max-tokens", 256]
    capsys.readouterr()
    assert execute([str(argument) for argument in arguments]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["loss"] == result.score.loss
    assert told["size_bytes"] == result.size


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"strategy": "sensitivty"}, "did you mean 'sensitivity'"),
        ({"max_size_mb": -1.0}, "--max-size-mb"),
        ({"min_accuracy": 2.0}, "--min-accuracy"),
        ({"max_evaluations": 0}, "--max-evaluations"),
        ({"finetune_steps": 5}, "--data"),
        ({"output": Path("nowhere") / "best.json"}, "does not exist"),
        ({"levels": ("int8",)}, "at least two"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    changes: dict[str, Any], says: str, checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=says):
        settings_of(checkpoint, text, tmp_path, **changes)


def test_the_command_of_the_seed_under_its_old_name(
    checkpoint: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onebit.cli import aliases

    seed = f"--model-config {checkpoint}/config.json --checkpoint {checkpoint}/model.safetensors --val-data {text}"
    seed += f" --tokenizer {checkpoint}/tokenizer.json --max-size-mb 100 --output {tmp_path}/best_config.json"
    small = "--units layer --levels binary,int8 --max_tokens 128 --quiet"
    monkeypatch.setattr(sys, "argv", ["onebit-search", *seed.split(), *small.split()])
    with pytest.raises(SystemExit) as left:
        aliases.search()
    assert left.value.code == 0
    told = json.loads((tmp_path / "best_config.json").read_text())
    keys = {"config", "layer_bit_map", "accuracy", "perplexity", "size_mb", "compression_ratio", "search_time_secs"}
    assert keys | {"evaluations"} <= told.keys()
    assert told["evaluations"] == 8  # all there are
    assert told["config"]["bit_width_map"] == told["layer_bit_map"]
