"""A checkpoint is whole or not there: a failure while saving, a copied fragment and old ones are never resumed from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from onebit.train import TrainSettings, train
from onebit.train.checkpoints import AtomicCheckpoints, is_complete, last_checkpoint
from onebit.train.metrics_log import read_metrics

MakeSettings = Callable[..., TrainSettings]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


def test_old_ones_are_rotated_and_the_last_is_found(settings: MakeSettings) -> None:
    run = settings(save_every=2, keep_checkpoints=3)
    train(run)
    assert names(run.output_dir) == ["checkpoint-10", "checkpoint-12", "checkpoint-8"]
    assert last_checkpoint(run.output_dir) == run.output_dir / "checkpoint-12"


def test_a_failure_while_saving_leaves_no_checkpoint_by_that_name(
    settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = settings()
    train(settings(output_dir=run.output_dir.with_name("whole")))

    def fail(self: Any, folder: str) -> None:
        if self.state.global_step == 10:
            raise OSError("disk full")
        original(self, folder)

    original = AtomicCheckpoints._save_rng_state
    with monkeypatch.context() as patch:
        patch.setattr(AtomicCheckpoints, "_save_rng_state", fail)
        with pytest.raises(OSError, match="disk full"):
            train(run)
    assert names(run.output_dir) == ["checkpoint-5"]
    assert list((run.output_dir / ".partial-checkpoint").iterdir())  # half-made, under another name
    assert train(run).complete
    assert not (run.output_dir / ".partial-checkpoint").exists()
    whole = [entry["loss"] for entry in read_metrics(run.output_dir.with_name("whole")) if "loss" in entry]
    assert [entry["loss"] for entry in read_metrics(run.output_dir) if "loss" in entry] == whole


@pytest.mark.parametrize("missing", ["optimizer.pt", "model.safetensors", "trainer_state.json", "rng_state.pth"])
def test_a_fragment_is_passed_over(settings: MakeSettings, missing: str) -> None:
    run = settings()
    train(run)
    last = run.output_dir / "checkpoint-12"
    assert is_complete(last)
    (last / missing).unlink()
    assert not is_complete(last)
    assert last_checkpoint(run.output_dir) == run.output_dir / "checkpoint-10"


def test_no_checkpoint_holds_a_pickle_that_weights_only_refuses(settings: MakeSettings) -> None:
    run = settings()
    train(run)
    checkpoint = run.output_dir / "checkpoint-12"
    assert not (checkpoint / "training_args.bin").exists()
    assert not (run.output_dir / "training_args.bin").exists()
    for name in ("optimizer.pt", "scheduler.pt"):
        torch.load(checkpoint / name, weights_only=True)


def test_save_every_0_saves_none(settings: MakeSettings) -> None:
    run = settings(save_every=0)
    train(run)
    assert names(run.output_dir) == []
    assert (run.output_dir / "model.safetensors").is_file()
