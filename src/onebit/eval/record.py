"""The result record: every number that is kept says where, when and with what it was measured.

`onebit eval --json` prints one, the scripts of benchmarks/ write one as a file under benchmarks/results.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from onebit.errors import FormatError

__all__ = ["ResultRecord", "commit", "machine", "read_records", "versions"]

PACKAGES = ("onebit", "numpy", "tokenizers", "torch", "transformers", "datasets", "trl")
# Marketing words of a processor's name: they make a file name long and tell nothing.
NOISE = re.compile(r"\((r|tm)\)|\b(cpu|processor|with|radeon|graphics|\d+-core)\b|@.*", re.IGNORECASE)


def machine() -> dict[str, Any]:
    """Hardware and system, no host or user name. `name` fits into a file name; a GPU counts when torch is loaded."""
    processor, gpu = _processor(), _gpu()
    return {
        "name": _slug(gpu or processor),
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1),
        "memory_gib": _memory_gib(),
        "gpu": gpu,
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
    }


def versions() -> dict[str, str]:
    """Python, the packages a result can depend on where they are installed, the C compiler where there is one."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if line := _output("cc", "--version"):
        found["cc"] = line.splitlines()[0]
    return found


def commit() -> str | None:
    """The commit of the source tree onebit runs from, `+changes` when tracked files differ; None outside of one."""
    here = str(Path(__file__).parent)
    head = _output("git", "-C", here, "rev-parse", "HEAD")
    if not head:
        return None
    return head + ("+changes" if _output("git", "-C", here, "status", "--porcelain", "--untracked-files=no") else "")


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def read_records(path: Path) -> list[ResultRecord]:
    """The record of a file, or the list of them, as `onebit eval --json` writes it. FormatError for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        many = content if isinstance(content, list) else [content]
        fields = ("benchmark", "date", "commit", "machine", "versions", "config", "figures")
        records = [ResultRecord(**{name: one[name] for name in fields}) for one in many]
        if not all(isinstance(part, dict) for one in records for part in (one.config, one.figures, one.machine)):
            raise ValueError("config, figures and machine must be objects")
    except (ValueError, KeyError, TypeError) as problem:
        raise FormatError(f"{path}: not a record of onebit ({problem}); give what 'onebit eval --json' wrote") from None
    return records


@dataclass(frozen=True, kw_only=True)
class ResultRecord:
    """One result: `figures` is flat, name -> number; the rest says how to get the same numbers again."""

    benchmark: str
    config: Mapping[str, Any]
    figures: Mapping[str, float | int | None]
    date: str = field(default_factory=_now)
    commit: str | None = field(default_factory=commit)
    machine: dict[str, Any] = field(default_factory=machine)
    versions: dict[str, str] = field(default_factory=versions)

    def to_dict(self) -> dict[str, Any]:
        """The keys in the order a reader wants them; infinite figures are null, which JSON can carry."""
        content = asdict(self)
        finite = {n: v if v is None or math.isfinite(v) else None for n, v in self.figures.items()}
        first = ("benchmark", "date", "commit", "machine", "versions", "config")
        return {name: content[name] for name in first} | {"figures": finite}

    def to_json(self) -> str:
        """`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor() or platform.machine()


def _gpu() -> str | None:
    torch = sys.modules.get("torch")  # a run that never loaded torch did not use the GPU
    return str(torch.cuda.get_device_name()) if torch is not None and torch.cuda.is_available() else None


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", NOISE.sub(" ", name).lower()).strip("-")[:40]


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
