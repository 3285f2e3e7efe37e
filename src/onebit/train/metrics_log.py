"""metrics.jsonl: one JSON object per log line and evaluation, the record that pictures and reports are made from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from onebit.formats.atomic import replacing

__all__ = ["MetricsLog", "read_metrics"]

FILE_NAME = "metrics.jsonl"


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """Return the records of a run; a last line cut off by a kill is left out."""
    path = folder / FILE_NAME
    records: list[dict[str, float]] = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return records


class MetricsLog(TrainerCallback):
    """Appends to metrics.jsonl as the run goes; resuming first drops what lies after the checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        if state.is_world_process_zero:
            kept = [r for r in read_metrics(self.folder) if 0 < r["step"] <= state.global_step]
            with replacing(self.folder / FILE_NAME) as out:
                out.write("".join(json.dumps(record) + "\n" for record in kept).encode())

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kw: Any
    ) -> None:
        if state.is_world_process_zero and logs and ("loss" in logs or "eval_loss" in logs):
            record = {"step": state.global_step, **{k: v for k, v in logs.items() if k != "epoch"}}
            with (self.folder / FILE_NAME).open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(record) + "\n")
