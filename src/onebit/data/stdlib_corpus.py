"""The built-in corpus `stdlib`: the .py sources of the running interpreter's standard library.

Real text that every machine has, without a download. What differs between installations of one Python version is left
out, so that two machines get the same corpus: tests, installed packages, the parts that distributions ship apart
(idlelib, tkinter, lib2to3, distutils, turtledemo, ensurepip), files generated at build time, and `encodings`, whose
tables of hexadecimal numbers are no text.
"""

from __future__ import annotations

import sysconfig
from pathlib import Path

from onebit.errors import DataError

__all__ = ["EXCLUDED_FOLDERS", "stdlib_files"]

EXCLUDED_FOLDERS = frozenset(
    {
        "test",
        "tests",
        "idle_test",
        "site-packages",
        "dist-packages",
        "__pycache__",
        "__phello__",
        "idlelib",
        "tkinter",
        "lib2to3",
        "distutils",
        "turtledemo",
        "ensurepip",
        "encodings",
    }
)
# Names at the top that only some builds have.
_GENERATED = ("_sysconfigdata", "sitecustomize", "usercustomize", "_distutils_system_mod")


def stdlib_files(root: Path | None = None) -> list[tuple[str, Path]]:
    """List the corpus as (name relative to the library, path), sorted by name.

    Raises:
        DataError: the interpreter's library holds no sources (a frozen or stripped Python).
    """
    library = root if root is not None else Path(sysconfig.get_path("stdlib"))
    files = []
    for path in library.rglob("*.py"):
        parts = path.relative_to(library).parts
        if EXCLUDED_FOLDERS.isdisjoint(parts[:-1]) and not parts[-1].startswith(_GENERATED):
            files.append(("/".join(parts), path))
    if not files:
        raise DataError(f"no standard library sources in {library}; give --data a folder of .txt files instead")
    return sorted(files)
