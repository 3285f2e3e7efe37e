"""Whole searches through the command line: the budget on disk, resuming, processes, Ctrl-C, what is written."""

from __future__ import annotations

import csv
import json
import os
import pickle
import signal
import sqlite3
import sys
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest

from onebit.cli.main import execute, load_command
from onebit.errors import ConfigError, OnebitError
from onebit.search import pictures, runners
from onebit.search.cache import ScoreCache
from onebit.search.evaluator import Evaluator
from onebit.search.report import SearchResult, pareto_front
from onebit.search.run import search
from onebit.search.score import Score
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


def picture_of(result: SearchResult) -> Any:
    """The axes of the picture of the front."""
    with pytest.MonkeyPatch.context() as patch:
        axes = []
        patch.setattr(pictures, "_finish", lambda figure, given, path, ncols=1: axes.append(given) or given.legend())
        pictures.draw_front(Path(), pareto_front(result.trials.done.values()), result.best, result.trials)
    return axes[0]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_exported_file_keeps_the_budget(strategy: str, checkpoint: Path, text: Path, tmp_path: Path) -> None:
    result = search(settings_of(checkpoint, text, tmp_path, strategy=strategy))
    told = json.loads((tmp_path / "best.json").read_text())
    assert told["evaluations"] == len(result.trials.done) <= 40
    out = tmp_path / "m.1bit"
    arguments = ["export", "--model-dir", str(checkpoint), "--output", str(out), "--no-verify"]
    assert execute([*arguments, "--bit-width-map", str(tmp_path / "best.json")]) == 0
    assert out.stat().st_size == told["size_bytes"] <= 120_000
    uniform = result.trials.done[result.trials.space.uniform("binary")]
    assert told["loss"] <= uniform.score.loss


def test_the_front_and_pictures_are_written(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = search(settings_of(checkpoint, text, tmp_path))
    folder = tmp_path / "best.search"
    with (folder / "pareto.csv").open(newline="") as file:
        front = list(csv.DictReader(file))
    assert list(front[0])[:5] == ["size_bytes", "loss", "accuracy", "embed_tokens", "q_proj"]
    done = {(trial.size, trial.score.loss) for trial in result.trials.done.values()}
    for row in front:  # measured, and no other trial is both smaller and better
        size, loss = int(row["size_bytes"]), float(row["loss"])
        assert (size, loss) in done
        assert not any(s <= size and value < loss for s, value in done)
    assert (result.best.size, result.best.score.loss) in {(int(r["size_bytes"]), float(r["loss"])) for r in front}
    for name in ("pareto.png", "layers.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    # The picture of the front marks every uniform map of the space, and the chosen one.
    assert {text.get_text() for text in picture_of(result).get_legend().get_texts()} == {
        "measured",
        "front",
        "chosen",
        "uniform binary",
        "uniform int4",
        "uniform int8",
    }
    assert sorted(path.name for path in folder.iterdir()) == [
        "evaluations.sqlite",
        "layers.png",
        "pareto.csv",
        "pareto.png",
    ]


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


def test_two_processes_give_the_answer_of_one(
    checkpoint: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_pictures: None
) -> None:
    if sys.platform == "linux":
        # Spares two workers the imports, most of the time; test_runners starts them as users do.
        monkeypatch.setattr(runners, "_START", "fork")
    results = []
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        folder.mkdir()
        settings = settings_of(checkpoint, text, folder, workers=workers, max_evaluations=25)
        assert pickle.loads(pickle.dumps(settings)) == settings
        search(settings)
        told = json.loads((folder / "best.json").read_text())
        results.append({name: value for name, value in told.items() if name != "search_time_secs"})
    assert results[0] == results[1]


def killed_when(moment: Callable[[list[object]], bool], owner: type, method: str) -> Callable[[], None]:
    """A process that is killed as by the system when `method` was called so often that `moment` holds."""
    own, calls = getattr(owner, method), []

    def dying(self: object, *given: object) -> object:
        calls.append(given)
        if moment(calls):
            os.kill(os.getpid(), signal.SIGKILL)
        return own(self, *given)

    return lambda: setattr(owner, method, dying)


@pytest.mark.skipif(sys.platform != "linux", reason="forks a process that runs threads")
def test_a_killed_search_goes_on_and_measures_nothing_twice(
    checkpoint: Path, text: Path, tmp_path: Path, no_pictures: None
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    expected = search(settings_of(checkpoint, text, whole))
    # Before the first evaluation, in the middle of a later one, before one is written down, before the report.
    for owner, method, call, known in (
        (Evaluator, "score", 1, 0),
        (Evaluator, "score", 10, 9),
        (ScoreCache, "put", 9, 17),
        (ScoreCache, "close", 1, expected.trials.measured),
    ):
        child = os.fork()
        if child == 0:
            killed_when(lambda calls, call=call: len(calls) == call, owner, method)()
            search(settings_of(checkpoint, text, killed))
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        assert rows(killed) == known
    assert not (killed / "best.json").exists()
    again = search(settings_of(checkpoint, text, killed))
    assert (again.trials.measured, again.best) == (0, expected.best)
    assert rows(killed) == expected.trials.measured == len(again.trials.done)


def test_ctrl_c_keeps_the_best_map(
    checkpoint: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_the_command_and_the_settings_have_the_same_defaults() -> None:
    defaults = {field.name: field.default for field in fields(SearchSettings)}
    options = {option.name: option for option in load_command("search").params if option.name != "help"}
    assert options.keys() == defaults.keys()
    for name, option in options.items():
        told = tuple(option.default.split(",")) if name == "levels" else option.default
        assert option.required if defaults[name] is MISSING else told == defaults[name], name


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
        ({"units": "row"}, "--units"),
        ({"finetune_lr": 0.0}, "--finetune-lr"),
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
