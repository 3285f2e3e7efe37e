"""The fine-tuning recipe: a model and rows in, a folder of latents that computes in ternary out.

The model is converted in place, warmed up from float to ternary, trained by TRL's SFTTrainer, and saved as a
transformers folder whose config.json says how its layers are read (`onebit.models.load_converted`). What it starts
from is opened in `sft_inputs`. As with `onebit train`, all that can be refused is refused before anything is written,
and a killed run goes on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from onebit.data.instructions import Rows, bars_off
from onebit.errors import ConfigError, OnebitError
from onebit.models.devices import check_device
from onebit.nn import Schedule
from onebit.train.arguments import prepare_tracker
from onebit.train.checkpoints import last_checkpoint, remove_checkpoints, remove_leftovers
from onebit.train.identity import claim, record
from onebit.train.interrupt import StopOnSignal
from onebit.train.manifest import MANIFEST_NAME, write_json
from onebit.train.metrics_log import MetricsLog, read_metrics
from onebit.train.picture import draw_loss_curve
from onebit.train.preparation import output_folder
from onebit.train.processes import keep_rows_per_step, rows_per_step
from onebit.train.progress import ProgressLines, duration
from onebit.train.recipe import TrainResult, library_bars_off
from onebit.train.sft_inputs import adapted, open_tokenizer, open_training_rows, prepare_model, settle_blocks
from onebit.train.sft_manifest import sft_manifest
from onebit.train.sft_settings import SftSettings
from onebit.train.sft_trainer import LambdaWarmup, TernarySftTrainer
from onebit.train.sharding import share_weights
from onebit.train.trained_rows import rows_fingerprint
from onebit.train.trl_options import sft_config

__all__ = ["MakeTrainer", "fine_tune", "sft"]

# (settings, the Trainer's arguments by name) -> the Trainer
MakeTrainer = Callable[..., TernarySftTrainer]

_WANDB_PROJECT = "AIVillage-BitNet158"


def sft(settings: SftSettings) -> TrainResult:
    """Fine-tune a model as told; resumes by itself when the output folder holds a checkpoint of the same run.

    The folder then holds the latents, config.json, the tokenizer, training_manifest.json, metrics.jsonl and the loss
    curve; a run that a signal stopped holds its checkpoint, metrics and manifest.

    Raises:
        ConfigError, DataError, MissingExtraError: with one line that says what to change.
    """
    if settings.pure:
        from onebit.train.pure_run import say_rates
        from onebit.train.pure_sft import PureSftTrainer

        return fine_tune(settings, partial(PureSftTrainer, settings), say_rates)
    return fine_tune(settings, TernarySftTrainer)


def fine_tune(
    settings: SftSettings,
    make_trainer: MakeTrainer,
    prepare: Callable[[Any, ProgressLines], None] | None = None,
) -> TrainResult:
    """The run of `sft` and of every recipe that trains on its rows in another way.

    prepare: called with the Trainer once the folder is known to be this run's, before anything in it is touched.
    """
    began = time.monotonic()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    if settings.device != "auto":
        check_device(settings.device)
    with StopOnSignal() as stop, library_bars_off(), bars_off(), output_folder(settings.output_dir):
        progress = ProgressLines(quiet=settings.quiet)
        on_cpu = settings.device == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available())
        arguments = sft_config(settings, on_cpu=on_cpu, distributed="LOCAL_RANK" in os.environ)
        progress.quiet = progress.quiet or arguments.process_index != 0
        if settings.resume and (changed := keep_rows_per_step(arguments, settings.output_dir)):
            progress.say(changed)
        tokenizer = open_tokenizer(settings)
        with arguments.main_process_first(local=False):
            rows = open_training_rows(settings, tokenizer)
        _prepare_wandb(settings, rows.source)
        if arguments.eval_strategy != "no" and rows.validation is None:
            raise ConfigError("--eval-strategy needs validation rows: give --val-data or a --val-fraction above 0")
        model = prepare_model(settings, rows, tokenizer, arguments.device)
        share_weights(model, arguments.device)
        if settings.use_peft:
            model = adapted(model, settings)
        settle_blocks(arguments, model, rows, progress)
        trainer = _make(make_trainer, settings, arguments, model, rows, tokenizer, [stop, progress])
        fingerprint = rows_fingerprint(trainer.train_dataset)
        checkpoint = _claimed(settings, trainer, fingerprint)
        if prepare is not None:
            with arguments.main_process_first(local=False):
                prepare(trainer, progress)
        if checkpoint is not None:
            progress.say(f"resuming from {checkpoint}")
        else:
            _start_over(settings, trainer, fingerprint)
        try:
            if checkpoint is None or not trainer.take_up_finished(checkpoint):
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        finally:
            progress.close()
        return _finish(settings, trainer, stop, fingerprint, time.monotonic() - began, progress)


def _merged(trainer: TernarySftTrainer, folder: Path, progress: ProgressLines) -> dict[str, Any]:
    """Keep the adapters in their own folder, merge them, and say what it did to the loss."""
    from onebit.train.lora import losses_around_merge

    kept = folder / "adapter"
    kept.mkdir(exist_ok=True)
    trainer.save_final(kept)
    told = losses_around_merge(trainer)
    losses = [f"{name.replace('_', ' ')} {value:.4f}" for name, value in told.items() if value is not None]
    progress.say(f"merged the adapters: {', '.join(losses)}")
    return told


def _prepare_wandb(settings: SftSettings, source: str) -> None:
    """Weights & Biases, when asked for: offline, under the gradual-lambda recipe's project and tags."""
    if settings.report_to == "wandb":
        model = Path(settings.model_name_or_path).name
        os.environ.setdefault("WANDB_PROJECT", _WANDB_PROJECT)
        os.environ.setdefault("WANDB_TAGS", f"stage:bitnet158,source:{source},model:{model}")
    prepare_tracker(settings.report_to, settings.output_dir)


def _make(
    make_trainer: MakeTrainer,
    settings: SftSettings,
    arguments: Any,
    model: Any,
    rows: Rows,
    tokenizer: Any,
    callbacks: list[Any],
) -> TernarySftTrainer:
    """The Trainer, without its own progress lines; what TRL refuses is the user's to mend."""
    has_dial = any(module.uses_lambda for module in model.modules() if isinstance(module, Schedule))
    try:
        trainer = make_trainer(
            model=model,
            args=arguments,
            train_dataset=rows.train,
            eval_dataset=rows.validation,
            processing_class=tokenizer,
            warmup=LambdaWarmup(settings.lambda_warmup_frac if has_dial else 0.0, settings.lambda_shape),
            callbacks=[MetricsLog(settings.output_dir), *callbacks],
        )
    except OnebitError:
        raise
    except (ValueError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "assistant_only_loss" not in str(error):
            raise
        raise ConfigError(f"TRL refuses this: {' '.join(str(error).split())}") from error
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer


def _identity(settings: SftSettings, trainer: TernarySftTrainer, fingerprint: str) -> dict[str, Any]:
    return {"data": fingerprint, **settings.deciding(), "rows_per_step": rows_per_step(trainer.args)}


def _claimed(settings: SftSettings, trainer: TernarySftTrainer, fingerprint: str) -> Path | None:
    """The checkpoint to go on from, None to begin; a folder that holds another run is refused."""
    checkpoint = last_checkpoint(settings.output_dir) if settings.resume else None
    if checkpoint is not None:
        wanted = _identity(settings, trainer, fingerprint)
        claim(settings.output_dir, {**wanted, "max_steps": settings.max_steps or 0})
    return checkpoint


def _start_over(settings: SftSettings, trainer: TernarySftTrainer, fingerprint: str) -> None:
    """Clear the folder of what another run left, and write down whose it is now."""
    folder = settings.output_dir
    with trainer.args.main_process_first(local=False):
        if trainer.args.should_save:
            remove_leftovers(folder)
            remove_checkpoints(folder)
            for path in (folder / MANIFEST_NAME, *folder.glob("model*.safetensors*")):
                path.unlink(missing_ok=True)
            about = {**_identity(settings, trainer, fingerprint), "processes": trainer.args.world_size}
            record(folder, about, settings.max_steps or 0)


def _finish(
    settings: SftSettings,
    trainer: TernarySftTrainer,
    stop: StopOnSignal,
    fingerprint: str,
    seconds: float,
    progress: ProgressLines,
) -> TrainResult:
    """Evaluate, write model, tokenizer, manifest and picture, and say where they are."""
    steps, max_steps, folder = trainer.state.global_step, trainer.state.max_steps, settings.output_dir
    signal = stop.caught if steps < max_steps else None
    trainer.accelerator.wait_for_everyone()  # the first process wrote the metrics, and all decide by them
    metrics: dict[str, float] = {}
    for entry in read_metrics(folder):
        metrics.update(entry)
    if signal is None:
        done = any("eval_loss" in entry and entry["step"] == steps for entry in read_metrics(folder))
        if trainer.eval_dataset is not None and not done:
            found: dict[str, Any] = trainer.evaluate()
            metrics.update({name: value for name, value in found.items() if isinstance(value, (int, float))})
        merged = _merged(trainer, folder, progress) if settings.use_peft else {}
        metrics.update({name: value for name, value in merged.items() if value is not None})
        trainer.save_final(folder)
    metrics["step"] = steps
    if trainer.args.should_save:
        about = sft_manifest(settings, trainer, fingerprint, metrics, seconds, is_complete=signal is None)
        write_json(folder / MANIFEST_NAME, about)
        draw_loss_curve(folder)
    if signal is None:
        progress.say(f"trained {steps} steps in {duration(seconds)}; the model is in {folder}")
        last = trainer.warmup.value(max(steps - 1, 0), max_steps)
        if last < 1.0:
            progress.say(
                f"warning: the run ended at lambda {last:.3g}, and the saved model is fully quantised; "
                "shorten --lambda-warmup-frac"
            )
    else:
        progress.say(f"stopped by a signal after step {steps}; the same command goes on from there")
    return TrainResult(
        output_dir=folder, steps=steps, max_steps=max_steps, metrics=metrics, seconds=seconds, signal=signal
    )
