"""The engine in headless Chromium, with and without relaxed SIMD: the bits and the tokens of the native engine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onebit.cli.model_path import tiny_model_path
from onebit.engine import Model
from onebit.formats import onebit_file
from onebit.formats.random_model import random_description, random_file
from onebit.formats.web_folder import page_files

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "tiny_greedy.json").read_text(encoding="utf-8"))
IDS = [1, 5, 96, 0, 33, 33, 7, 64, 12, 90, 41, 2, 3, 58, 77, 20, 11, 19, 19]
MODELS = [
    {"layout": layout, "granularity": granularity}
    for layout in ("int8", "int4", "binary_t16", "ternary_t16", "ternary5_t16")
    for granularity in ("per_tensor", "per_row", "per_group")
]
LOAD = """
async (given) => {
  const { load, hasRelaxedSimd } = await import('/onebit.js')
  if (given.variant === 'relaxed' && !hasRelaxedSimd()) return null
  const model = await load(given.model, { wasm: new URL(`/${given.variant}/`, location.href) })
"""
GENERATE = """
  const answer = model.generate(given.prompt, { maxNewTokens: given.count })
  let text = ''
  for await (const piece of answer) text += piece
  return { ids: answer.ids, text, kernels: model.kernels }
}
"""
LOGITS = """
  const all = []
  await model.hold(given.ids, () => false)
  all.push(...model.logits)
  await model.hold(given.ids.slice(0, 1), () => false)
  for (const id of given.ids) { model.forward([id]); all.push(...model.logits) }
  return all
}
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, wasm_engines: Path) -> Path:
    """The module, and each build of the engine in a folder where onebit.js takes it for what this browser has."""
    folder = tmp_path_factory.mktemp("site")
    for path in page_files():
        shutil.copy(path, folder)
    shutil.copy(tiny_model_path(), folder / "tiny.1bit")
    for variant, build in (("plain", "onebit.wasm"), ("relaxed", "onebit-relaxed.wasm")):
        (folder / variant).mkdir()
        for name in ("onebit.wasm", "onebit-relaxed.wasm"):
            shutil.copy(wasm_engines / build, folder / variant / name)
    (folder / "blank.html").write_text("<!doctype html><title>blank</title>", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def page(browser: Any, site: Path, serve: Callable[[Path], Any]) -> Iterator[Any]:
    with serve(site) as address:
        page = browser.new_page()
        page.goto(f"{address}/blank.html")
        yield page
        page.close()


def run(page: Any, script: str, **given: Any) -> Any:
    found = page.evaluate(LOAD + script, given)
    if found is None:
        pytest.skip("this Chromium has no relaxed SIMD")
    return found


@pytest.mark.parametrize("variant", ["plain", "relaxed"])
def test_greedy_tokens_are_the_golden_ones(page: Any, variant: str) -> None:
    count = len(GOLDEN["ids"])
    answer = run(page, GENERATE, variant=variant, model="/tiny.1bit", prompt=GOLDEN["prompt"], count=count)
    assert answer["ids"] == GOLDEN["ids"]
    assert answer["text"] == GOLDEN["text"]
    assert ("relaxed" in answer["kernels"][-1]) is (variant == "relaxed")


@pytest.mark.parametrize("variant", ["plain", "relaxed"])
def test_the_bits_of_the_native_engine(page: Any, site: Path, variant: str) -> None:
    """Prompts of many tokens and of one; groups that do not fill a tile, rows that do not fill a block."""
    for index, options in enumerate(MODELS):
        sizes = {"hidden_size": 144, "head_dim": 32, "intermediate_size": 261}
        path = site / f"{index}.1bit"
        onebit_file.write(
            path, random_file(random_description(**sizes), embedding_layout="int8", head_activation="int8", **options)
        )
        native = Model(path, threads=1).logits(IDS)
        expected = np.concatenate([native[-1:], Model(path, threads=1).logits([IDS[0], *IDS])[1:]])
        found = np.array(run(page, LOGITS, variant=variant, model=f"/{index}.1bit", ids=IDS), np.float32)
        assert found.tobytes() == expected.tobytes(), f"{options}: off by {np.abs(found - expected.ravel()).max()}"


def test_a_missing_model_is_a_clear_error(page: Any) -> None:
    load = "load('/none.1bit', { wasm: new URL('/plain/', location.href) })"
    problem = page.evaluate(f"import('/onebit.js').then(({{ load }}) => {load}).catch((error) => error.message)")
    assert "none.1bit: HTTP 404" in problem
