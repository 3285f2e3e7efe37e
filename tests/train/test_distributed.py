"""Two processes under torchrun (gloo, CPU) train what one process trains with twice the batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from onebit.train import TrainSettings, train
from onebit.train.keep_best import best_record
from onebit.train.metrics_log import read_metrics

MakeSettings = Callable[..., TrainSettings]


def torchrun(run: TrainSettings, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
    flags = ["--data", run.data, "--tokenizer", str(run.tokenizer), "--output-dir", str(run.output_dir)]
    flags += ["--cache-dir", str(run.cache_dir), "--device", "cpu", "--threads", "1"]
    for name in ("batch_size", "max_steps", "lr_warmup_steps", "save_every", "log_every"):
        flags += [f"--{name.replace('_', '-')}", str(getattr(run, name))]
    for name, value in run.overrides.items():
        flags += ["--set", f"{name}={json.dumps(value)}"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*command, "-m", "onebit.cli.main", "train", *flags, *more],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def curve(folder: Path, key: str) -> list[float]:
    return [entry[key] for entry in read_metrics(folder) if key in entry]


def test_two_processes_equal_one_with_twice_the_batch(settings: MakeSettings, tmp_path: Path) -> None:
    one = settings(output_dir=tmp_path / "one", batch_size=4, max_steps=6, save_every=3)
    train(one)
    two = replace(one, output_dir=tmp_path / "two", batch_size=2)
    done = torchrun(two)
    assert done.returncode == 0, done.stderr[-2000:]
    # The first loss comes before any update: only the order of float32 sums differs. Later a sum that differs in the
    # last bit can flip a ternary code, which is a real jump of the loss.
    assert curve(two.output_dir, "loss")[0] == pytest.approx(curve(one.output_dir, "loss")[0], rel=1e-6)
    assert curve(two.output_dir, "loss") == pytest.approx(curve(one.output_dir, "loss"), rel=2e-3)
    assert curve(two.output_dir, "eval_loss") == pytest.approx(curve(one.output_dir, "eval_loss"), rel=2e-3)
    assert curve(two.output_dir, "tokens") == curve(one.output_dir, "tokens")
    checkpoint = two.output_dir / "checkpoint-6"
    assert {"rng_state_0.pth", "rng_state_1.pth", "loss_window_0.json"} <= {p.name for p in checkpoint.iterdir()}
    assert done.stdout.count("the model is in") == 1


@pytest.mark.slow
def test_two_processes_resume_bit_for_bit(settings: MakeSettings, tmp_path: Path) -> None:
    whole = settings(output_dir=tmp_path / "whole", batch_size=2, max_steps=8, save_every=4)
    broken = replace(whole, output_dir=tmp_path / "broken")
    for run in (whole, broken):
        done = torchrun(run)
        assert done.returncode == 0, done.stderr[-2000:]
    # As if killed after the first checkpoint.
    for path in (broken.output_dir / "checkpoint-8").iterdir():
        path.unlink()
    done = torchrun(broken)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "resuming from" in done.stdout
    assert curve(broken.output_dir, "loss") == curve(whole.output_dir, "loss")
    model = [(run.output_dir / "model.safetensors").read_bytes() for run in (whole, broken)]
    assert model[0] == model[1]


@pytest.mark.slow
def test_two_processes_train_codes_as_one_with_twice_the_batch(settings: MakeSettings, tmp_path: Path) -> None:
    one = settings(output_dir=tmp_path / "one", batch_size=4, max_steps=6, save_every=3, pure=True)
    train(one)
    two = replace(one, output_dir=tmp_path / "two", batch_size=2)
    done = torchrun(two, "--pure")
    assert done.returncode == 0, done.stderr[-2000:]
    # The first loss comes before any deposit. A gradient that differs in the last bit may round to another integer.
    assert curve(two.output_dir, "loss")[0] == pytest.approx(curve(one.output_dir, "loss")[0], rel=1e-6)
    assert curve(two.output_dir, "loss") == pytest.approx(curve(one.output_dir, "loss"), rel=2e-3)
    assert done.stdout.count("pure training of 14 matrices") == 1


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--pure",)], ids=["latents", "codes"])
def test_divided_processes_keep_the_best_of_all_parts(
    settings: MakeSettings, tmp_path: Path, more: tuple[str, ...]
) -> None:
    """At a rate that spoils it, an early evaluation is the best; what is kept and handed on is the whole model."""
    run = settings(output_dir=tmp_path / "two", batch_size=2, max_steps=6, save_every=3)
    flags = ["--keep-best", "--eval-every", "1", "--lr", "1", "--min-lr", "1", "--lr-decay", "constant", *more]
    done = torchrun(run, *flags, ACCELERATE_USE_FSDP="true", FSDP_VERSION="2")
    assert done.returncode == 0, done.stderr[-2000:]
    kept = best_record(run.output_dir)
    assert kept is not None
    assert kept["best_eval_loss"] == min(curve(run.output_dir, "eval_loss"))
    assert kept["best_step"] < 6
    again = replace(run, output_dir=tmp_path / "again", tokenizer=None, overrides={}, init_from=run.output_dir)
    train(replace(again, max_steps=1, eval_every=1, lr=1e-12, min_lr=0.0))
    assert curve(again.output_dir, "eval_loss")[0] == pytest.approx(kept["best_eval_loss"], rel=1e-5)  # float32 sums
