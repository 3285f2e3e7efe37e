"""The result file has the keys that readers of numbers rely on, and refuses what is not a number."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from types import ModuleType

import pytest

from onebit.eval.record import _slug

RECORD = Path(__file__).parents[2] / "benchmarks" / "record.py"


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("record", RECORD)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    return module


def test_the_file_has_the_standard_keys(record: ModuleType) -> None:
    path = record.write_result("speed", {"threads": 2}, {"tokens_per_s": 3.5}, {"samples": [3.4, 3.6]})
    result = json.loads(path.read_text())
    assert list(result) == ["benchmark", "date", "commit", "machine", "versions", "config", "figures", "samples"]
    assert result["figures"] == {"tokens_per_s": 3.5}
    assert path.name == f"speed_{result['machine']['name']}_{result['date'][:7].replace('-', '')}.json"


@pytest.mark.parametrize("value", [math.nan, math.inf, "3", None, True])
def test_a_figure_must_be_a_finite_number(record: ModuleType, value: object) -> None:
    with pytest.raises(ValueError, match="figure 'x'"):
        record.write_result("speed", {}, {"x": value})


def test_extra_keys_must_not_hide_standard_ones(record: ModuleType) -> None:
    with pytest.raises(ValueError, match="figures"):
        record.write_result("speed", {}, {}, {"figures": {}})


def test_a_processor_name_becomes_a_short_file_name() -> None:
    assert _slug("AMD EPYC 7B13 64-Core Processor") == "amd-epyc-7b13"
    assert _slug("Intel(R) Xeon(R) CPU @ 2.20GHz") == "intel-xeon"
