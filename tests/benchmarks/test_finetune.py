"""The arms and figures of benchmarks/finetune.py, and one toy run of it, killed and taken up again."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A script of benchmarks/ as a module, without leaving its folder on the path."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def sample(arm: str, seed: int, loss: float) -> dict[str, Any]:
    told = {"arm": arm, "seed": seed, "loss": loss, "bits_per_byte": loss / 3, "kl_base": 0.5, "seconds": 1.0}
    return told | ({} if arm in ("base", "float") else {"kl_twin": 0.25})


def test_figures_are_of_mean_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    module = load("finetune_figures", monkeypatch)
    losses = {"float": (4.0, 4.2), "ste": (5.0, 5.2), "lambda": (4.4, 4.2), "lambda+subnorms": (4.5, 4.15)}
    samples = [sample(arm, seed, loss) for arm, both in losses.items() for seed, loss in enumerate(both)]
    samples.append(sample("ste+g64", 1, 4.1))  # on one seed only: told, compared there, not chosen
    figures, best = module.figures_of(samples)
    assert best == "lambda"
    assert figures["student_over_float"] == pytest.approx((4.4 / 4.0 + 4.2 / 4.2) / 2, abs=1e-5)
    assert figures["ste_g64_gap_closed"] == pytest.approx(1.1)
    assert figures["student_over_float_worst_seed"] == pytest.approx(1.1, abs=0.03)
    assert figures["gap_closed"] == pytest.approx(0.8)
    assert figures["ste_gap_closed"] == 0.0
    assert module.effects(samples)[0].endswith("made no clear difference")


def test_a_name_says_the_ingredients(monkeypatch: pytest.MonkeyPatch) -> None:
    module = load("finetune_figures", monkeypatch)
    what = module.ingredients_of("lambda+distill+g64")
    assert (what.lambda_fraction, what.distills, what.hard_label_weight, what.group_size) == (0.4, True, 0.0, 64)
    assert not what.from_twin
    assert module.ingredients_of("ste+twin+mixdistill").from_twin
    assert module.rate_arm("lambda+distill+g64") == "lambda+distill"
    for wrong in ("lamda", "float+distill", "ste+g64+g256", "naive+distill", "naive+twin", "ste+subnorm"):
        with pytest.raises(ValueError, match="'"):
            module.ingredients_of(wrong)


def test_a_killed_benchmark_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = load("finetune", monkeypatch)
    texts = load("quality_texts", monkeypatch)
    words = "a small text that is said again and again, so that a model of nothing can learn it by heart. "
    monkeypatch.setattr(texts, "texts", lambda dataset, data_dir: (words * 200, words * 30))
    tiny = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    monkeypatch.setattr(module, "QUICK_SHAPE", module.SHAPE | tiny | {"head_dim": 16, "intermediate_size": 64})
    counts = {"steps": 3, "tune_steps": 2, "base_steps": 12, "vocab_size": 280, "calibration_windows": 2}
    monkeypatch.setattr(module, "QUICK", counts)
    arms = ["naive", "lambda+subnorms+distill", "ste+calibrated+rotation", "ste+tables"]
    monkeypatch.setattr(sys, "argv", ["finetune", "--quick", "--work-dir", str(tmp_path), "--only", *arms])
    module.main()
    lines = (tmp_path / "results.jsonl").read_text(encoding="utf-8").splitlines()
    results = {line["arm"]: line for line in map(json.loads, lines)}
    assert list(results) == ["base", "float", "ste", *arms]
    assert results["base"]["kl_base"] == 0.0
    assert results["naive"]["kl_twin"] > 0
    # The last result is lost with half of its line: it alone is run again, and comes out the same.
    (tmp_path / "results.jsonl").write_text("\n".join([*lines[:-1], lines[-1][:40]]), encoding="utf-8")
    capsys.readouterr()
    module.main()
    again = [
        json.loads(line) for line in (tmp_path / "results.jsonl").read_text(encoding="utf-8").splitlines()[len(lines) :]
    ]
    assert [line["arm"] for line in again] == ["ste+tables"]
    assert again[0]["loss"] == results["ste+tables"]["loss"]
    assert "base on" not in capsys.readouterr().out
