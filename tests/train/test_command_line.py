"""`onebit train`, `tokenizer`, `data`: flags reach the settings, exit codes say how it ended, errors are one line."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import onebit.train
from onebit.cli.main import execute
from onebit.train import TrainResult, TrainSettings

SEED_FLAGS = """
    --config config.json --data-dir ./data --tokenizer ./tokenizer.json --output-dir ./checkpoints --batch-size 4
    --accumulation-steps 4 --lr 5e-3 --lr-decay linear --lr-warmup-steps 200 --max-steps 10000 --save-every 500
    --log-every 10 --streaming
"""
SETTINGS_FLAGS = """
    --data stdlib --output-dir o --min-lr 1e-5 --label-smoothing 0.05 --grad-clip 2 --weight-decay 0.2 --seed 7
    --eval-every 50 --val-data v --preset llama --vocab-size 4096 --no-resume --bf16 --compile --device cpu
    --report-to tensorboard --max-minutes 3 --gradient-checkpointing --threads 2 --keep-best --quiet
    --set hidden_size=64 --set quantizer=binary
"""
# Every flag of the seed's Train section and Settings, with a value that is not the default.
FLAGS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "seed": (
        SEED_FLAGS.split(),
        {
            "config": Path("config.json"),
            "data": "./data",
            "tokenizer": Path("tokenizer.json"),
            "output_dir": Path("checkpoints"),
            "batch_size": 4,
            "accumulation_steps": 4,
            "lr": 5e-3,
            "lr_decay": "linear",
            "lr_warmup_steps": 200,
            "max_steps": 10000,
            "save_every": 500,
            "log_every": 10,
            "streaming": True,
        },
    ),
    "settings": (
        SETTINGS_FLAGS.split(),
        {
            "data": "stdlib",
            "min_lr": 1e-5,
            "label_smoothing": 0.05,
            "grad_clip_max_norm": 2.0,
            "weight_decay": 0.2,
            "seed": 7,
            "eval_every": 50,
            "val_data": "v",
            "preset": "llama",
            "vocab_size": 4096,
            "resume": False,
            "bf16": True,
            "compile": True,
            "device": "cpu",
            "report_to": "tensorboard",
            "max_minutes": 3.0,
            "gradient_checkpointing": True,
            "threads": 2,
            "keep_best": True,
            "quiet": True,
            "overrides": {"hidden_size": 64, "quantizer": "binary"},
        },
    ),
    "underscores": (["--data", "stdlib", "--output_dir", "o", "--max_steps=5"], {"max_steps": 5}),
}


@pytest.mark.parametrize("name", FLAGS)
def test_flags_reach_the_settings(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flags, expected = FLAGS[name]
    seen: list[TrainSettings] = []

    def record(settings: TrainSettings) -> TrainResult:
        seen.append(settings)
        return TrainResult(output_dir=Path(), steps=1, max_steps=1, metrics={}, seconds=0.0, signal=None)

    monkeypatch.setattr(onebit.train, "train", record)
    assert execute(["train", *flags]) == 0
    defaults = TrainSettings(data="stdlib", output_dir=Path("o"))
    for field in fields(TrainSettings):
        value = getattr(seen[0], field.name)
        if field.name in expected:
            assert value == expected[field.name], field.name
        elif field.name not in ("data", "output_dir"):
            assert value == getattr(defaults, field.name), field.name  # the two sets of defaults are one


@pytest.mark.parametrize(("signal", "code"), [(None, 0), (15, 143), (2, 130)])
def test_exit_codes(signal: int | None, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    result = TrainResult(output_dir=Path(), steps=1, max_steps=2, metrics={}, seconds=0.0, signal=signal)
    monkeypatch.setattr(onebit.train, "train", lambda settings: result)
    assert execute(["train", "--data", "stdlib", "--output-dir", "o"]) == code


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train", "--output-dir", "o"], "--data"),
        (["train", "--data", "./nowhere", "--output-dir", "o", "--device", "cpu"], "no file or folder './nowhere'"),
        (["train", "--data", "stdlib", "--output-dir", "o", "--lr-decay", "cosin"], "did you mean 'cosine'"),
        (["train", "--data", "stdlib", "--output-dir", "o", "--set", "hidden_size"], "expected FIELD=VALUE"),
        (["train", "--data", "stdlib", "--output-dir", "o", "--set", "hiden_size=3"], "did you mean 'hidden_size'"),
        (["train", "--data", "stdlib", "--output-dir", "o", "--config", "nowhere.json"], "nowhere.json"),
        (["tokenizer", "train", "--data", "./nowhere"], "no file or folder"),
        (["tokenizer", "train", "--data", "stdlib", "--vocab-size", "3"], "--vocab-size is 3"),
        (["data", "./nowhere"], "no file or folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert execute(argv) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_tokenizer_train_writes_one_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text, some more text\n" * 100)
    output = tmp_path / "new" / "tokenizer.json"
    argv = ["tokenizer", "train", "--data", str(tmp_path / "a.txt"), "--vocab-size", "269", "--output", str(output)]
    assert execute(argv) == 0
    from onebit.data import load_tokenizer

    assert load_tokenizer(output).vocab_size == 269
    assert [path.name for path in output.parent.iterdir()] == ["tokenizer.json"]


def test_data_counts_a_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("größe")
    (tmp_path / "b.txt").write_text("x")
    assert execute(["data", str(tmp_path), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["documents"], figures["bytes"]) == (2, 8)


def test_data_makes_the_blocks_that_train_uses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from onebit.data import train_tokenizer

    (tmp_path / "a.txt").write_text("def f(x):\n    return x\n" * 100)
    train_tokenizer(["def f(x):\n"], 260).save(tmp_path / "t")
    argv = ["data", str(tmp_path / "a.txt"), "--tokenizer", str(tmp_path / "t"), "--max-seq-len", "32"]
    assert execute([*argv, "--output", str(tmp_path / "cache")]) == 0
    assert "tokenising" in capsys.readouterr().out
    assert execute([*argv, "--output", str(tmp_path / "cache")]) == 0
    assert "tokenising" not in capsys.readouterr().out
