"""benchmarks/search.py from text to record, on models so small that it says nothing."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("scipy")
pytest.importorskip("networkx")
pytest.importorskip("transformers")

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
MODULES = ("search_small", "search_deep", "record")


def test_the_benchmark_measures_what_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    small, deep, record = (importlib.import_module(name) for name in MODULES)
    spec = importlib.util.spec_from_file_location(
        "search_benchmark", BENCHMARKS / "search.py"
    )  # tests/search is `search`
    assert spec is not None
    assert spec.loader is not None
    search = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(search)
    written: list[tuple[Any, ...]] = []
    monkeypatch.setattr(record, "write_result", lambda *given: written.append(given))
    shape = {**search.SHAPE, "hidden_size": 32, "num_heads": 2, "intermediate_size": 32, "num_layers": 1}
    shapes = {"small": {**shape, "tie_word_embeddings": True}, "deep": {**shape, "tie_word_embeddings": True}}
    for module, name, value in (
        (search, "SHAPES", shapes),
        (search, "VOCABULARY", 280),
        (search, "STEPS", {"small": 2, "deep": 2}),
        (small, "LEVELS", ("binary", "int8")),
        (small, "SHARE", 0.2),
        (small, "BUDGETS", (30, 70)),
        (deep, "SEEDS", (0, 1)),
    ):
        monkeypatch.setattr(module, name, value)
    text = "".join(f"def f{i}(x):\n    return x + {i % 9}\n" for i in range(2000))
    folder = tmp_path / "wikitext-2"
    folder.mkdir()
    (folder / "test.txt").write_text(text)
    (folder / "valid.txt").write_text(text)
    flags = f"--data-dir {tmp_path} --runs-dir {tmp_path} --tokens 256 --evaluations 6 --heal-steps 2"
    monkeypatch.setattr(sys, "argv", ["search.py", *flags.split()])
    search.main()
    (name, config, figures, extra), *_ = written
    assert (name, config["evaluations"]) == ("search", 6)
    assert figures["maps"] == 2**7  # the kinds of matrices, and the embedding
    for strategy in ("sensitivity", "expander", "evolution", "random"):
        assert figures[f"evaluations_share_{strategy}"] <= 20
        assert all(figures[f"optimum_gap_{strategy}_{percent}"] >= 0 for percent in small.BUDGETS)
    for size in ("ternary", "ternary_int4", "int4_int8"):
        assert figures[f"beats_random_share_{size}"] in (0, 0.5, 1)
    for row in extra["samples"]["deep"]["rows"]:
        assert row["bytes"] <= row["budget_bytes"]
        assert row["evaluations"] <= 6
    assert figures["healed_loss_found"] > 0
