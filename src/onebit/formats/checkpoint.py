"""A checkpoint folder to a OneBitFile: weights through transformers, the texts beside them as they are."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from onebit.errors import DataError, MissingExtraError
from onebit.formats.export import check_choices, from_model
from onebit.formats.onebit_file import OneBitFile

__all__ = ["from_checkpoint", "load_model"]

_LARGE = 500_000_000  # bytes of weights: about two seconds from disk


def from_checkpoint(
    folder: Path,
    *,
    pack_mode: str | None = None,
    layout: str = "run",
    embedding_level: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> OneBitFile:
    """Load a checkpoint folder (config.json, model.safetensors, tokenizer.json, ...) and export it as ``from_model``
    does.

    Weights that are missing or left over are an error: transformers would fill them with random numbers.
    """
    check_choices(pack_mode, layout, embedding_level)
    return from_model(
        load_model(folder).eval(),
        _read_text(folder / "tokenizer.json"),
        pack_mode=pack_mode,
        layout=layout,
        embedding_level=embedding_level,
        chat_template=_template_of(folder),
        manifest=_read_json(folder / "training_manifest.json"),
        progress=progress,
    )


def load_model(folder: Path) -> Any:
    """The OneBitForCausalLM of a checkpoint folder, with every weight that its configuration needs and no other."""
    if not (folder / "config.json").is_file():
        raise DataError(f"{folder}: no config.json in it; expected a checkpoint folder written by onebit train")
    try:
        from onebit.models import OneBitForCausalLM
    except ImportError as error:
        raise MissingExtraError("train", "running a checkpoint") from error
    from safetensors import SafetensorError

    try:
        with _quiet_unless_large(folder):
            loaded: Any = OneBitForCausalLM.from_pretrained(folder, output_loading_info=True)
    except (OSError, RuntimeError, SafetensorError) as error:  # missing, damaged, or of other shapes than the config
        raise DataError(f"{folder}: the checkpoint cannot be loaded: {' '.join(str(error).split())}") from error
    model, loading = loaded
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if loading.get(what):
            names = ", ".join(str(name) for name in sorted(loading[what], key=str)[:3])
            raise DataError(f"{folder}: {len(loading[what])} {what.replace('_', ' ')} in the weights ({names}, ...)")
    return model


@contextlib.contextmanager
def _quiet_unless_large(folder: Path) -> Iterator[None]:
    """No progress bar from transformers for weights that load in a moment; its setting is put back."""
    from transformers.utils import logging

    small = sum(path.stat().st_size for path in folder.glob("*.safetensors")) < _LARGE
    shown = logging.is_progress_bar_enabled()
    if small and shown:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if small and shown:
            logging.enable_progress_bar()


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text("utf-8") if path.is_file() else None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error}") from None


def _read_json(path: Path) -> dict[str, Any] | None:
    text = _read_text(path)
    try:
        value = None if text is None else json.loads(text)
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}") from None
    if value is not None and not isinstance(value, dict):
        raise DataError(f"{path} holds JSON of type {type(value).__name__}, expected an object")
    return value


def _template_of(folder: Path) -> str | None:
    template = _read_text(folder / "chat_template.jinja")
    settings = _read_json(folder / "tokenizer_config.json") or {}
    found = template or settings.get("chat_template")
    return found if isinstance(found, str) else None
