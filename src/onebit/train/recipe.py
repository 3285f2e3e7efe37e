"""The training recipe: settings in, a trained model with tokenizer and manifest in the output folder out.

The number of steps is settled before the schedule starts, and whether the folder holds this very run before anything in
it is touched.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.utils import logging as library_logging

from onebit.data import PackedBlocks, PreparedData
from onebit.models import OneBitConfig
from onebit.models.devices import check_device
from onebit.optim import LearningRate, Muon, decaying_parameter_names, muon_groups
from onebit.train.arguments import training_arguments
from onebit.train.budget import seconds_per_step, steps_for
from onebit.train.checkpoints import last_checkpoint, remove_checkpoints, remove_leftovers
from onebit.train.identity import claim, identity, record
from onebit.train.interrupt import StopOnSignal
from onebit.train.keep_best import BEST, KeepBest, best_record
from onebit.train.manifest import MANIFEST_NAME, manifest, write_json
from onebit.train.metrics_log import MetricsLog, read_metrics
from onebit.train.picture import draw_loss_curve
from onebit.train.preparation import make_model, open_everything, read_config
from onebit.train.progress import ProgressLines, duration
from onebit.train.pure_run import say_rates
from onebit.train.pure_trainer import PureTrainer, check_pure_config, trial_optimizer, without_latents
from onebit.train.schedule_callback import ScheduleCallback, dials
from onebit.train.settings import TrainSettings
from onebit.train.trainer import OneBitTrainer

__all__ = ["TrainResult", "train"]


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """How a run ended. `signal` is the number of the signal that stopped it, None when it finished."""

    output_dir: Path
    steps: int
    max_steps: int
    metrics: dict[str, float]
    seconds: float
    signal: int | None

    @property
    def complete(self) -> bool:
        """True when all steps were done and the model is in `output_dir`."""
        return self.signal is None


def train(settings: TrainSettings) -> TrainResult:
    """Train a model as told; resumes by itself when the output folder holds a checkpoint of the same run.

    The output folder then holds model.safetensors, config.json, tokenizer.json, training_manifest.json, metrics.jsonl,
    loss.png and loss.svg; a run that a signal stopped holds its checkpoint, metrics and manifest.

    Raises:
        ConfigError, DataError, MissingExtraError: with one line that says what to change.
    """
    began = time.monotonic()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    if settings.device != "auto":
        check_device(settings.device)
    with StopOnSignal() as stop, library_bars_off():
        progress = ProgressLines(quiet=settings.quiet)
        arguments = training_arguments(settings)
        progress.quiet = progress.quiet or arguments.process_index != 0
        if settings.pure:
            check_pure_config(read_config(settings))
        config, data = open_everything(settings, arguments, progress.say)
        if settings.pure:
            config = without_latents(config, progress.say)
        set_seed(settings.seed)
        model = make_model(settings, config).to(arguments.device)
        settings, checkpoint = decide_steps(settings, config, data, arguments, model, progress)
        arguments.max_steps = settings.max_steps
        trainer = make_trainer(settings, config, data, model, arguments, [stop, progress])
        if isinstance(trainer, PureTrainer):
            say_rates(trainer, progress)
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        finally:
            progress.close()
        return finish(settings, config, data, trainer, stop, time.monotonic() - began, progress)


@contextmanager
def library_bars_off() -> Iterator[None]:
    """Keep transformers' own progress bars (a line for each file written) out of ours, for the time of a run."""
    shown = library_logging.is_progress_bar_enabled()
    library_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            library_logging.enable_progress_bar()


def decide_steps(
    settings: TrainSettings,
    config: OneBitConfig,
    data: PreparedData,
    arguments: TrainingArguments,
    model: Any,
    progress: ProgressLines,
) -> tuple[TrainSettings, Path | None]:
    """Settle the number of steps and where to start: at a checkpoint of this very run, or at the beginning."""
    timed = settings.max_minutes is not None
    wanted = identity(
        settings,
        config,
        data,
        max_steps=None if timed else settings.max_steps,
        processes=arguments.world_size,
    )
    folder = settings.output_dir
    checkpoint = last_checkpoint(folder) if settings.resume else None
    if checkpoint is not None:
        steps = claim(folder, wanted)
        progress.say(f"resuming from {checkpoint}")
        return replace(settings, max_steps=steps or settings.max_steps), checkpoint
    steps = steps_within(settings, model, config, arguments, progress) if timed else settings.max_steps
    with arguments.main_process_first(local=False):
        if arguments.should_save:
            remove_leftovers(folder)
            remove_checkpoints(folder)
            for name in (BEST, MANIFEST_NAME, "model.safetensors"):
                path = folder / name
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            record(folder, wanted, steps)
    return replace(settings, max_steps=steps), None


def steps_within(
    settings: TrainSettings, model: Any, config: OneBitConfig, arguments: TrainingArguments, progress: ProgressLines
) -> int:
    """Measure a step and return how many fit into --max-minutes; all processes get the first one's answer."""
    assert settings.max_minutes is not None
    per_step = seconds_per_step(
        model,
        batch_size=settings.batch_size,
        block_size=config.max_seq_len,
        vocab_size=config.vocab_size,
        accumulation_steps=settings.accumulation_steps,
        bf16=settings.bf16,
        make_optimizer=lambda trial: _trial_optimizer(trial, settings),
    )
    steps = torch.tensor([steps_for(settings.max_minutes * 60.0, per_step)], device=arguments.device)
    if arguments.world_size > 1:
        torch.distributed.broadcast(steps, src=0)
    count = int(steps.item())
    progress.say(f"{per_step:.3f} s a step: {count} steps fit into {settings.max_minutes:g} minutes")
    return count


def _trial_optimizer(model: Any, settings: TrainSettings) -> torch.optim.Optimizer:
    """One of the run's kind, for a copy of its model."""
    if settings.pure:
        return trial_optimizer(model, settings)
    if settings.optimizer == "muon":
        return Muon(muon_groups(model, decaying_parameter_names(model), 0.1), 1e-4)
    parameters = list(model.parameters())
    return torch.optim.AdamW(parameters, lr=1e-4, fused=parameters[0].device.type != "mps")


def make_trainer(
    settings: TrainSettings,
    config: OneBitConfig,
    data: PreparedData,
    model: Any,
    arguments: TrainingArguments,
    callbacks: list[Any],
) -> OneBitTrainer:
    """The Trainer with our callbacks and without its own progress lines."""
    rate = LearningRate(
        peak=settings.lr,
        minimum=settings.min_lr,
        warmup_steps=min(settings.lr_warmup_steps, settings.max_steps),
        total_steps=settings.max_steps,
        decay=settings.lr_decay,
    )
    ratio = data.train.counts.tokens_per_byte if isinstance(data.train, PackedBlocks) else None
    callbacks = [ScheduleCallback(config, settings.lr_decay), MetricsLog(settings.output_dir), *callbacks]
    make: Any = partial(PureTrainer, options=settings) if settings.pure else OneBitTrainer
    trainer: OneBitTrainer = make(
        model,
        arguments,
        train_blocks=data.train,
        validation=data.validation,
        tokenizer=data.tokenizer,
        learning_rate=rate,
        muon=settings.optimizer == "muon",
        label_smoothing=settings.label_smoothing,
        tokens_per_byte=ratio,
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if settings.keep_best:
        trainer.add_callback(KeepBest(trainer, settings.output_dir))
    return trainer


def finish(
    settings: TrainSettings,
    config: OneBitConfig,
    data: PreparedData,
    trainer: OneBitTrainer,
    stop: StopOnSignal,
    seconds: float,
    progress: ProgressLines,
) -> TrainResult:
    """Evaluate, write model, tokenizer, manifest and picture, and say where they are."""
    steps, arguments = trainer.state.global_step, trainer.args
    model: Any = trainer.model
    signal = stop.caught if steps < settings.max_steps else None
    folder = settings.output_dir
    metrics = final_metrics(trainer, folder, evaluate=signal is None and data.validation is not None)
    if signal is None:
        best = best_record(folder) if settings.keep_best else None
        trainer.save_final(folder, source=folder / BEST if best else None)
        metrics.update(best or {})
    if arguments.should_save:
        about = manifest(
            settings=settings,
            config=config,
            model=model,
            data=data,
            status="complete" if signal is None else "interrupted",
            steps=steps,
            max_steps=settings.max_steps,
            tokens_per_step=trainer.tokens_per_step,
            seconds=seconds,
            metrics=metrics,
            device=arguments.device,
            processes=arguments.world_size,
        )
        write_json(folder / MANIFEST_NAME, about)
        draw_loss_curve(folder)
    if signal is None:
        progress.say(f"trained {steps} steps in {duration(seconds)}; the model is in {folder}")
        warn_if_soft(settings, config, progress)
    else:
        progress.say(f"stopped by a signal after step {steps}; the same command goes on from there")
    return TrainResult(
        output_dir=folder, steps=steps, max_steps=settings.max_steps, metrics=metrics, seconds=seconds, signal=signal
    )


def final_metrics(trainer: OneBitTrainer, folder: Path, *, evaluate: bool) -> dict[str, float]:
    """The last training figures, and an evaluation of the model as it is when there is none of this step yet."""
    records = read_metrics(folder)
    last: dict[str, float] = {}
    for entry in records:
        last.update(entry)
    step = trainer.state.global_step
    done = any("eval_loss" in entry and entry["step"] == step for entry in records)
    if evaluate and not done:
        last.update(trainer.evaluate())
    last["step"] = step
    return last


def warn_if_soft(settings: TrainSettings, config: OneBitConfig, progress: ProgressLines) -> None:
    """Say so when the run ended while a soft regime was still on: it was evaluated harder than it was trained."""
    last = dials(settings.max_steps - 1, settings.max_steps, config)
    if last["lambda_"] < 1.0 or last["soft_alpha"] > 0.0 or last["arenas"] > 0.0:
        state = ", ".join(f"{name} {value:.3g}" for name, value in last.items())
        progress.say(
            f"warning: the run ended while training was still soft ({state}); the saved model is fully quantised. "
            "Shorten arenas_anneal_steps, anneal_fraction or lambda_warmup_fraction"
        )
