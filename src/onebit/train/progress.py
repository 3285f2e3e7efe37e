"""Progress of a run on the terminal: a bar with step, loss, bits per byte, tokens/s and time left, or plain lines."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

__all__ = ["ProgressLines", "describe", "duration"]

_REFRESH_PER_SECOND = 2  # drawing shares two cores with the training


def duration(seconds: float) -> str:
    """Return seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def describe(logs: dict[str, float]) -> str:
    """Return a log line in words, with what of it is there."""
    names = {
        "loss": "loss {:.4f}",
        "bits_per_byte": "{:.3f} bits/byte",
        "eval_loss": "validation loss {:.4f}",
        "eval_bits_per_byte": "{:.3f} bits/byte",
        "eval_perplexity": "perplexity {:.4g}",
        "learning_rate": "lr {:.2e}",
        "zeros": "zeros {:.1%}",
        "flip_rate": "flips {:.2e}",
        "tokens_per_second": "{:,.0f} tokens/s",
    }
    return "  ".join(text.format(logs[name]) for name, text in names.items() if name in logs)


class ProgressLines(TrainerCallback):
    """Shows the run on the first process; `quiet` shows nothing."""

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        self.quiet = quiet
        self.console = console if console is not None else Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._task: Any = None
        self._began = (0, 0.0)

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        if not self.quiet:
            self.console.print(line, markup=False)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        self.quiet = self.quiet or not state.is_world_process_zero
        self._began = (state.global_step, time.monotonic())
        if self.console.is_terminal and not self.quiet:
            self._bar = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[line]}"),
                TimeRemainingColumn(),
                console=self.console,
                refresh_per_second=_REFRESH_PER_SECOND,
            )
            self._bar.start()
            self._task = self._bar.add_task("", total=state.max_steps, completed=state.global_step, line="")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=state.global_step)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kw: Any
    ) -> None:
        if not logs or not ("loss" in logs or "eval_loss" in logs):
            return
        line = describe(logs)
        if self._bar is not None and "loss" in logs:
            self._bar.update(self._task, line=line)
        else:
            left = f"  {self._time_left(state)} left" if "loss" in logs else ""
            self.say(f"step {state.global_step}/{state.max_steps}  {line}{left}")

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar away, so that the terminal is clean whatever happened."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _time_left(self, state: TrainerState) -> str:
        step, began = self._began
        per_step = (time.monotonic() - began) / max(state.global_step - step, 1)
        return duration(per_step * (state.max_steps - state.global_step))
