"""The safetensors files of a model's folder, tensor by tensor."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from onebit.errors import DataError

__all__ = ["read_tensors", "tensor_names"]


def read_tensors(folder: Path, names: Collection[str]) -> dict[str, Tensor]:
    """Those of the named tensors that the safetensors files of a folder hold."""
    wanted = frozenset(names)
    found: dict[str, Tensor] = {}
    for file in _weight_files(folder):
        found |= {key: file.get_tensor(key) for key in file.keys() if key in wanted}  # noqa: SIM118
    return found


def tensor_names(folder: Path) -> set[str]:
    """The names of all tensors in the safetensors files of a folder; empty for a folder that is none."""
    return {name for file in _weight_files(folder) for name in file.keys()}  # noqa: SIM118


def _weight_files(folder: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                yield file
        except SafetensorError as error:
            raise DataError(f"{path} is damaged: {error}") from None
