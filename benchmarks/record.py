"""One result file per measurement: benchmarks/results/<benchmark>_<hardware>_<YYYYMM>.json.

A number in the README, the docs or a page comes from such a file and from nowhere else, so a file says enough to be
judged without its author: which commit, which machine, which versions, the whole configuration. It is written by the
script that measured, never edited by hand. benchmarks/README.md describes the keys.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("onebit", "numpy", "torch", "transformers", "tokenizers", "datasets", "trl")
# Marketing words of a processor's name: they make a file name long and tell nothing.
NOISE = re.compile(r"\((r|tm)\)|\b(cpu|processor|with|radeon|graphics|\d+-core)\b|@.*", re.IGNORECASE)


def write_result(
    benchmark: str, config: Mapping[str, Any], figures: Mapping[str, float], extra: Mapping[str, Any] | None = None
) -> Path:
    """Write the result file of one measurement and return its path.

    Args:
        benchmark: name of the script that measured, the first part of the file name; letters, digits, `_` and `-`.
        config: everything that was chosen: model shape, data, steps, seeds, flags. Any JSON value.
        figures: flat, name -> finite number, the unit in the name (`decode_tokens_per_s`, `file_mb`).
        extra: further top-level keys, such as `samples` (every run of a spread) or `notes`.

    A second call in the same month on the same machine replaces the first: git keeps the older one.

    Raises:
        ValueError: a bad name, a figure that is no finite number, an extra key that would hide a standard one.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", benchmark):
        raise ValueError(f"benchmark name {benchmark!r}: expected letters, digits, '_' and '-' only")
    for name, value in figures.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"figure {name!r} is {value!r}: expected a finite number")
    now, machine = datetime.now(UTC), describe_machine()
    result: dict[str, Any] = {
        "benchmark": benchmark,
        "date": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": commit(),
        "machine": machine,
        "versions": versions(),
        "config": dict(config),
        "figures": dict(figures),
    }
    if taken := sorted(set(result) & set(extra or {})):
        raise ValueError(f"extra keys {taken} are standard keys: put them into config or figures")
    result |= dict(extra or {})
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{benchmark}_{machine['name']}_{now:%Y%m}.json"
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def describe_machine() -> dict[str, Any]:
    """What the measurement ran on; `name` is short enough for a file name. A GPU is named when torch is loaded."""
    processor, gpu = _processor(), _gpu()
    return {
        "name": _slug(gpu or processor),
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": _memory_gib(),
        "gpu": gpu,
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
    }


def versions() -> dict[str, str]:
    """Python, the packages that matter where they are installed, and the C compiler where there is one."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    if line := _output("cc", "--version"):
        found["cc"] = line.splitlines()[0]
    return found


def commit() -> str:
    """The commit that was measured; `+changes` after it when tracked files differ from it."""
    here = str(RESULTS.parent)
    head = _output("git", "-C", here, "rev-parse", "HEAD")
    if not head:
        return "unknown"
    return head + ("+changes" if _output("git", "-C", here, "status", "--porcelain", "--untracked-files=no") else "")


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith(("model name", "Model")):
                return line.split(":", 1)[1].strip()
    return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor() or platform.machine()


def _gpu() -> str | None:
    torch = sys.modules.get("torch")  # a benchmark that never loaded torch did not use the GPU
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
