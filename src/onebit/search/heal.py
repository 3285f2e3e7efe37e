"""Healing: the chosen map trained for some steps, so that the latents of coarse matrices find better codes.

It is `onebit train` from the checkpoint with the map, so it can be killed and goes on. The healed folder carries the
manifest of the checkpoint with a record of the healing that was known before the search, so that its exported file has
the size the search counted.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onebit.errors import OnebitError
from onebit.formats.checkpoint import texts_of
from onebit.search.evaluator import Evaluator
from onebit.search.opening import checkpoint_folder, open_data, open_model, texts_beside
from onebit.search.score import Score
from onebit.search.settings import SearchSettings
from onebit.search.space import Levels, open_space
from onebit.train.manifest import MANIFEST_NAME, write_json

__all__ = ["Healed", "heal", "healing_record"]

_TEXTS = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_RECORD = "healing_manifest.json"


@dataclass(frozen=True)
class Healed:
    """A healed checkpoint, measured on the search's text, and the bytes of its exported file."""

    folder: Path
    score: Score
    size: int


def healing_record(settings: SearchSettings) -> dict[str, Any]:
    """What the healed checkpoint's manifest says beyond that of the checkpoint it came from."""
    steps = {"steps": settings.finetune_steps, "data": settings.data, "lr": settings.finetune_lr}
    return {"healing": {**steps, "seed": settings.seed}}


def heal(settings: SearchSettings, fingerprint: str, levels: Levels, max_bytes: int | None) -> Healed | None:
    """Train the checkpoint at the levels of a map, and measure it; None when a signal stopped it. What is finished is
    not trained again. fingerprint: of the checkpoint. Raises OnebitError when the healed file would be too large."""
    folder, source = settings.folder / "healed", checkpoint_folder(settings)
    _clear_unless(
        folder, {"levels": levels, "checkpoint": fingerprint, "text": _state_of(settings), **healing_record(settings)}
    )
    if not (folder / _RECORD).is_file():
        if not _train(settings, levels, source, folder):
            return None
        (folder / MANIFEST_NAME).replace(folder / _RECORD)
    write_json(folder / MANIFEST_NAME, {**(texts_beside(settings)["manifest"] or {}), **healing_record(settings)})
    for name in _TEXTS:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    told = replace(settings, checkpoint=folder, model_config=None, tokenizer=settings.tokenizer or source)
    model = open_model(told)
    space = open_space(model, levels=settings.levels, grouping=settings.units, **texts_of(folder))
    size = space.size(space.choice_of(levels))
    if max_bytes is not None and size > max_bytes:
        raise OnebitError(
            f"the healed model's file would have {size:,} bytes, more than the {max_bytes:,} of --max-size-mb; export "
            "the checkpoint with the map that was found, or search with a little less"
        )
    return Healed(folder, Evaluator(model, open_data(told, model)).score(levels), size)


def _train(settings: SearchSettings, levels: Levels, source: Path, folder: Path) -> bool:
    """Whether all steps were done."""
    from onebit.train import TrainSettings, train

    assert settings.data is not None  # the settings checked it
    return train(
        TrainSettings(
            data=settings.data,
            output_dir=folder,
            init_from=source,
            bit_width_map=levels,
            tokenizer=settings.tokenizer,
            val_fraction=0.0,
            max_steps=settings.finetune_steps,
            lr=settings.finetune_lr,
            lr_decay="linear",
            lr_warmup_steps=min(20, settings.finetune_steps // 10),
            save_every=200,
            keep_checkpoints=1,
            log_every=max(1, settings.finetune_steps // 20),
            seed=settings.seed,
            device=_device(settings.device),
            threads=settings.threads,
            quiet=settings.quiet,
        )
    ).complete


def _clear_unless(folder: Path, wanted: dict[str, Any]) -> None:
    """Empty the folder of a healing of another map, checkpoint or text, or with other settings."""
    note = folder / "healing.json"
    if folder.is_dir() and not (note.is_file() and json.loads(note.read_text("utf-8")) == wanted):
        shutil.rmtree(folder)
    folder.mkdir(exist_ok=True)
    write_json(note, wanted)


def _state_of(settings: SearchSettings) -> list[int]:
    """Size and time of the text to train on, where it is a file."""
    path = Path(settings.data or "")
    return [path.stat().st_size, path.stat().st_mtime_ns] if path.is_file() else []


def _device(name: str) -> Any:
    return name.partition(":")[0]
