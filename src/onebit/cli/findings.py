"""What `onebit doctor` looks at, one function a section, each safe on a machine that lacks the thing."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import onebit
from onebit.cli.model_path import cache_dir, tiny_model_path
from onebit.errors import EXTRAS, OnebitError
from onebit.eval.record import machine, versions

__all__ = ["findings"]

Facts = dict[str, Any]

# Instruction sets that matter to 1-bit kernels, under the names Linux gives them.
_FEATURES = (
    *("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_vbmi", "amx_int8"),
    *("asimd", "asimddp", "i8mm", "sve", "sve2"),
)


def findings() -> dict[str, Facts]:
    """All sections; every value is a string, number, None or list of strings."""
    return {
        "onebit": _package(),
        "processor": _processor(),
        "engine": _engine(),
        "torch": _torch(),
        "disk": _disk(),
        "extras": _extras(),
    }


def _package() -> Facts:
    try:
        tiny: str | None = str(tiny_model_path())
    except OnebitError:
        tiny = None
    return {
        "version": onebit.__version__,
        "installed at": str(Path(onebit.__file__).parent),
        "tiny model": tiny,
        "python": f"{platform.python_version()} ({sys.executable})",
        "packages": [f"{name} {version}" for name, version in versions().items() if name not in ("python", "onebit")],
    }


def _processor() -> Facts:
    return {**machine(), "features": " ".join(_processor_features()) or None}


def _processor_features() -> list[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip().lower() in ("flags", "features"):
            present = set(value.split())
            return [feature for feature in _FEATURES if feature in present]
    return []


def _engine() -> Facts:
    try:
        from onebit.engine import library_path

        path = library_path()
    except (ImportError, OnebitError, OSError) as problem:
        return {"library": None, "problem": str(problem), "what to do": "build it with make, or install the wheel"}
    return {"library": str(path), **_kernels()}


def _kernels() -> Facts:
    """What the dispatch chooses on this processor, asked of a random model in a temporary file."""
    from onebit.engine import Model
    from onebit.formats.onebit_file import write
    from onebit.formats.random_model import random_file

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.1bit"
        write(path, random_file())
        try:
            model = Model(path)
        except (OnebitError, OSError) as problem:
            return {"problem": str(problem)}
        return {"threads": model.threads, "kernels": model.kernels()}


def _torch() -> Facts:
    if importlib.util.find_spec("torch") is None:
        return {
            "version": None,
            "what to do": "running needs none; to train: pip install 'onebit[train]'",
            "gpu": _gpus(),
        }
    try:
        import torch
    except (ImportError, OSError) as problem:  # a broken installation is a finding, not a crash
        return {"version": None, "problem": str(problem), "gpu": _gpus()}
    devices = ["cpu"]
    if torch.cuda.is_available():
        devices += [_cuda_device(i) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return {"version": torch.__version__, "devices": devices, "threads": torch.get_num_threads(), "gpu": _gpus()}


def _cuda_device(index: int) -> str:
    import torch

    properties = torch.cuda.get_device_properties(index)
    return f"cuda:{index} {properties.name}, {properties.total_memory / 2**30:.0f} GiB"


def _gpus() -> list[str]:
    """What the NVIDIA driver reports, also when torch cannot use it."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout.strip().splitlines()
    except (OSError, subprocess.SubprocessError):
        return []


def _disk() -> Facts:
    cache = cache_dir()
    huggingface = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    return {
        "free here": f"{shutil.disk_usage(Path.cwd()).free / 1e9:.1f} GB",
        "onebit cache": f"{cache}, {_folder_mb(cache):.1f} MB",
        "Hugging Face cache": f"{huggingface}{'' if huggingface.is_dir() else ', not there'}",
    }


def _folder_mb(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.glob("*") if path.is_file()) / 1e6 if folder.is_dir() else 0.0


def _extras() -> Facts:
    found: Facts = {}
    for extra, modules in EXTRAS.items():
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        found[extra] = f"missing {', '.join(missing)}: pip install 'onebit[{extra}]'" if missing else "installed"
    return found
