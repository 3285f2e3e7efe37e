"""The examples of pure training run as their docstrings say; pure1bit_sft.py is run by the tests of tests/seeds."""

from __future__ import annotations

import ast
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

import torch

from onebit.train import sft as recipe

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


def losses_in(text: str) -> list[float]:
    return [float(found) for found in re.findall(r"^step \d+\S* +loss (\d+\.\d+)", text, re.M)]


def test_the_smallest_loop(capsys: pytest.CaptureFixture[str]) -> None:
    scene = runpy.run_path(str(EXAMPLES / "pure1bit_example.py"))
    losses = scene["main"](steps=60)
    assert sum(losses[-5:]) < 0.4 * sum(losses[:5])
    said = capsys.readouterr().out
    assert losses_in(said)[0] == pytest.approx(losses[0], abs=1e-3)
    assert set(ast.literal_eval(said.splitlines()[-1].partition(": ")[2])) <= {-1, 0, 1}


def test_the_block_of_the_readme(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    runpy.run_path(str(EXAMPLES / "readme_example_pure1bit.py"), run_name="__main__")
    said = capsys.readouterr().out
    losses = losses_in(said)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.5 * losses[0]
    assert said.endswith("codes: [-1, 0, 1]\nbytes a weight: 1.25\n")


def test_the_readme_shows_the_code_of_its_example() -> None:
    code = (EXAMPLES / "readme_example_pure1bit.py").read_text(encoding="utf-8").split('"""\n\n', 2)[1]
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    assert code in blocks


def test_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A fourth of its steps: the loss falls, latents take several times the memory, the engine runs the file."""
    monkeypatch.setattr(recipe, "draw_loss_curve", lambda folder: [])
    scene: dict[str, Any] = runpy.run_path(str(EXAMPLES / "pure1bit_sft_demo.py"))
    scene["main"](["--steps", "24", "--output-dir", str(tmp_path)])
    said = capsys.readouterr().out
    first, last = map(float, re.findall(r"loss fell from (\d\S+) to (\d\S+) nats", said)[0])
    assert last < 0.5 * first
    bytes_of = {name: float(value) for name, value in re.findall(r"^  (\S+) +(\d\S+) bytes a weight", said, re.M)}
    assert bytes_of["hybrid-fp32"] == 16
    assert 1.25 < bytes_of["pure-int8"] < 1.5  # codes and counters; scales and moments are many in a small model
    assert bytes_of["pure-int4"] == pytest.approx(bytes_of["pure-int8"] - 0.5, abs=0.01)
    assert f"{tmp_path / 'model.1bit'}: {(tmp_path / 'model.1bit').stat().st_size:,} bytes" in said
    assert said.count("What is the capital of") == 8
    assert re.search(r"the engine gave [0-8] of 8 answers", said)
