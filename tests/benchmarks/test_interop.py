"""benchmarks/interop.py: what its figures say of made-up answers, and its page beside the native engine."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onebit.formats import onebit_file, web_folder
from onebit.formats.random_model import random_description, random_file

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
MODULES = ("interop", "interop_runtimes", "interop_wasm", "record")


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of benchmarks/, without leaving its folder on the path or it among the modules."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The file of a random model with 97 tokens."""
    path = tmp_path / "model.1bit"
    onebit_file.write(path, random_file(random_description(max_seq_len=32)))
    return path


class Counting:
    """After token t comes t + 1, and t + 2 is behind it by `behind`, of logits up to 1."""

    behind = 0.5

    def logits(self, ids_T: np.ndarray) -> np.ndarray:
        logits_TV = np.zeros((len(ids_T), 97), np.float32)
        logits_TV[np.arange(len(ids_T)), ids_T + 1] = 1
        logits_TV[np.arange(len(ids_T)), ids_T + 2] = 1 - self.behind
        return logits_TV


def test_a_continuation_may_part_at_a_near_tie_and_nowhere_else(load: Any) -> None:
    interop = load("interop")
    half = interop.LENGTH // 2
    texts_ST = np.full((3, interop.LENGTH), 9, np.int32)
    greedy_SN = np.array([[10, 11, 12], [10, 12, 13], [10, 30, 31]])
    found = interop.Outputs(np.zeros((3, 2 * half, 97)), greedy_SN, 0)
    reference = Counting()
    assert interop.greedy_figures(reference, 1.0, texts_ST, found) == {
        "greedy_equal": pytest.approx(1 / 3),
        "greedy_identical": pytest.approx(1 / 3),
    }
    reference.behind = interop.NEAR_TIE / 2
    figures = interop.greedy_figures(reference, 1.0, texts_ST, found)
    assert figures["greedy_equal"] == pytest.approx(2 / 3)
    assert figures["greedy_identical"] == pytest.approx(1 / 3)


def test_agreement_is_of_first_choices(load: Any) -> None:
    expected_STV = np.array([[[0.0, 1.0], [2.0, 1.0], [0.0, 3.0], [1.0, 0.0]]])
    found_STV = np.array([[[0.5, 0.6], [9.0, 0.0], [1.0, 0.0], [2.0, 1.9]]])
    assert load("interop").agreement(expected_STV, found_STV) == 0.75


def test_one_bit_and_one_token_off_the_native_engine_are_seen(load: Any, model: Path) -> None:
    interop = load("interop")
    texts_ST = np.random.default_rng(0).integers(0, 97, (4, 16)).astype(np.int32)
    told, other = (interop.engine(model, texts_ST, count, kv="default") for count in (8, 0))
    equal = {"greedy_equal": 1.0, "logits_equal": 1.0}
    assert interop.native_figures(model, [(texts_ST, told), (texts_ST, other)]) == equal
    other.logits.view(np.int32)[3, 15, 96] ^= 1
    told.greedy[1, 7] = (told.greedy[1, 7] + 1) % 97
    assert interop.native_figures(model, [(texts_ST, told), (texts_ST, other)]) == {
        "greedy_equal": 0.75,
        "logits_equal": 0.0,
    }


@pytest.mark.parametrize("variant", ["relaxed", "plain"])
def test_a_page_s_answers_are_the_native_engine_s(
    load: Any, model: Path, wasm_engines: Path, monkeypatch: pytest.MonkeyPatch, variant: str
) -> None:
    if not (os.environ.get("ONEBIT_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")):
        pytest.skip("needs Chromium: the package chromium, or its path in ONEBIT_CHROMIUM")
    pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra dev")
    monkeypatch.setattr(web_folder, "wasm_path", lambda name: wasm_engines / name)
    interop = load("interop")
    texts_ST = np.random.default_rng(1).integers(0, 97, (2, 16)).astype(np.int32)
    assert model.name == web_folder.MODEL_NAME
    found = interop.wasm(model.parent, texts_ST, 6, variant)
    assert found.logits.shape == (2, 16, 97)
    assert found.file_bytes == model.stat().st_size
    assert interop.native_figures(model, [(texts_ST, found)]) == {"greedy_equal": 1.0, "logits_equal": 1.0}
