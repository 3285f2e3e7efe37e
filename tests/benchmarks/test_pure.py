"""The benchmark of pure training: what its arms' names mean, and what its table says."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "pure.py"


@pytest.fixture(scope="module")
def pure() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_pure", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["benchmark_pure"] = module
    before = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


def test_the_name_of_an_arm(pure: ModuleType) -> None:
    assert pure.Arm.of("hybrid@5e-3") == pure.Arm("hybrid", 5e-3)
    assert pure.Arm.of("int8@0.12+4:int8") == pure.Arm("int8", 0.12, 4, "int8")
    assert pure.Arm.of("bop@0.2") == pure.Arm("bop", 0.2)
    assert pure.Arm.of("int4@0.06+2") == pure.Arm("int4", 0.06, 2, "bfloat16")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("int8", "could not convert"),
        ("int2@0.1", "'int2' is not one of float, hybrid"),
        ("int8@0", "rate must be positive"),
        ("int8@0.1+3", "K a divisor of 8"),
        ("int8@0.1+4:float", "'float' is not one of bfloat16, int8, deposit"),
    ],
)
def test_a_name_that_says_nothing(pure: ModuleType, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pure.Arm.of(name)


def test_a_job_is_named_by_what_decides_it(pure: ModuleType) -> None:
    told = {"task": "scratch", "size": "3M", "arm": "int8@0.12", "seed": 0, "steps": 4, "base_steps": 0, "lr": 3e-3}
    told["data"] = "stdlib"
    names = {pure.Job(**{**told, **change}).name for change in ({}, {"seed": 1}, {"arm": "int4@0.12"}, {"steps": 5})}
    assert len(names) == 4
    assert pure.Job(**told).name in names


def test_the_table_has_a_line_for_each_arm(pure: ModuleType) -> None:
    about = {"task": "scratch", "bytes_per_weight": 1.25, "ms_per_step": 200.0, "zeros": 0.3, "flips_mean": 0.001}
    results = [{**about, "arm": arm, "bpb": bpb} for arm, bpb in (("a@1", 2.0), ("a@1", 3.0), ("b@1", 4.0))]
    lines = pure.table(results).splitlines()
    assert len(lines) == 3
    assert "2.5000   2.0000 3.0000" in lines[1]


def test_every_method_takes_a_step_and_the_bytes_that_it_is_said_to(
    pure: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    training = importlib.import_module("pure_training")
    # codes, counters of what has some, and float32 state; moments of rows and columns are the rest, below 0.1
    expected = {"float": 16.0, "hybrid": 16.0, "int8": 1.25, "int4": 0.75, "none": 0.5}
    expected |= {"shadow": 13.25, "shadow_sgd": 5.25, "gradient_buffer": 4.5, "bop": 4.5, "dqt": 8.5}
    assert set(expected) == set(pure.METHODS)
    text = torch.randint(0, 256, (2, 17), generator=torch.Generator().manual_seed(0))
    for method, size in expected.items():
        model = training.Decoder(training.SIZES["0.7M"])
        optimizer, _ = training.prepare(model, pure.Arm(method, 0.1), 1e-3)
        for _ in range(2):
            training.loss_of(model, text).backward()
            optimizer.step()
            optimizer.zero_grad()
        assert size <= training.bytes_per_weight(model, optimizer) < size + 0.1, method


def test_each_method_counts_at_the_rate_that_was_best_on_the_first_seed(
    pure: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    figures_of = importlib.import_module("pure_figures").figures_of
    about = {"task": "scratch", "bytes_per_weight": 1.25, "ms_per_step": 200.0, "zeros": 0.3, "changed": 0.1}
    about |= {"flips_first_half": 0.002, "flips_second_half": 0.001}
    runs = [("hybrid@1", 0, 2.0), ("hybrid@1", 1, 4.0), ("hybrid@2", 0, 2.5)]
    runs += [("int8@0.1", 0, 1.9), ("int8@0.1", 1, 4.2), ("int8@0.2", 0, 1.95), ("int8@0.2", 1, 0.1)]
    runs += [("int8@0.1+4:int8", 0, 3.0)]
    figures = figures_of([{**about, "arm": arm, "seed": seed, "bpb": bpb} for arm, seed, bpb in runs])
    assert figures["int8_over_hybrid_scratch"] == pytest.approx((1.9 / 2.0 + 4.2 / 4.0) / 2, abs=1e-5)
    assert figures["int8_over_hybrid_scratch_worst_seed"] == pytest.approx(1.05)
    assert (figures["int8_scratch_rate"], figures["hybrid_scratch_rate"]) == (0.1, 1.0)
    assert figures["int8_4_int8_over_hybrid_scratch"] == pytest.approx(1.5)
    assert figures["bytes_per_weight_int8"] == 1.25
