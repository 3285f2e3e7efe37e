"""The tree speaks of the project only: no path or host of the machine it was written on, no drawer folders."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Written in pieces so that this file does not find itself.
MACHINE = re.compile(
    "|".join(
        [r"(?<![\w./~-])/" + "(?:wor" + "k|roo" + "t|hom" + r"e)/\w", "pyp" + r"i\.org", "debia" + r"n\.org/debian"]
    )
)
DRAWERS = {"utils", "helpers", "common", "misc", "base"}


def tracked_files() -> list[Path]:
    if shutil.which("git") is None:
        pytest.skip("git says which files belong to the tree, and it is not installed")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode != 0:
        pytest.skip("no git checkout")
    return [ROOT / name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def test_no_file_names_a_machine() -> None:
    found = []
    for path in tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {match.group()}" for match in MACHINE.finditer(text)]
    assert not found


def test_no_drawers() -> None:
    for path in tracked_files():
        parts = {*path.relative_to(ROOT).parent.parts, path.stem}
        assert not parts & DRAWERS, path


def test_shell_scripts_can_be_run() -> None:
    for name in ("tools/bootstrap.sh", ".ci/run"):
        assert (ROOT / name).stat().st_mode & 0o100, name


def test_constraints_pin_every_package_the_extras_name() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {
        re.sub(r"[-_.]+", "-", line.split("==")[0].lower())
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"], *extras["train"], *extras["dev"], *extras["docs"]]
    names = {re.sub(r"[-_.]+", "-", re.split(r"[\[<>=;! ]", need)[0].lower()) for need in needed}
    assert names <= pinned
