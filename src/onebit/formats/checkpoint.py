"""A checkpoint folder to a OneBitFile: weights through transformers, the texts beside them as they are."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from onebit.errors import DataError, MissingExtraError
from onebit.formats.export import from_model
from onebit.formats.export_tensors import check_choices
from onebit.formats.onebit_file import OneBitFile

__all__ = ["from_checkpoint", "load_model", "texts_of"]

_LARGE = 500_000_000  # bytes of weights: about two seconds from disk


def from_checkpoint(
    folder: Path,
    *,
    pack_mode: str | None = None,
    layout: str = "run",
    embedding_level: str | None = None,
    head_activation: str | None = None,
    bit_width_map: Mapping[str, str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> OneBitFile:
    """Load a checkpoint folder (config.json, model.safetensors, tokenizer.json, ...) and export it as ``from_model``
    does; ``bit_width_map`` gives its matrices other levels first.

    Weights that are missing or left over are an error: transformers would fill them with random numbers. Packed BitNet
    folders are read as they are (`hf_import`).
    """
    check_choices(pack_mode, layout, embedding_level, head_activation)
    if _is_packed(folder) and bit_width_map is None:
        from onebit.formats.hf_import import from_hf

        level = {None: "int8", "trained": None}.get(embedding_level, embedding_level)
        return from_hf(folder, layout=layout, table_level=level, progress=progress or (lambda done, total: None))
    return from_model(
        load_model(folder, bit_width_map=bit_width_map).eval(),
        pack_mode=pack_mode,
        layout=layout,
        embedding_level=embedding_level,
        head_activation=head_activation,
        progress=progress,
        **texts_of(folder),
    )


def texts_of(folder: Path) -> dict[str, Any]:
    """What lies beside the weights, by the names of ``from_model``'s arguments."""
    return {
        "tokenizer": _read_text(folder / "tokenizer.json"),
        "chat_template": _template_of(folder),
        "manifest": _read_json(folder / "training_manifest.json"),
    }


def load_model(folder: Path, device: str = "cpu", bit_width_map: Mapping[str, str] | None = None) -> Any:
    """The model of a checkpoint folder with every weight that its configuration needs: a OneBitForCausalLM, or the
    model of transformers that `onebit sft` or `distill` converted, in float32, at the levels of a map where one is
    given."""
    if not (folder / "config.json").is_file():
        raise DataError(f"{folder}: no config.json in it; expected a checkpoint folder written by onebit train")
    try:
        from onebit.models import OneBitForCausalLM
        from onebit.models.bit_width_map import apply_bit_width_map
        from onebit.models.devices import check_device
        from onebit.models.pure_checkpoint import fill_with_codes, unreadable_codes, weights_of_codes
        from onebit.models.quiet import quiet_transformers
    except ImportError as error:
        raise MissingExtraError("train", "running a checkpoint") from error
    from safetensors import SafetensorError

    check_device(device)
    if _is_converted(folder):
        from onebit.models.converted import load_converted

        converted = load_converted(folder, dtype="float32")
        if bit_width_map is not None:
            apply_bit_width_map(converted, bit_width_map)
        return converted.to(device)
    codes = weights_of_codes(folder)
    if codes and (_read_json(folder / "config.json") or {}).get("model_type") != "onebit":
        raise DataError(unreadable_codes(folder))
    try:
        with quiet_transformers(keep_bar=not _loads_in_a_moment(folder)):
            # Sizes that differ are reported with the names, below, rather than as a table on the terminal.
            loaded: Any = OneBitForCausalLM.from_pretrained(
                folder, output_loading_info=True, ignore_mismatched_sizes=True
            )
    except (OSError, RuntimeError, SafetensorError) as error:  # missing, damaged, or of other shapes than the config
        raise DataError(f"{folder}: the checkpoint cannot be loaded: {' '.join(str(error).split())}") from error
    model, loading = loaded
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        found = {name if isinstance(name, str) else str(name[0]) for name in loading.get(what) or ()}
        # The weight of a layer that has codes is missing, and its codes are left over.
        if names := sorted(name for name in found if not codes & {name, name.rpartition(".")[0]}):
            listed = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            raise DataError(
                f"{folder}: its config.json and model.safetensors do not belong together:"
                f" {len(names)} {what.replace('_', ' ')} in the weights ({listed})"
            )
    fill_with_codes(model, folder, codes)
    if bit_width_map is not None:
        apply_bit_width_map(model, bit_width_map)
    return model.to(device)


def _is_converted(folder: Path) -> bool:
    """Whether config.json records a conversion; a damaged one is for transformers to refuse."""
    with contextlib.suppress(DataError):
        return "onebit_conversion" in (_read_json(folder / "config.json") or {})
    return False


def _is_packed(folder: Path) -> bool:
    """Whether the folder holds packed BitNet layers, or latents that the model quantises itself."""
    told: Any = None
    with contextlib.suppress(DataError):
        told = (_read_json(folder / "config.json") or {}).get("quantization_config")
    return isinstance(told, dict) and told.get("quant_method") == "bitnet"


def _loads_in_a_moment(folder: Path) -> bool:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) < _LARGE


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
