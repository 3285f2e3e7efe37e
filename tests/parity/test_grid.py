"""Torch and the engine compute the same model: the grid of benchmarks/parity.py, held to its bounds."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from onebit.engine import library_path
from onebit.errors import EngineError

pytest.importorskip("torch")

# The bounds of onebit.eval.comparison. What is found lies at 7e-7 for float activations; with int8 ones at 2e-8,
# 3e-4 and 6e-3. Sign activations jump only where a value crosses zero: at most once in some hundred cases.
FLOAT_MAX = 1e-4
INT8_MEDIAN, INT8_P99, INT8_MAX = 1e-4, 1e-3, 2e-2


@pytest.fixture(scope="module")
def parity() -> ModuleType:
    try:
        library_path()
    except EngineError as problem:
        pytest.skip(str(problem))
    path = Path(__file__).parents[2] / "benchmarks" / "parity.py"
    spec = importlib.util.spec_from_file_location("onebit_parity_grid", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def hold_to_bounds(found: dict[Any, Any], figures: dict[str, float]) -> None:
    """All the promises, with the names of the cases that break one."""
    bound = {"none": FLOAT_MAX, "int8": INT8_MAX, "sign": INT8_MAX}
    too_far = {c.name: p.relative.max() for c, p in found.items() if not p.relative.max() <= bound[c.activation]}
    assert not too_far
    assert figures["int8_median"] <= INT8_MEDIAN
    assert figures["int8_p99"] <= INT8_P99
    assert figures["sign_p99"] <= FLOAT_MAX
    parted = {c.name: (p.parted_at, p.parted_margin) for c, p in found.items() if p.parted_margin > bound[c.activation]}
    assert not parted
    assert not [c.name for c, p in found.items() if c.activation == "none" and p.parted_at is not None]
    assert not [c.name for c, p in found.items() if not p.decode_equals_batch]
    assert not [c.name for c, p in found.items() if not p.scalar_equals_simd]


@pytest.mark.timeout(300)
def test_quick_grid(parity: ModuleType) -> None:
    found = parity.run(list(parity.quick_cases()), layers=False)  # no bound is on them, and they take half of the time
    hold_to_bounds(found, parity.figures(found))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_full_grid(parity: ModuleType) -> None:
    found = parity.run(list(parity.full_cases()))
    hold_to_bounds(found, parity.figures(found))


def test_the_grids_cover_what_they_claim(parity: ModuleType) -> None:
    quick, full = list(parity.quick_cases()), list(parity.full_cases())
    for cases in (quick, full):
        assert len({case.name for case in cases}) == len({*map(id, cases)}) == len(cases)
    for case_set in (quick, full):
        for flag, values in parity.FLAGS.items():
            for value, settings in values.items():
                assert any(settings.items() <= case.config.items() for case in case_set), (flag, value)
        for key, wanted in (("quantizer", 4), ("granularity", 3), ("group_size", 4), ("activation_quantizer", 3)):
            assert len({case.config.get(key) for case in case_set}) == wanted, key
        assert {(case.layout, case.pack_mode) for case in case_set} >= {("exchange", "ternary5"), ("run", "ternary5")}


@pytest.mark.parametrize(
    "mistake",
    [
        {"norm_eps": 1e-3},
        {"rope_theta": 9000.0},
        {"use_residual_scaling": True},
    ],
)
def test_a_wrong_formula_is_far_outside_the_bounds(parity: ModuleType, tmp_path: Path, mistake: dict[str, Any]) -> None:
    """The bounds mean something: one setting off by little, in the file only, is found."""
    from onebit.eval.verify import verify
    from onebit.formats.export import from_model
    from onebit.formats.onebit_file import write
    from onebit.models import OneBitConfig, OneBitForCausalLM

    case = next(c for c in parity.quick_cases() if c.activation == "int8")
    right = parity.random_model(case)
    wrong = OneBitForCausalLM(OneBitConfig(**(case.config | mistake)))
    wrong.load_state_dict(right.state_dict())
    for name, model in (("right", right), ("wrong", wrong)):
        write(tmp_path / name, from_model(model))
    ids = np.arange(64) % 150
    assert verify(right, tmp_path / "right", ids=ids).passed
    report = verify(right, tmp_path / "wrong", ids=ids)
    assert not report.passed
    assert report.logits.maximum > 1e-3
    assert report.reasons[-1].startswith("layer 0, on the same input")
