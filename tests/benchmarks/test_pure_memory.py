"""benchmarks/pure_memory.py: its figures from made-up samples, and a toy model measured here."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
GB = 10**9


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of benchmarks/, without leaving its folder on the path or it among the modules."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("pure_memory", "pure_memory_process"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module


def sample(arm: str, layers: int, need: float, **more: Any) -> dict[str, Any]:
    weights = layers * 100_000_000
    peaks = {"forward": 1 * GB, "backward": 2**31, "step": 1 * GB}
    about = {"arm": arm, "layers": layers, "weights": weights, "need": need, "bytes_per_weight": need / weights}
    return about | {"between_steps": need, "counted": need, "peaks": peaks} | more


def test_the_hybrid_s_bytes_are_what_more_layers_add(load: Any) -> None:
    module = load("pure_memory")
    samples = [
        *(sample(arm, 30, need * 3e9) for arm, need in (("int8", 1.25), ("int4", 0.8), ("int8+bfloat16", 3.25))),
        *(sample(arm, 30, need * 3e9) for arm, need in (("int8+int8", 2.3), ("int8/group128", 1.29))),
        sample("hybrid", 20, 16.1e9),
        sample("hybrid", 2, 1.7e9),  # 0.1 GB whatever the layers are
        sample("hybrid", 4, 3.3e9),
    ]
    figures = module.figures_of(samples)
    assert figures["bytes_per_weight_int8_peak"] == 1.25
    assert figures["bytes_per_weight_hybrid_bf16_slope"] == pytest.approx(8.0)
    assert figures["hybrid_bf16_over_int8"] == pytest.approx(6.4)
    assert figures["hybrid_bf16_over_int4"] == pytest.approx(10.0)
    assert (figures["with_bf16_sum_int8"], figures["with_int8_sum_int8"]) == (3.25, 2.3)
    assert figures["hybrid_bf16_largest_layers"] == 20
    assert figures["bytes_per_weight_hybrid_bf16_largest"] == pytest.approx(8.05)
    assert figures["step_gib_int8"] == 2.0


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks of resident memory are Linux's")
@pytest.mark.parametrize("arm", ["int4", "int8+int8", "int8/group128", "hybrid"])
def test_a_toy_model_takes_two_steps(load: Any, monkeypatch: pytest.MonkeyPatch, arm: str) -> None:
    """What a process has says nothing of so small a model: that there are peaks, and what was counted."""
    process = load("pure_memory_process")
    monkeypatch.setattr(process, "SHAPE", process.TINY)
    monkeypatch.setattr(process, "VOCABULARY", 512)
    told = process.measure(arm, 3, 4, torch.device("cpu"))
    weights = 3 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 128)
    assert told["weights"] == weights
    each = {"int4": 0.75, "int8+int8": 1.25 + 1.03, "int8/group128": 1.25 + 16 / 64, "hybrid": 8.0}[arm]
    # Norms, and float32 moments of rows and columns, weigh more in a small model.
    assert each * weights < told["counted"] < (each + 0.7) * weights
    assert told["table"] == 512 * 64 * 2
    assert told["activations"] > 4 * 64 * 2
    assert min(told["peaks"].values()) > told["baseline"] / 2
    assert "bytes a weight" in load("pure_memory").line(told)
