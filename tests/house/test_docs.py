"""The documentation does not lag behind: command pages are fresh, links lead somewhere, the README's tree exists."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import onebit

ROOT = Path(__file__).parents[2]


def test_command_pages_are_fresh() -> None:
    run = subprocess.run(
        [sys.executable, "tools/make_cli_pages.py", "--check"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr


def test_the_numbers_of_the_readme_are_those_of_the_results() -> None:
    run = subprocess.run([sys.executable, "tools/make_numbers.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_links_between_pages_lead_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
    assert pages
    for page in pages:
        for target in re.findall(r"\]\(([^)#\s]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target and not target.startswith("mailto:"):
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


def test_the_tree_of_the_readme_exists() -> None:
    tree = (ROOT / "README.md").read_text(encoding="utf-8").split("## The house")[1].split("```")[1]
    parents: list[str] = []
    for line in filter(None, tree.splitlines()):
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        parents = [*parents[:depth], name]
        path = ROOT / "".join(parents)
        assert path.exists(), f"README's tree names {path.relative_to(ROOT)}"


def test_make_lists_its_targets() -> None:
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("demo", "test", "test-slow", "check", "bench", "wheel", "docs", "clean"):
        assert f"make {target} " in listed


def test_the_code_of_the_python_page_runs() -> None:
    pytest.importorskip("torch")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/reference/python.md").read_text(encoding="utf-8"), re.S)
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, "docs/reference/python.md", "exec"), {})


def test_the_python_page_names_what_the_package_offers() -> None:
    intro = (ROOT / "docs/reference/python.md").read_text(encoding="utf-8").split("## ")[0]
    named = {name.removeprefix("onebit.") for name in re.findall(r"`([\w.]+)`", intro)}
    assert named >= set(onebit.__all__) - {"__version__"}


def test_the_configuration_page_has_every_field_and_its_default() -> None:
    pytest.importorskip("transformers")
    from onebit.models import OneBitConfig

    page = (ROOT / "docs/reference/configuration.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.+?`) \| (.+?) \|", page, re.M)
    defaults = {name: default.strip("`") for names, default in rows for name in re.findall(r"`(\w+)`", names)}
    own = [name for name in OneBitConfig.__annotations__ if name not in ("model_type", "keys_to_ignore_at_inference")]
    for name in own:
        if name != "attribute_map":
            value = getattr(OneBitConfig, name)
            given = defaults[name]
            if value is None:
                assert given in ("none", "derived", "num_heads", "hidden_size / num_heads"), name
            else:
                assert json.loads(given) == value if not isinstance(value, str) else given == value, name
