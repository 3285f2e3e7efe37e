"""A fine-tuning run on another number of processes than it began with: the same rows in the same steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from onebit.errors import ConfigError
from onebit.train.checkpoints import last_checkpoint
from onebit.train.identity import RUN_NAME

__all__ = ["keep_rows_per_step", "rows_per_step"]


def rows_per_step(arguments: Any) -> int:
    """Rows that one optimizer step reads, over all processes."""
    rows: int = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    return rows


def keep_rows_per_step(arguments: Any, folder: Path) -> str | None:
    """Change batch and accumulation so that a run that began with another number of processes goes on as it was.

    The order of the data is decided by the seed and the rows of a step alone. Gives a line that says what was changed,
    None when nothing was. Raises ConfigError when the processes cannot share a step's rows evenly.
    """
    if last_checkpoint(folder) is None:
        return None
    try:
        there = json.loads((folder / RUN_NAME).read_text(encoding="utf-8"))
        rows, began_with = int(there["rows_per_step"]), int(there["processes"])
    except (OSError, ValueError, KeyError):
        return None
    processes = arguments.world_size
    if processes == began_with or rows == rows_per_step(arguments):
        return None
    each, rest = divmod(rows, processes)
    if rest:
        raise ConfigError(
            f"--output-dir '{folder}' holds a run of {rows} rows a step, which {processes} processes cannot share "
            f"evenly; start a number of processes that divides {rows}"
        )
    most = min(each, arguments.per_device_train_batch_size)
    batch = max(size for size in range(1, most + 1) if each % size == 0)
    arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps = batch, each // batch
    return (
        f"{processes} processes instead of {began_with}: a step still reads {rows} rows, "
        f"{batch} at a time and {each // batch} times on each"
    )
