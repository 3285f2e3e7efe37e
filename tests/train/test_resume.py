"""Killed at any moment, a run goes on to the very losses and weights of the run that nobody disturbed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from onebit.errors import ConfigError
from onebit.train import TrainSettings, recipe, train
from onebit.train.metrics_log import read_metrics

MakeSettings = Callable[..., TrainSettings]


def losses(folder: Path) -> list[dict[str, float]]:
    """Everything that is logged but the speed, which no two runs share."""
    return [{k: v for k, v in entry.items() if k != "tokens_per_second"} for entry in read_metrics(folder)]


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def stop_at(step: int, number: int) -> type[TrainerCallback]:
    class Stop(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
            if state.global_step == step:
                os.kill(os.getpid(), number)

    return Stop


def with_callback(monkeypatch: pytest.MonkeyPatch, callback: type[TrainerCallback]) -> None:
    make = recipe.make_trainer

    def made(*args: Any, **kwargs: Any) -> Any:
        trainer = make(*args, **kwargs)
        trainer.add_callback(callback())
        return trainer

    monkeypatch.setattr(recipe, "make_trainer", made)


SOFT = {
    "anneal_fraction": 0.5,
    "lambda_warmup_fraction": 0.4,
    "arenas_initial": 0.1,
    "arenas_anneal_steps": 8,
    "latent_clamp_max": 0.05,
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"log_every": 3, "save_every": 4, "accumulation_steps": 2, "eval_every": 4},
        {"lr_decay": "two-stage", "shape": SOFT},
        {"streaming": True, "val_fraction": 0.0},
        {"optimizer": "muon", "bf16": True},
        {"pure": True, "pure_eta": 0.3, "log_every": 3, "save_every": 4, "accumulation_steps": 2, "eval_every": 4},
    ],
    ids=["plain", "between log lines", "soft and two-stage", "streaming", "muon", "pure"],
)
def test_sigterm_saves_and_the_same_call_goes_on_bit_for_bit(
    settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, changes: dict[str, Any]
) -> None:
    whole = settings(output_dir=tmp_path / "whole", **dict(changes))
    assert train(whole).complete
    broken = replace(whole, output_dir=tmp_path / "broken")
    with monkeypatch.context() as patch:
        with_callback(patch, stop_at(6, signal.SIGTERM))
        result = train(broken)
    assert (result.signal, result.steps) == (signal.SIGTERM, 7)
    assert (broken.output_dir / "checkpoint-7").is_dir()
    assert not (broken.output_dir / "model.safetensors").exists()
    assert json.loads((broken.output_dir / "training_manifest.json").read_text())["status"] == "interrupted"
    assert train(broken).complete
    assert losses(broken.output_dir) == losses(whole.output_dir)
    assert weights(broken.output_dir) == weights(whole.output_dir)


def as_flags(settings: TrainSettings) -> list[str]:
    flags = ["--data", settings.data, "--tokenizer", str(settings.tokenizer)]
    flags += ["--output-dir", str(settings.output_dir), "--cache-dir", str(settings.cache_dir)]
    for name in ("batch_size", "max_steps", "lr_warmup_steps", "save_every", "log_every", "device"):
        flags += [f"--{name}", str(getattr(settings, name))]
    for name, value in settings.overrides.items():
        flags += ["--set", f"{name}={json.dumps(value)}"]
    return flags


def test_sigkill_at_a_random_moment_resumes_bit_for_bit(settings: MakeSettings, tmp_path: Path) -> None:
    whole = settings(output_dir=tmp_path / "whole", max_steps=60, save_every=3)
    train(whole)
    killed = replace(whole, output_dir=tmp_path / "killed")
    moment = random.Random().uniform(0.0, 0.4)
    process = subprocess.Popen(
        [sys.executable, "-m", "onebit.cli.main", "train", *as_flags(killed), "--threads", "1"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not list(killed.output_dir.glob("checkpoint-*")) and time.monotonic() < deadline:
        assert process.poll() is None, "the run ended before its first checkpoint"
        time.sleep(0.005)
    time.sleep(moment)
    process.kill()
    process.wait()
    steps_there = max((int(p.name.split("-")[1]) for p in killed.output_dir.glob("checkpoint-*")), default=0)
    assert train(killed).complete
    where = f"killed {moment:.3f} s after the first checkpoint, at checkpoint {steps_there}"
    assert losses(killed.output_dir) == losses(whole.output_dir), where
    assert weights(killed.output_dir) == weights(whole.output_dir), where


def test_a_finished_run_is_not_run_again(settings: MakeSettings) -> None:
    run = settings()
    train(run)
    before = weights(run.output_dir)
    started = time.monotonic()
    assert train(run).steps == 12
    assert weights(run.output_dir) == before
    assert time.monotonic() - started < 20  # seconds: nothing but opening what is there


def test_another_run_in_the_folder_is_refused_and_can_be_replaced(settings: MakeSettings) -> None:
    run = settings()
    train(run)
    other = replace(run, lr=3e-3, overrides={**run.overrides, "num_layers": 1})
    with pytest.raises(ConfigError) as caught:
        train(other)
    assert "lr 0.0015 there, 0.003 here" in str(caught.value)
    assert "num_layers 2 there, 1 here" in str(caught.value)
    assert train(replace(other, resume=False)).complete
    assert [entry["step"] for entry in read_metrics(run.output_dir) if "loss" in entry] == list(range(1, 13))


def test_seed_decides_the_run(settings: MakeSettings, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "abc"]
    for folder, seed in zip(folders, (1, 1, 2), strict=True):
        train(settings(output_dir=folder, seed=seed, max_steps=3))
    assert losses(folders[0]) == losses(folders[1])
    assert losses(folders[0]) != losses(folders[2])
