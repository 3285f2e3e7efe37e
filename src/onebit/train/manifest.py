"""training_manifest.json: what was trained, on what, how, with which versions, and how it ended.

It carries the keys of the gradual-lambda training manifest too (base_model, training_steps, lambda_warmup_frac,
final_lambda, compression_ready, model_type), so tools written for that one read it.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from onebit import __version__
from onebit.data import PackedBlocks, PreparedData
from onebit.formats.atomic import replacing
from onebit.models import OneBitConfig
from onebit.nn import bit_layers, pure_weights
from onebit.train.schedule_callback import dials
from onebit.train.settings import TrainSettings

__all__ = ["MANIFEST_NAME", "manifest", "parameter_counts", "versions", "write_json"]

MANIFEST_NAME = "training_manifest.json"
_PACKAGES = ("torch", "transformers", "tokenizers", "accelerate", "datasets", "numpy", "safetensors")


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write JSON that is there whole or not at all."""
    with replacing(path) as out:
        out.write((json.dumps(values, indent=2) + "\n").encode())


def versions() -> dict[str, str]:
    """Return the versions that decide numbers, of what is installed."""
    found = {"onebit": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def manifest(
    *,
    settings: TrainSettings,
    config: OneBitConfig,
    model: nn.Module,
    data: PreparedData,
    status: str,
    steps: int,
    max_steps: int,
    tokens_per_step: int,
    seconds: float,
    metrics: dict[str, float],
    device: torch.device,
    processes: int,
) -> dict[str, Any]:
    """Return the manifest of a run that ended at `steps`; `status` is "complete" or "interrupted"."""
    last = dials(max(steps - 1, 0), max_steps, config)
    hard = last["lambda_"] == 1.0 and last["soft_alpha"] == 0.0 and last["arenas"] == 0.0
    return {
        "model_type": config.model_type,
        "base_model": str(settings.init_from) if settings.init_from is not None else None,
        "training_steps": steps,
        "lambda_warmup_frac": config.lambda_warmup_fraction,
        "final_lambda": last["lambda_"],
        "compression_ready": status == "complete" and hard,
        "status": status,
        "max_steps": max_steps,
        "tokens_seen": steps * tokens_per_step,
        "seconds": round(seconds, 1),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "final_metrics": metrics,
        "final_soft_alpha": last["soft_alpha"],
        "final_arenas": last["arenas"],
        "parameters": parameter_counts(model),
        "data": {
            "source": settings.data,
            "fingerprint": data.fingerprint,
            "train": _counts(data.train),
            "validation": _counts(data.validation),
        },
        "tokenizer_sha256": data.tokenizer.sha256,
        "seeds": {"model": settings.seed, "data_order": settings.seed},
        "device": str(device),
        "processes": processes,
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "settings": settings.as_dict(),
        "config": json.loads(config.to_json_string(use_diff=False)),
    }


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """How many weights there are, latents or codes, and how many of them compute as codes."""
    pure = sum(weight.shape.numel() for weight in pure_weights(model).values())
    coded = sum(layer.weight.numel() for _, layer in bit_layers(model))
    return {"total": sum(p.numel() for p in model.parameters()) + pure, "binary_or_ternary": coded + pure}


def _counts(blocks: Any) -> dict[str, int] | None:
    return dict(vars(blocks.counts)) if isinstance(blocks, PackedBlocks) else None
