"""A compressed state as one safetensors file, and a checkpoint folder to it and back.

The file is the whole model: the texts that lie beside the weights in a folder (config.json, the tokenizer, the chat
template) are in it as uint8 tensors named ``file/NAME``. A tensor that has several names is stored under the first;
the metadata maps the others to it, and names the layers whose weights a checkpoint holds as [I, O].
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from onebit.errors import ConfigError, DataError, FormatError
from onebit.formats.atomic import beside
from onebit.formats.checkpoint import load_model
from onebit.formats.compress import compress, decompress, latent_state, quantized_layers

__all__ = [
    "CompressedFile",
    "compress_checkpoint",
    "decompress_to_checkpoint",
    "read_compressed",
    "write_compressed",
]

FORMAT, VERSION = "onebit-compressed", "1"
_BESIDE = ("*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")
_LEFT_OUT = ("model.safetensors.index.json", "run.json", "trainer_state.json")
_FILE = "file/"


@dataclass(frozen=True, kw_only=True)
class CompressedFile:
    """A compressed state, the files of its folder by name, and the layers whose weight is [I, O] there (Conv1D)."""

    state: Mapping[str, Tensor]
    files: Mapping[str, bytes] = field(default_factory=dict)
    transposed: tuple[str, ...] = ()


def compress_checkpoint(folder: Path, output: Path) -> list[str]:
    """Write a checkpoint folder as one compressed file; returns the names of the packed layers.

    Raises DataError for a folder that is no checkpoint, OnebitError when no layer of it is quantised.
    """
    model = _model_of(folder)
    state = compress(model)
    paths = {path for pattern in _BESIDE for path in folder.glob(pattern) if path.name not in _LEFT_OUT}
    files = {path.name: path.read_bytes() for path in sorted(paths)}
    report = getattr(model, "conversion_report", None)
    transposed = () if report is None else report.transposed
    write_compressed(output, CompressedFile(state=state, files=files, transposed=transposed))
    return quantized_layers(state)


def decompress_to_checkpoint(file: Path, folder: Path) -> list[str]:
    """Write the checkpoint folder of a compressed file; returns the names of the unpacked layers.

    The folder appears whole or not at all. A model loaded from it computes bit for bit what the compressed one did in
    float32, the type that the quantised layers' latents now have.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"--output '{folder}' is there already; give the name of a new folder")
    compressed = read_compressed(file)
    state = latent_state(decompress(compressed.state))
    state |= {f"{name}.weight": state[f"{name}.weight"].t().contiguous() for name in compressed.transposed}
    staging = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    staging.mkdir(parents=True)
    try:
        for name, content in compressed.files.items():
            (staging / name).write_bytes(_in_float32(content) if name == "config.json" else content)
        kept, _ = _without_aliases(state)
        save_file(kept, staging / "model.safetensors", metadata={"format": "pt"})
        staging.replace(folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return quantized_layers(compressed.state)


def write_compressed(path: Path, content: CompressedFile) -> None:
    """Write a compressed state and what belongs to it; the file appears whole or not at all."""
    tensors, aliases = _without_aliases(content.state)
    for name, data in content.files.items():
        tensors[_FILE + name] = torch.frombuffer(bytearray(data or b"\0"), dtype=torch.uint8)[: len(data)]
    names = {"aliases": json.dumps(aliases), "transposed": json.dumps(content.transposed)}
    metadata = {"format": FORMAT, "version": VERSION, **names}
    with beside(path) as unfinished:
        save_file(tensors, unfinished, metadata=metadata)
        with unfinished.open("rb") as written:
            os.fsync(written.fileno())


def read_compressed(path: Path) -> CompressedFile:
    """What a compressed file holds.

    Raises FormatError when it is none, is of another version, or holds a file's name that would leave its folder.
    """
    if not path.is_file():
        raise FormatError(f"{path}: no such file; give one that onebit compress wrote")
    try:
        with safe_open(path, framework="pt") as opened:
            metadata: dict[str, str] = opened.metadata() or {}
            if metadata.get("format") != FORMAT or metadata.get("version") != VERSION:
                raise FormatError(
                    f"{path}: a safetensors file, but none that onebit compress wrote (format "
                    f"{metadata.get('format')}, version {metadata.get('version')}; expected {FORMAT}, {VERSION})"
                )
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
    except SafetensorError as error:
        raise FormatError(f"{path}: not a safetensors file, or damaged: {error}") from None
    state = {name: tensor for name, tensor in tensors.items() if not name.startswith(_FILE)}
    files = {name.removeprefix(_FILE): tensor for name, tensor in tensors.items() if name.startswith(_FILE)}
    for name, tensor in files.items():
        if Path(name).name != name or name[:1] in ("", ".") or "\\" in name or tensor.dtype != torch.uint8:
            raise FormatError(f"{path}: the file inside is called '{name}'; expected a plain name, the data is damaged")
    try:
        state |= {name: state[first] for name, first in json.loads(metadata["aliases"]).items()}
        transposed = tuple(name for name in json.loads(metadata["transposed"]) if state[f"{name}.codes"] is not None)
    except (KeyError, ValueError, TypeError, AttributeError):
        raise FormatError(f"{path}: its metadata names tensors that it does not have; the data is damaged") from None
    contents = {name: tensor.numpy().tobytes() for name, tensor in files.items()}
    return CompressedFile(state=state, files=contents, transposed=transposed)


def _model_of(folder: Path) -> Any:
    """The model of a checkpoint: our own, or a converted one of transformers."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: no config.json that can be read; expected a checkpoint folder") from error
    if config.get("model_type") == "onebit":
        return load_model(folder)
    from onebit.models.converted import load_converted

    return load_converted(folder)


def _without_aliases(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(contiguous tensors without those that are there already, other name -> first name)."""
    kept: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name, tensor in state.items():
        place = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if tensor.numel() and place in first:
            aliases[name] = first[place]
        else:
            first[place] = name
            kept[name] = tensor.detach().contiguous()
    return kept, aliases


def _in_float32(config: bytes) -> bytes:
    """The configuration with the type that the latents have: in a narrower one their scales would be others."""
    try:
        values = dict(json.loads(config))
    except (ValueError, TypeError):
        raise FormatError("the config.json inside the compressed file is no JSON object; the data is damaged") from None
    values.pop("torch_dtype", None)
    return (json.dumps({**values, "dtype": "float32"}, indent=2, ensure_ascii=False) + "\n").encode()
