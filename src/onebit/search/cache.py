"""What was measured, kept: an SQLite file that a killed search, or the next one, finds again; the latest in memory.

A key is the hash of the checkpoint, of the text and of the map, so results of different models and texts share a file.
Every result is in the file before the search goes on.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

from onebit.errors import DataError
from onebit.search.score import Score

__all__ = ["ScoreCache"]

_IN_MEMORY = 4096
_PATIENCE = 60.0  # seconds that another search may be writing


class ScoreCache:
    """Scores by map, for the checkpoint and text whose fingerprints are given; path None keeps them in memory alone."""

    def __init__(self, path: Path | None, *fingerprints: str) -> None:
        self._prefix = "|".join(fingerprints)
        self._recent: OrderedDict[str, Score] = OrderedDict()
        try:
            self._database = sqlite3.connect(":memory:" if path is None else path, timeout=_PATIENCE)
            # A killed process loses nothing; waiting for the disk too would take longer than a small evaluation.
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = NORMAL")
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS scores (key TEXT PRIMARY KEY, loss REAL, accuracy REAL, tokens INTEGER,"
                " map TEXT)"
            )
        except sqlite3.Error as error:
            raise DataError(
                f"the cache of evaluations '{path}' cannot be used: {error}; remove it, or give another --cache-dir"
            ) from None

    def get(self, levels: Mapping[str, str]) -> Score | None:
        """The score of a map, None when it was not measured."""
        key = self._key(levels)
        if key in self._recent:
            self._recent.move_to_end(key)
            return self._recent[key]
        row = self._database.execute("SELECT loss, accuracy, tokens FROM scores WHERE key = ?", (key,)).fetchone()
        return None if row is None else self._remember(key, Score(*row))

    def put(self, levels: Mapping[str, str], score: Score) -> None:
        """Keep a score; it outlives the process when this returns."""
        key = self._key(levels)
        with self._database:
            self._database.execute(
                "INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?, ?)",
                (key, score.loss, score.accuracy, score.tokens, json.dumps(levels)),
            )
        self._remember(key, score)

    def __len__(self) -> int:
        return int(self._database.execute("SELECT COUNT(*) FROM scores").fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _key(self, levels: Mapping[str, str]) -> str:
        told = json.dumps(dict(sorted(levels.items())))
        return hashlib.sha256(f"{self._prefix}|{told}".encode()).hexdigest()

    def _remember(self, key: str, score: Score) -> Score:
        self._recent[key] = score
        self._recent.move_to_end(key)
        if len(self._recent) > _IN_MEMORY:
            self._recent.popitem(last=False)
        return score
