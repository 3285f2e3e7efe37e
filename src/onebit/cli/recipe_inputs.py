"""What a stage depends on: its flags, the version of onebit, and the contents of the files and folders it reads."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from onebit import __version__
from onebit.cli.recipe_file import Stage

__all__ = ["Contents", "fingerprint", "what_changed"]


class Contents:
    """Hashes of files and folders. A file is read again only when its size or time is another than in `known`.

    `known`: path -> [size, time in ns, hash], as `seen` was at the end of an earlier run.
    """

    def __init__(self, known: dict[str, list[Any]]) -> None:
        self._known = known
        self.seen: dict[str, list[Any]] = {}

    def of(self, path: Path, apart_from: Iterable[Path]) -> str:
        """The hash of a file, or of the names and contents of all files in a folder, some of them left out."""
        if path.is_file():
            return self._of_file(path)
        left_out = {os.path.abspath(other) for other in apart_from}
        digest = hashlib.blake2b(digest_size=16)
        for folder, folders, files in os.walk(path):
            folders[:] = sorted(name for name in folders if os.path.abspath(Path(folder, name)) not in left_out)
            for name in sorted(files):
                file = Path(folder, name)
                if os.path.abspath(file) not in left_out and file.is_file():
                    digest.update(f"{file.relative_to(path)}\0{self._of_file(file)}\0".encode())
        return digest.hexdigest()

    def _of_file(self, file: Path) -> str:
        key, status = os.path.abspath(file), file.stat()
        entry = self.seen.get(key) or self._known.get(key)
        if entry is None or entry[:2] != [status.st_size, status.st_mtime_ns]:
            with file.open("rb") as stream:
                content = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
            entry = [status.st_size, status.st_mtime_ns, content]
        self.seen[key] = entry
        return str(entry[2])


def fingerprint(stage: Stage, contents: Contents, written_later: Iterable[Path]) -> dict[str, Any]:
    """All that decides what a stage gives, as JSON values; two equal ones need no second run.

    written_later: what this and later stages and the recipe itself write, which is no input where it lies in a folder
    that is.
    """
    written_later = list(written_later)
    inputs = {path: contents.of(Path(path), written_later) for path in stage.paths if Path(path).exists()}
    flags = {name: str(value) for name, value in stage.flags.items()}
    return {"onebit": __version__, "command": stage.command, "flags": flags, "inputs": inputs}


def what_changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The differences of two fingerprints, in words."""
    changes = []
    if before.get("onebit") != now["onebit"]:
        changes.append(f"onebit was {before.get('onebit')}")
    for what, name in (("flags", "flag"), ("inputs", "input")):
        old, new = before.get(what, {}), now[what]
        changes += [f"{name} {key} is another" for key in {**old, **new} if old.get(key) != new.get(key)]
    return changes
