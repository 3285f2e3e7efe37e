"""benchmarks/pure_step_host.py: a few steps, without a GPU, of what a GPU would be asked to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "pure_step_host.py"


def test_a_pure_step_asks_a_gpu_for_less_than_the_hybrid() -> None:
    # A program of its own, for it lets the CPU's tensors pass for a GPU's.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    made = subprocess.run(
        [sys.executable, SCRIPT, "--quick"], capture_output=True, text=True, timeout=300, env=environment
    )
    assert made.returncode == 0, made.stderr
    figures = {line.split()[0]: line.split()[1] for line in made.stdout.splitlines() if len(line.split()) == 2}
    asked = {
        arm: sum(float(figures[f"{kind}_a_matrix_{arm}"]) for kind in ("operations", "launches"))
        for arm in ("hybrid", "int8", "int4")
    }
    assert asked["int8"] == asked["int4"] < 0.75 * asked["hybrid"]
    assert 8 < float(figures["launches_a_matrix_int8"]) < 9, "8 for a matrix, and 1 for all that fire"
    assert figures["launches_a_matrix_hybrid"] == "0"
