"""The tensors of a transformers folder by name: read one at a time from its shards, which may lie about each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from onebit.errors import DataError, FormatError

__all__ = ["INDEX", "HFTensors", "read_config", "shards_of"]

INDEX = "model.safetensors.index.json"


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a folder. Raises DataError where there is none that is a JSON object."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{folder}: no config.json that can be read; expected a folder of transformers") from error
    if not isinstance(config, dict):
        raise DataError(f"{folder}/config.json holds JSON of type {type(config).__name__}, expected an object")
    return config


class HFTensors:
    """Names and tensors; safetensors checks offsets and sizes against the file before anything is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, Any] = {}
        self._shard_of: dict[str, str] = {}
        for shard in shards_of(folder):
            path = folder / shard
            try:
                self._files[shard] = safe_open(path, framework="pt")
                names = self._files[shard].keys()
            except (SafetensorError, OSError) as error:
                raise FormatError(f"{path}: not a safetensors file, or damaged: {error}") from None
            self._shard_of |= dict.fromkeys(names, shard)

    def __contains__(self, name: str) -> bool:
        return name in self._shard_of

    @property
    def names(self) -> set[str]:
        return set(self._shard_of)

    def __getitem__(self, name: str) -> Tensor:
        """Raises DataError for a name that is not there."""
        shard = self._shard_of.get(name)
        if shard is None:
            raise DataError(f"{self.folder}: no tensor '{name}'; config.json and weights do not belong together")
        try:
            tensor: Tensor = self._files[shard].get_tensor(name)
        except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
            raise FormatError(f"{self.folder / shard}: '{name}' cannot be read: {error}") from None
        return tensor


def shards_of(folder: Path) -> list[str]:
    """The names of the weight files, in order. Raises FormatError for an index that lies, DataError for files that are
    not there."""
    index = folder / INDEX
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise FormatError(f"{index} cannot be read: {error}") from None
    else:
        names = ["model.safetensors"]
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise FormatError(f"{index} names a file '{name}' outside the folder")
        if not (folder / name).is_file():
            hint = "; .bin files are pickles, save the model as safetensors" if list(folder.glob("*.bin")) else ""
            raise DataError(f"{folder}: no {name} in it{hint}")
    return names
