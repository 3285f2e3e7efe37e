"""The result record: every number that is kept says where, when and with what it was measured.

Same keys as the files of benchmarks/results, so that what `onebit eval --json` prints can be kept beside them.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import subprocess
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

__all__ = ["ResultRecord", "commit", "machine", "memory_gib", "processor_name", "versions"]

PACKAGES = ("onebit", "numpy", "tokenizers", "torch", "transformers", "datasets", "trl")


def processor_name() -> str:
    """The processor's model as the system names it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def memory_gib() -> float | None:
    """Main memory, where the system tells."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def machine() -> dict[str, str | int | float | None]:
    """Hardware and system; no host name, no user name."""
    return {
        "processor": processor_name(),
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1),
        "memory_gib": memory_gib(),
        "system": f"{platform.system()} {platform.release()}",
    }


def versions() -> dict[str, str]:
    """Python and the packages a result can depend on, those that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The commit of the source tree onebit runs from, or None outside of one."""
    here = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True, kw_only=True)
class ResultRecord:
    """One result: `figures` is flat, name -> number; the rest says how to get the same numbers again."""

    benchmark: str
    config: dict[str, object]
    figures: dict[str, float | int | None]
    date: str = field(default_factory=_now)
    commit: str | None = field(default_factory=commit)
    machine: dict[str, str | int | float | None] = field(default_factory=machine)
    versions: dict[str, str] = field(default_factory=versions)

    def to_json(self) -> str:
        """JSON with infinite figures as null, which JSON can carry."""
        content = asdict(self)
        finite = {
            name: value if value is None or math.isfinite(value) else None for name, value in self.figures.items()
        }
        return json.dumps({**content, "figures": finite}, indent=2, ensure_ascii=False)
