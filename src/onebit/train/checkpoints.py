"""Checkpoints that are either whole or not there, on top of transformers' Trainer.

The Trainer writes file by file into checkpoint-N; killed in between, it would resume from half a checkpoint. Here it
writes into a hidden folder, which is flushed to the disk and renamed when everything is in it. Optimizer and RNG state
are read with torch.load(weights_only=True), the rest is safetensors and JSON. Nothing in it but RNG states and the sums
of the log window knows how many processes wrote it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from onebit.errors import FormatError
from onebit.train import sharding

__all__ = [
    "AtomicCheckpoints",
    "last_checkpoint",
    "publish",
    "remove_checkpoints",
    "remove_leftovers",
    "wait_for_all",
]

_NAME = re.compile(r"^checkpoint-(\d+)$")
_STAGING = ".partial-checkpoint"
_REPLACED = ".replaced-checkpoint"
_FINAL = ".partial-model"
_WINDOWS = "loss_window_*.json"
_NEEDED = ("config.json", "optimizer.pt", "scheduler.pt", "trainer_state.json")


def last_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint with the most steps that has all its files, None when there is none."""
    complete = [(step, path) for step, path in _checkpoints(folder) if is_complete(path)]
    return max(complete)[1] if complete else None


def is_complete(checkpoint: Path) -> bool:
    """Tell whether every file that resuming reads is there (a folder copied in part would lack some)."""
    is_adapter = (checkpoint / "adapter_config.json").is_file()  # of the adapters alone; the base is elsewhere
    weights = list(checkpoint.glob("adapter_model*.safetensors" if is_adapter else "model*.safetensors"))
    states = list(checkpoint.glob("rng_state*.pth"))
    needed = [name for name in _NEEDED if not (is_adapter and name == "config.json")]
    return bool(weights) and bool(states) and all((checkpoint / name).is_file() for name in needed)


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed run left half-written."""
    for name in (_STAGING, _REPLACED, _FINAL, ".partial-best"):
        shutil.rmtree(folder / name, ignore_errors=True)


def remove_checkpoints(folder: Path) -> None:
    """Delete every checkpoint-N of a folder."""
    for _, path in _checkpoints(folder):
        shutil.rmtree(path)


class AtomicCheckpoints(Trainer):
    """A Trainer whose checkpoints appear whole, and whose logged losses go on exactly where they stopped.

    The Trainer logs the mean loss since the last log; what it has summed up so far is saved too, so that the first
    line after resuming is the one the undisturbed run prints.
    """

    _staging: Path | None = None

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's, going on inside the log window of the checkpoint."""
        if resume_from_checkpoint:
            self.add_callback(_Resume(self, Path(str(resume_from_checkpoint))))
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def log_window(self) -> dict[str, Any]:
        """What has been summed up since the last log line, as JSON values."""
        return {"sum": self._tr_loss.item(), "since": self._globalstep_last_logged}

    def set_log_window(self, window: dict[str, Any]) -> None:
        """Take up what `log_window` gave."""
        self._tr_loss.fill_(window["sum"])
        self._globalstep_last_logged = int(window["since"])

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging is not None else str(super()._get_output_dir(trial=trial))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        run = Path(str(self.args.output_dir))
        name = f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            remove_leftovers(run)
        wait_for_all()
        self._staging = run / _STAGING
        try:
            super()._save_checkpoint(model, trial)
            path = self._staging / name / f"loss_window_{self.args.process_index}.json"
            path.write_text(json.dumps(self.log_window()), encoding="utf-8")
        finally:
            self._staging = None
        wait_for_all()
        if self.args.should_save:
            publish(run / _STAGING / name, run / name)
            rotate(run, self.args.save_total_limit)
        wait_for_all()

    def create_accelerator_and_postprocess(self) -> None:
        """As the Trainer's; FSDP on a CPU too."""
        super().create_accelerator_and_postprocess()
        sharding.shard_on_cpu(self)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the Trainer's; whole weights under FSDP too."""
        model: Any = self.model
        if self.is_fsdp_enabled:
            self._save(output_dir, sharding.whole_weights(model))
        else:
            super().save_model(output_dir, _internal_call)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state, schedule = sharding.whole_optimizer(self.optimizer), self.lr_scheduler
        if self.args.should_save and schedule is not None:
            torch.save(state, Path(output_dir) / "optimizer.pt")
            torch.save(schedule.state_dict(), Path(output_dir) / "scheduler.pt")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.is_fsdp_enabled or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        schedule = self.lr_scheduler
        assert schedule is not None
        sharding.load_optimizer(self.optimizer, _read_state(Path(checkpoint) / "optimizer.pt"))
        schedule.load_state_dict(_read_state(Path(checkpoint) / "scheduler.pt"))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        loaded: Any = model if model is not None else self.model
        if self.is_fsdp_enabled:
            self._issue_warnings_after_load(sharding.load_weights(loaded, Path(resume_from_checkpoint)))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """A checkpoint that lacks weights is an error; a tied weight is stored once and no loss."""
        tied = set(getattr(self.model, "_tied_weights_keys", None) or ())
        wrong = sorted({*load_result.missing_keys, *load_result.unexpected_keys} - tied)
        if wrong:
            raise FormatError(f"the checkpoint's weights are not this model's: {', '.join(wrong[:5])}")

    def save_final(self, folder: Path, source: Path | None = None) -> None:
        """Put the model into `folder`, each file whole: the present one, or a copy of the one in `source`."""
        staging = folder / _FINAL
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
        if source is not None:
            if self.args.should_save:
                shutil.copytree(source, staging)
        else:
            self.save_model(str(staging))
        if self.args.should_save:
            for file in sorted(staging.iterdir()):
                _flush(file)
                file.replace(folder / file.name)
            staging.rmdir()
        wait_for_all()

    def restore_loss_window(self, checkpoint: Path) -> None:
        """Take up the sums that a checkpoint holds; called once the Trainer has set its own to zero."""
        paths = [checkpoint / f"loss_window_{number}.json" for number in range(len(list(checkpoint.glob(_WINDOWS))))]
        windows = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
        if len(windows) == self.args.world_size:
            self.set_log_window(windows[self.args.process_index])
        elif windows:
            # Other processes than these wrote it. What is logged is the mean over the processes.
            self.set_log_window({**windows[0], "sum": sum(window["sum"] for window in windows) / len(windows)})


class _Resume(TrainerCallback):
    """Puts the saved sums in place once the Trainer has set up its own."""

    def __init__(self, trainer: AtomicCheckpoints, checkpoint: Path) -> None:
        self.trainer = trainer
        self.checkpoint = checkpoint

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        self.trainer.restore_loss_window(self.checkpoint)


def _read_state(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        state: dict[str, Any] = torch.load(file, "cpu", weights_only=True)
    return state


def publish(staged: Path, target: Path) -> None:
    """Flush a staged folder and rename it to its name; a folder that has the name already is replaced."""
    for file in staged.iterdir():
        _flush(file)
    replaced = target.with_name(_REPLACED)
    if target.exists():
        target.rename(replaced)
    staged.rename(target)
    _sync_folder(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)
    staged.parent.rmdir()


def rotate(folder: Path, keep: int | None) -> None:
    """Delete the oldest checkpoints, by step, until `keep` are left."""
    if keep is not None:
        for _, path in sorted(_checkpoints(folder))[:-keep]:
            # Renamed first: a checkpoint that is half deleted must not have its name any more.
            doomed = path.with_name(_REPLACED)
            path.rename(doomed)
            shutil.rmtree(doomed)


def _checkpoints(folder: Path) -> list[tuple[int, Path]]:
    if not folder.is_dir():
        return []
    matches = [(_NAME.match(path.name), path) for path in folder.iterdir() if path.is_dir()]
    return [(int(match.group(1)), path) for match, path in matches if match]


def _flush(file: Path) -> None:
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def wait_for_all() -> None:
    if dist.is_available() and dist.is_initialized():
        if torch.cuda.is_available() and dist.get_backend() == "nccl":
            dist.barrier(device_ids=[torch.cuda.current_device()])
        else:
            dist.barrier()
