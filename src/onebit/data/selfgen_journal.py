"""The journal of a self-generation run: one line of JSON for each batch, appended and flushed to disk when it is done.

What shaped it: a run may be killed at any point. A line that is not whole counts as not written, so that its batch is
made again, to the same answers. The first line says whose journal it is; the kept answers and how far the prompts went
follow from the others.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from onebit.errors import ConfigError

__all__ = ["Batch", "Journal"]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What became of the answers of one batch: the samples that were kept and how many were dropped for what.

    hashes: the content hash of each kept answer. cut_off: how many of them ended because they had all the tokens they
    might have.
    """

    kept: list[dict[str, Any]]
    hashes: list[str]
    dropped: dict[str, int]
    cut_off: int = 0


@dataclass
class Journal:
    """A context manager around the open file, and what it says: how many batches are done, and their sums."""

    path: Path
    batches: int = 0
    kept: list[dict[str, Any]] = field(default_factory=list)
    hashes: set[str] = field(default_factory=set)
    dropped: Counter[str] = field(default_factory=Counter)
    cut_off: int = 0
    _file: IO[bytes] | None = None

    @classmethod
    def open(cls, path: Path, identity: dict[str, Any], *, resume: bool) -> Journal:
        """Open a run's journal, or begin one; without `resume` it begins anew.

        Raises:
            ConfigError: the journal there is another run's; the message says what differs.
        """
        journal = cls(path)
        end = journal._read(identity) if resume and path.is_file() else 0
        path.parent.mkdir(parents=True, exist_ok=True)
        journal._file = path.open("r+b" if path.is_file() else "w+b")
        journal._file.truncate(end)
        journal._file.seek(end)
        if end == 0:
            journal._write({"identity": identity})
        return journal

    def append(self, batch: Batch) -> None:
        """Take note of the next batch; it is on disk when this returns."""
        self._write(asdict(batch))
        self._count(batch)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def _count(self, batch: Batch) -> None:
        self.batches += 1
        self.kept += batch.kept
        self.hashes.update(batch.hashes)
        self.dropped.update(batch.dropped)
        self.cut_off += batch.cut_off

    def _write(self, line: dict[str, Any]) -> None:
        assert self._file is not None
        self._file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read(self, identity: dict[str, Any]) -> int:
        """Count what the file holds; returns where its last whole line ends, 0 when not even the first is whole."""
        end = 0
        with self.path.open("rb") as lines:
            for raw in lines:
                line = _parsed(raw)
                if end == 0 and (line is None or "identity" not in line):
                    return 0
                if line is None:
                    return end
                if end == 0:
                    self._check(line["identity"], identity)
                else:
                    self._count(Batch(**line))
                end += len(raw)
        return end

    def _check(self, there: dict[str, Any], here: dict[str, Any]) -> None:
        differences = [f"{key} {there.get(key)} there, {here[key]} here" for key in here if there.get(key) != here[key]]
        if differences:
            raise ConfigError(
                f"'{self.path}' is another run's journal ({'; '.join(differences)}); "
                "give the same settings, another --out, or --no-resume to start over"
            )


def _parsed(raw: bytes) -> dict[str, Any] | None:
    if not raw.endswith(b"\n"):
        return None
    try:
        line = json.loads(raw)
    except ValueError:
        return None
    return line if isinstance(line, dict) else None
