"""The training_manifest.json of a fine-tuning run: the gradual-lambda recipe's keys beside those of every run here."""

from __future__ import annotations

import hashlib
import json
import time
from typing import Any

import torch

from onebit.models.converted import CONVERSION_FIELD
from onebit.train.manifest import parameter_counts, versions
from onebit.train.sft_settings import SftSettings
from onebit.train.sft_trainer import TernarySftTrainer

__all__ = ["MODEL_TYPE", "sft_manifest", "tokenizer_sha256"]

MODEL_TYPE = "bitnet158"


def sft_manifest(
    settings: SftSettings,
    trainer: TernarySftTrainer,
    fingerprint: str,
    metrics: dict[str, float],
    seconds: float,
    *,
    is_complete: bool,
) -> dict[str, Any]:
    """What was trained, from what, on what, how, and how it ended."""
    steps, max_steps = trainer.state.global_step, trainer.state.max_steps
    final_lambda = trainer.warmup.value(max(steps - 1, 0), max_steps)
    model: Any = trainer.model
    return {
        "base_model": settings.model_name_or_path,
        "training_steps": steps,
        "lambda_warmup_frac": trainer.warmup.fraction,
        "final_lambda": final_lambda,
        "compression_ready": is_complete and final_lambda == 1.0,
        "model_type": MODEL_TYPE,
        "status": "complete" if is_complete else "interrupted",
        "max_steps": max_steps,
        "tokens_seen": trainer.tokens_seen,
        "seconds": round(seconds, 1),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "final_metrics": metrics,
        "conversion": getattr(model.config, CONVERSION_FIELD, None),
        "parameters": parameter_counts(model),
        "data": {
            "source": settings.dataset_name,
            "fingerprint": fingerprint,
            "train": {"rows": _length(trainer.train_dataset)},
            "validation": {"rows": _length(trainer.eval_dataset)},
        },
        "tokenizer_sha256": tokenizer_sha256(trainer.processing_class),
        "seeds": {"model": settings.seed, "data_order": settings.seed},
        "device": str(trainer.args.device),
        "processes": trainer.args.world_size,
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "settings": settings.as_dict(),
        "config": json.loads(model.config.to_json_string(use_diff=False)),
    }


def _length(rows: Any) -> int:
    return 0 if rows is None else len(rows)


def tokenizer_sha256(tokenizer: Any) -> str | None:
    """The hash of a tokenizer's whole description; None for one that is not of the `tokenizers` library."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return None if backend is None else hashlib.sha256(backend.to_str().encode()).hexdigest()
