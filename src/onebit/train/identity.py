"""Which run a folder belongs to: everything that decides its losses, so that a run is only ever resumed as itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from onebit.data import PreparedData
from onebit.errors import ConfigError
from onebit.models import OneBitConfig
from onebit.train.manifest import write_json
from onebit.train.settings import TrainSettings

__all__ = ["RUN_NAME", "claim", "identity"]

RUN_NAME = "run.json"
_DECIDING = (
    "batch_size",
    "accumulation_steps",
    "max_minutes",
    "optimizer",
    "lr",
    "min_lr",
    "lr_decay",
    "lr_warmup_steps",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "grad_clip_max_norm",
    "label_smoothing",
    "seed",
    "bf16",
    "streaming",
)
_DECIDING_PURE = ("pure_counter", "pure_accumulation", "pure_eta", "pure_flip_budget")
_TRANSFORMERS_OWN = ("transformers_version", "architectures", "_name_or_path", "dtype", "torch_dtype")


def identity(
    settings: TrainSettings, config: OneBitConfig, data: PreparedData, *, max_steps: int | None, processes: int
) -> dict[str, Any]:
    """Return what two invocations must share to be one run; `max_steps` None while minutes decide it."""
    shape = json.loads(config.to_json_string(use_diff=False))
    return {
        "data": data.fingerprint,
        **{name: getattr(settings, name) for name in _DECIDING},
        "pure": {name: getattr(settings, name) for name in _DECIDING_PURE} if settings.pure else None,
        "init_from": str(settings.init_from) if settings.init_from else None,
        "max_steps": max_steps,
        "processes": processes,
        "config": {key: value for key, value in shape.items() if key not in _TRANSFORMERS_OWN},
    }


def claim(folder: Path, wanted: dict[str, Any]) -> int | None:
    """Return the steps of the run that a folder holds, after checking that it is the run that is wanted.

    Raises:
        ConfigError: another run's checkpoints lie there; the message says what differs.
    """
    path = folder / RUN_NAME
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ConfigError(
            f"--output-dir '{folder}' holds checkpoints but no {RUN_NAME} that says whose; "
            "give another folder, or --no-resume to start over"
        ) from None
    steps = int(there["max_steps"])
    if wanted["max_steps"] is None:
        wanted = {**wanted, "max_steps": steps}
    differences = [_difference(key, there.get(key), wanted[key]) for key in wanted if there.get(key) != wanted[key]]
    if differences:
        raise ConfigError(
            f"--output-dir '{folder}' holds another run ({'; '.join(differences)}); "
            "give the same settings, another folder, or --no-resume to start over"
        )
    return steps


def record(folder: Path, wanted: dict[str, Any], max_steps: int) -> None:
    """Write down whose folder this is."""
    write_json(folder / RUN_NAME, {**wanted, "max_steps": max_steps})


def _difference(key: str, there: Any, here: Any) -> str:
    if isinstance(there, dict) and isinstance(here, dict):
        names = sorted(name for name in {*there, *here} if there.get(name) != here.get(name))
        return ", ".join(f"{name} {there.get(name)} there, {here.get(name)} here" for name in names)
    if key == "data":
        return "other text, tokenizer or block length"
    return f"{key} {there} there, {here} here"
