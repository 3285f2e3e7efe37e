"""How many threads pay: the physical cores among the processors this process may run on."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["physical_cores"]


def physical_cores() -> int:
    """Number of cores, at least 1; two hyperthreads of a core count once (Linux; elsewhere every processor counts)."""
    if not hasattr(os, "sched_getaffinity"):
        return min(os.cpu_count() or 1, 256)
    cores = {_core_of(processor) for processor in os.sched_getaffinity(0)}
    return min(max(len(cores), 1), 256)


def _core_of(processor: int) -> str:
    siblings = Path(f"/sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list")
    try:
        return siblings.read_text()
    except OSError:
        return str(processor)
