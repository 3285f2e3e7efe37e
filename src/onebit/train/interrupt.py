"""SIGTERM and Ctrl-C end a run with a checkpoint, not with half a step.

The signal only sets a flag; the run saves and leaves at the end of the step it is in. A second Ctrl-C ends at once. The
command then exits with 143 (SIGTERM) or 130 (Ctrl-C), as shells count signals: not 0, for the model is not finished.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

__all__ = ["StopOnSignal"]

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopOnSignal(TrainerCallback):
    """A context manager that catches the signals, and the callback that acts on them; `caught` is what came."""

    def __init__(self) -> None:
        self.caught: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopOnSignal:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._catch) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        if self._any_process_caught(args):
            control.should_save = args.save_strategy != "no"
            control.should_training_stop = True

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if self.caught is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.caught = number

    def _any_process_caught(self, args: TrainingArguments) -> bool:
        """All processes must stop at the same step, or the others would wait for ever in the next all-reduce."""
        if not (dist.is_available() and dist.is_initialized()):
            return self.caught is not None
        number = torch.tensor([self.caught or 0], device=args.device)
        dist.all_reduce(number, op=dist.ReduceOp.MAX)
        self.caught = int(number.item()) or None
        return self.caught is not None
