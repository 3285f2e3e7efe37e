"""results.jsonl of a benchmark that takes hours: a line for each run that is finished, so that a kill loses one run.

Two processes may add to one file; each finds the lines of the other when it reads again.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

__all__ = ["add_line", "read_lines"]


def read_lines(path: Path) -> dict[str, dict[str, Any]]:
    """Name -> result of the lines that are whole; a kill can leave the last one cut."""
    found: dict[str, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            result = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[result["name"]] = result
    return found


def add_line(path: Path, result: dict[str, Any]) -> None:
    """Append a result; a cut line before it is ended first."""
    is_cut = path.is_file() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write(("\n" if is_cut else "") + json.dumps(result) + "\n")
        file.flush()
        os.fsync(file.fileno())
