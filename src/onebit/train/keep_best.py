"""Keeps the model with the lowest validation loss in the folder `best`, for `--keep-best`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from onebit.train.checkpoints import publish, wait_for_all

__all__ = ["BEST", "KeepBest", "best_record"]

BEST = "best"
_RECORD = "best.json"


def best_record(folder: Path) -> dict[str, float] | None:
    """Return {"best_step", "best_eval_loss"} of a run's folder, None when no best model has been kept."""
    path = folder / BEST / _RECORD
    if not path.is_file():
        return None
    record: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
    return record


class KeepBest(TrainerCallback):
    """Saves the model after each evaluation that is better than all before; what is kept lies on the disk alone.

    The first process decides, and all save: where the model is divided, each has a part of it.
    """

    def __init__(self, trainer: Trainer, folder: Path) -> None:
        self.trainer = trainer
        self.folder = folder

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, **kw: Any
    ) -> None:
        loss = metrics["eval_loss"]
        if not _said_by_the_first(self._is_better(loss), args):
            return
        staged = self.folder / ".partial-best" / BEST
        self.trainer.save_model(str(staged))
        if args.should_save:
            record = {"best_step": state.global_step, "best_eval_loss": loss}
            (staged / _RECORD).write_text(json.dumps(record) + "\n", encoding="utf-8")
            publish(staged, self.folder / BEST)
        wait_for_all()  # the end of a run asks what was kept, and all must see the same

    def _is_better(self, loss: float) -> bool:
        kept = best_record(self.folder)
        return bool(loss < (kept["best_eval_loss"] if kept else math.inf))


def _said_by_the_first(answer: bool, args: TrainingArguments) -> bool:
    if args.world_size == 1:
        return answer
    said = torch.tensor([answer], device=args.device)
    torch.distributed.broadcast(said, src=0)
    return bool(said.item())
