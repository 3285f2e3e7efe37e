"""benchmarks/hybrid_step.py: its ratios from made-up samples, and one toy case measured for real."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Modules of benchmarks/, without leaving its folder on the path or them among the modules."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("hybrid_step", "hybrid_step_figures", "hybrid_step_memory"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module


def sample(arm: str, seconds: list[float], **more: Any) -> dict[str, Any]:
    told = {"case": "layer", "dtype": "float32", "mode": "compiled", "device": "cpu", "peak_mb": 10.0, "kept_mb": 4.0}
    return told | {"arm": arm, "seconds": seconds} | more


def test_ratios_are_taken_within_a_round_and_the_worst_case_is_the_headline(load: Any, tmp_path: Path) -> None:
    figures = load("hybrid_step_figures")
    samples = [
        sample("linear", [1.0, 2.0, 4.0]),  # a machine that slows down disturbs no ratio
        sample("hybrid", [1.1, 2.2, 4.4], peak_mb=9.0, kept_mb=1.0),
        sample("linear", [1.0, 1.0, 1.0], case="block"),
        sample("hybrid", [1.0, 0.9, 7.0], case="block"),
    ]
    curves = [{"dtype": "float32", "device": "cpu", "eager": [1.0, 0.5], "compiled": [1.0, 0.6], "moved": [1.0, 0.5]}]
    found = figures.figures_of(samples, curves)
    assert found["hybrid_over_linear_compiled_cpu"] == pytest.approx(1.1)
    assert found["block_float32_hybrid_over_linear_compiled_cpu"] == pytest.approx(1.0)
    assert found["layer_float32_hybrid_over_linear_kept_memory_compiled_cpu"] == pytest.approx(0.25)
    assert found["hybrid_over_linear_peak_memory_compiled_cpu"] == pytest.approx(1.0)
    assert found["loss_compiled_from_eager_float32_cpu"] == pytest.approx(0.2)
    assert found["loss_noise_float32_cpu"] == 0.0
    assert "1.100" in figures.table(samples)
    figures.draw(samples, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_a_toy_case_is_measured(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    step: ModuleType = load("hybrid_step")
    monkeypatch.setattr(step, "MODES", ("eager",))
    shape = step.Shape(64, 48, inner=96, heads=2)
    samples = {s["arm"]: s for s in step.measure(shape, torch.float32, "cpu", rounds=2)}
    assert set(samples) == set(step.arms_on("cpu"))
    linear, hybrid = samples["linear"], samples["hybrid"]
    weights = 4 * 64 * 64 + 3 * 64 * 96
    assert linear["static_mb"] == pytest.approx(3 * 4 * (weights + 2 * 64) / 1e6, rel=1e-3)  # and counters of steps
    assert linear["peak_mb"] > linear["static_mb"] + 4 * weights / 1e6  # gradients at the least
    assert 0 < linear["gemm_share"] < 1
    # The inputs of all layers but the four that share theirs: a byte each instead of four
    assert hybrid["kept_mb"] < linear["kept_mb"]
    assert all(seconds > 0 for s in samples.values() for seconds in s["seconds"])


def test_losses_repeat_and_fall(load: Any) -> None:
    step: ModuleType = load("hybrid_step")
    first = step.losses("hybrid", "eager", torch.float32, "cpu", steps=8)
    assert first == step.losses("hybrid", "eager", torch.float32, "cpu", steps=8)
    assert first[-1] < first[0]
