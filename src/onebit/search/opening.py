"""From paths to what a search works with: the model, the text in windows, their fingerprints, the evaluator."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from onebit.errors import ConfigError, DataError
from onebit.eval.evaluate import read_text
from onebit.formats.checkpoint import load_model, texts_of
from onebit.models.config import OneBitConfig
from onebit.search.evaluator import Evaluator, HeldOut, held_out
from onebit.search.settings import EvaluationSettings

__all__ = ["checkpoint_fingerprint", "checkpoint_folder", "open_data", "open_evaluator", "open_model", "texts_beside"]

_MODEL_FILES = ("*.safetensors", "config.json")


def checkpoint_folder(settings: EvaluationSettings) -> Path:
    """The folder of the checkpoint; a weights file stands for the folder it lies in."""
    path = settings.checkpoint
    if path.is_dir():
        return path
    if path.name == "model.safetensors" and path.is_file():
        return path.parent
    raise DataError(f"--checkpoint: '{path}' is no folder and no model.safetensors; give what onebit train wrote")


def open_model(settings: EvaluationSettings) -> Any:
    """The checkpoint's model. Raises ConfigError when --model-config describes another one."""
    folder = checkpoint_folder(settings)
    if settings.model_config is not None:
        given, own = (OneBitConfig.from_json_file(path) for path in (settings.model_config, folder / "config.json"))
        for name in OneBitConfig.__annotations__:
            if name not in _FREE and getattr(given, name, None) != getattr(own, name, None):
                raise ConfigError(
                    f"--model-config: {name} is {getattr(given, name)}, but the checkpoint was trained with "
                    f"{getattr(own, name)} ({folder / 'config.json'}); leave the flag out"
                )
    return load_model(folder, settings.device)


# What training fills in, or a map replaces.
_FREE = ("bit_width_map", "vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "use_cache")


def open_data(settings: EvaluationSettings, model: Any) -> HeldOut:
    """The text of --val-data as the model reads it."""
    from tokenizers import Tokenizer

    given = settings.tokenizer or checkpoint_folder(settings)
    file = given / "tokenizer.json" if given.is_dir() else given
    if not file.is_file():
        raise DataError(f"--tokenizer: no tokenizer at '{file}'; give a tokenizer.json")
    config: OneBitConfig = model.config
    context = config.max_seq_len if settings.context is None else settings.context
    if context > config.max_seq_len:
        raise ConfigError(f"--context {context}: this model reads between 1 and {config.max_seq_len} tokens")
    return held_out(
        Tokenizer.from_file(str(file)),
        read_text(settings.val_data),
        vocab_size=config.vocab_size,
        context=context,
        bos=config.bos_token_id,
        max_tokens=settings.max_tokens,
    )


def open_evaluator(settings: EvaluationSettings) -> Evaluator:
    """Everything from paths alone, as a worker process does it."""
    torch.set_num_threads(settings.threads)
    model = open_model(settings)
    return Evaluator(model, open_data(settings, model))


def texts_beside(settings: EvaluationSettings) -> dict[str, Any]:
    """What an export of the checkpoint puts into the file beside the weights."""
    return texts_of(checkpoint_folder(settings))


def checkpoint_fingerprint(folder: Path) -> str:
    """Hash of the configuration and of every byte of the weights."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in _MODEL_FILES for path in folder.glob(pattern)):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
