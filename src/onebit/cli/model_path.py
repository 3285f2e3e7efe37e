"""Which `.1bit` file a MODEL argument means: the file itself, the tiny model in the package, or a checkpoint folder or
GGUF file converted once and kept in the cache under the hash of its contents."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

from onebit import __version__
from onebit.errors import FormatError, MissingExtraError

__all__ = ["TINY", "cache_dir", "resolve_model", "tiny_model_path"]

TINY = "tiny"  # the name that always means the model in the package

# What an export reads; optimizer state and logs beside it do not change the model.
_MODEL_FILES = ("*.json", "*.safetensors", "*.jinja")


def tiny_model_path() -> Path:
    """The small model that comes with onebit. Raises FormatError when this copy was built without it."""
    path = Path(__file__).resolve().parents[1] / "tiny" / "tiny.1bit"
    if not path.is_file():
        raise FormatError("this copy of onebit has no tiny model inside; name a .1bit file or a checkpoint folder")
    return path


def cache_dir() -> Path:
    """Where exported checkpoints are kept: ONEBIT_CACHE, else the platform's folder for things that can be remade."""
    if given := os.environ.get("ONEBIT_CACHE"):
        return Path(given)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "onebit" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "onebit"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "onebit"


def resolve_model(model: Path | str | None) -> Path:
    """The `.1bit` file to run. A checkpoint folder (this needs torch) or a GGUF file is converted first, unless the
    cache has it."""
    if model is None or str(model) == TINY:
        return tiny_model_path()
    path = Path(model)
    if path.is_dir():
        return _exported(path)
    if not path.is_file():
        raise FormatError(f"{path}: no such file or folder; give a .1bit file, a checkpoint folder, or '{TINY}'")
    with path.open("rb") as file:
        return _converted(path) if file.read(4) == b"GGUF" else path


def _converted(path: Path) -> Path:
    """A GGUF file in the cache, by its contents."""
    digest = hashlib.blake2b(__version__.encode(), digest_size=16)
    _hash_file(digest, path)
    target = cache_dir() / f"{digest.hexdigest()}.1bit"
    if not target.is_file():
        from onebit.formats.gguf_import import from_gguf
        from onebit.formats.onebit_file import write

        print(f"converting {path} to the cache ({target})", file=sys.stderr)
        file = from_gguf(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        write(target, file)
    return target


def _exported(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        inside = sorted(folder.glob("*.1bit"))
        if len(inside) == 1:
            return inside[0]
        raise FormatError(f"{folder}: no config.json and no single .1bit file in it; give a checkpoint folder")
    target = cache_dir() / f"{_content_hash(folder)}.1bit"
    if not target.is_file():
        print(f"exporting {folder} to the cache ({target})", file=sys.stderr)
        _export(folder, target)
    return target


def _content_hash(folder: Path) -> str:
    """Hash of the names and bytes of the files an export reads, and of the version that exports."""
    digest = hashlib.blake2b(__version__.encode(), digest_size=16)
    for path in sorted({path for pattern in _MODEL_FILES for path in folder.glob(pattern)}):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        _hash_file(digest, path)
    return digest.hexdigest()


def _hash_file(digest: Any, path: Path) -> None:
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)


def _export(folder: Path, target: Path) -> None:
    try:
        from onebit.formats.checkpoint import from_checkpoint
    except ModuleNotFoundError as missing:
        raise MissingExtraError("train", "running a checkpoint folder") from missing
    from onebit.formats.onebit_file import write

    target.parent.mkdir(parents=True, exist_ok=True)
    write(target, from_checkpoint(folder))
