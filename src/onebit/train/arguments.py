"""Our settings in the words of transformers' TrainingArguments."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import torch
from transformers import TrainingArguments

from onebit.errors import ConfigError
from onebit.train.settings import TrainSettings

__all__ = ["prepare_tracker", "training_arguments"]


def training_arguments(settings: TrainSettings) -> TrainingArguments:
    """Our settings in the Trainer's words; also joins the process group when torchrun started this process."""
    on_cpu = settings.device == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available())
    under_torchrun = "LOCAL_RANK" in os.environ
    prepare_tracker(settings.report_to, settings.output_dir)
    return TrainingArguments(
        output_dir=str(settings.output_dir),
        use_cpu=on_cpu,
        ddp_backend="gloo" if on_cpu and under_torchrun else None,
        ddp_find_unused_parameters=False,
        max_steps=settings.max_steps,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulation_steps,
        learning_rate=settings.lr,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.adam_beta1,
        adam_beta2=settings.adam_beta2,
        max_grad_norm=settings.grad_clip_max_norm,
        seed=settings.seed,
        bf16=settings.bf16,
        torch_compile=settings.compile,
        logging_steps=settings.log_every,
        logging_nan_inf_filter=False,  # it waits for the device at each step; the log line checks instead
        save_strategy="steps" if settings.save_every else "no",
        save_steps=settings.save_every or settings.max_steps,
        save_total_limit=settings.keep_checkpoints,
        eval_strategy="steps" if settings.eval_every else "no",
        eval_steps=settings.eval_every or None,
        report_to=settings.report_to,
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=not on_cpu,
        remove_unused_columns=False,
        accelerator_config={"dispatch_batches": False, "use_seedable_sampler": False},
    )


def prepare_tracker(report_to: str, folder: Path) -> None:
    """Trackers run only when asked, and Weights & Biases offline unless the user says otherwise."""
    if report_to == "wandb":
        os.environ.setdefault("WANDB_MODE", "offline")
        os.environ.setdefault("WANDB_DIR", str(folder))
        _need("wandb")
    elif report_to == "tensorboard":
        os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(folder / "tensorboard"))
        _need("tensorboard")


def _need(tracker: str) -> None:
    if importlib.util.find_spec(tracker) is None:
        raise ConfigError(f"--report-to {tracker}: it is not installed; pip install {tracker}, or leave the flag out")
