"""Files that appear whole or not at all: written beside their name, flushed to disk, renamed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

__all__ = ["beside", "replacing"]


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A free name in the folder of ``path``; what is written there becomes ``path`` only if the block ends well.

    An OSError about the free name, which no user ever gave, names ``path`` instead.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and str(error.filename) == str(temporary):
            raise type(error)(error.errno, error.strerror, str(path)) from None
        raise
    _sync_folder(path.parent)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """An open file that becomes ``path``, flushed to disk, only if the block ends well."""
    with beside(path) as temporary, open(temporary, "wb") as out:
        yield out
        out.flush()
        os.fsync(out.fileno())


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where the system can open a folder."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
