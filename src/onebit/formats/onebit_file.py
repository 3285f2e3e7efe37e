"""``.1bit``: one file, one model. ``read`` maps it and checks everything it says; ``write`` makes it whole or not at
all.

numpy is all it needs. The specification is docs/format.md; the structs are in ``records``, the checks in
``onebit_reader``, the order of bytes in ``onebit_writer``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from onebit.formats.chat_strings import ChatStrings
from onebit.formats.description import ModelDescription
from onebit.formats.hadamard_section import Rotation
from onebit.formats.stored_tensor import StoredTensor

__all__ = ["OneBitFile", "read", "write"]


@dataclass(frozen=True, kw_only=True)
class OneBitFile:
    """A model as the file holds it. ``tensors`` maps names to tensors in file order; the rest is optional.

    rotations: by which turned inputs are turned, by site; see `hadamard_section`.
    """

    description: ModelDescription
    tensors: dict[str, StoredTensor]
    config: dict[str, Any] | None = None
    tokenizer_json: str | None = None
    tokenizer_binary: bytes | None = None
    chat_template: str | None = None
    chat_strings: ChatStrings | None = None
    manifest: dict[str, Any] | None = None
    rotations: dict[str, Rotation] = field(default_factory=dict)
    other_sections: dict[str, bytes] = field(default_factory=dict)

    @property
    def num_weights(self) -> int:
        """Weights of all tensors together, a tied head counted once."""
        return sum(rows * cols for rows, cols in (tensor.shape for tensor in self.tensors.values()))

    def for_exchange(self) -> OneBitFile:
        """The same model with every tensor row by row; exact."""
        return replace(self, tensors={name: tensor.for_exchange() for name, tensor in self.tensors.items()})

    def for_running(self) -> OneBitFile:
        """The same model in tiles, as the engine likes it; exact."""
        return replace(self, tensors={name: tensor.for_running() for name, tensor in self.tensors.items()})


def read(path: str | os.PathLike[str], verify: bool = True) -> OneBitFile:
    """Open a file; the tensors stay on disk until they are decoded.

    The header's checksum is always checked, the tensors' when ``verify``. Anything that is not a whole, consistent
    file of version 1 raises FormatError with one line that names the file and what is wrong; no size in the file is
    believed before it has been compared with the file's length.
    """
    from onebit.formats.onebit_reader import read_file

    return read_file(Path(path), verify=verify)


def write(path: str | os.PathLike[str], file: OneBitFile) -> int:
    """Write beside the target, flush to disk, rename over it; returns the size in bytes. A failure leaves nothing
    behind."""
    from onebit.formats.onebit_writer import write_file

    return write_file(Path(path), file)
