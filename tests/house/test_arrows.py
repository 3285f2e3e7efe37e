"""Imports point one way only: the contracts of pyproject.toml hold, and triton stays behind its own files."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "onebit"


def test_the_import_contracts_hold() -> None:
    pytest.importorskip("importlinter")
    command = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    run = subprocess.run(
        [sys.executable, "-c", command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-1000:]


def test_every_room_stands_in_the_layers() -> None:
    """A new folder must be given its place; import-linter says nothing about one that it was not told of."""
    declared = (ROOT / "pyproject.toml").read_text().split("layers = [")[1].split("]")[0]
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    words = set(declared.replace('"', " ").replace("(", " ").replace(")", " ").replace(",", " ").split())
    assert rooms <= words


def test_triton_lives_in_its_own_files() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name == "nn" and path.name.startswith("triton_"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not any(name.split(".")[0] == "triton" for name in names), f"{path} imports triton"
