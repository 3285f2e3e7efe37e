"""Losses are those of `onebit eval`, reused states change no bit, and what was measured is found again."""

from __future__ import annotations

import math
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch

from onebit.errors import ConfigError, DataError
from onebit.eval.evaluate import evaluate
from onebit.eval.forms import open_checkpoint, open_form
from onebit.formats.checkpoint import from_checkpoint, load_model, texts_of
from onebit.formats.onebit_file import write
from onebit.quant import WeightQuantizer, fake_quantize
from onebit.search.cache import ScoreCache
from onebit.search.curvature import _moments, curvature_of
from onebit.search.evaluator import Evaluator, HeldOut
from onebit.search.opening import open_data, open_model
from onebit.search.score import Score
from onebit.search.settings import EvaluationSettings
from onebit.search.space import LEVELS, Space, open_space

TOKENS = 200  # six windows of 32, and a shorter last one


def opened(checkpoint: Path, text: Path, **options: Any) -> tuple[Any, HeldOut, Space]:
    settings = EvaluationSettings(checkpoint=checkpoint, val_data=text, max_tokens=TOKENS)
    model = open_model(settings)
    return model, open_data(settings, model), open_space(model, **options, **texts_of(checkpoint))


def mixed(space: Space, shift: int = 0) -> tuple[int, ...]:
    return tuple((i + shift) % len(space.levels) for i in range(len(space.units)))


@pytest.mark.parametrize("which", ["checkpoint", "untied"])
def test_the_loss_is_the_one_that_eval_measures(
    which: str, request: pytest.FixtureRequest, text: Path, tmp_path: Path
) -> None:
    folder: Path = request.getfixturevalue(which)
    model, data, space = opened(folder, text)
    levels = space.map_of(mixed(space))
    score = Evaluator(model, data).score(levels)
    by_torch = evaluate(open_checkpoint(folder, bit_width_map=levels), text.read_text(), max_tokens=TOKENS)
    assert score.tokens == by_torch.quality.tokens == data.tokens
    assert score.loss == pytest.approx(by_torch.quality.loss, rel=1e-5)  # float32 logits against float64 sums
    write(tmp_path / "m.1bit", from_checkpoint(folder, bit_width_map=levels))
    by_engine = evaluate(open_form(tmp_path / "m.1bit", threads=1), text.read_text(), max_tokens=TOKENS)
    # int8 activations: a rounding that falls the other way is a jump of one token, here of 200
    assert score.loss == pytest.approx(by_engine.quality.loss, rel=2e-3)


def test_states_that_are_reused_change_no_bit(untied: Path, text: Path) -> None:
    model, data, space = opened(untied, text)
    base = mixed(space)
    changed = [(*base[:unit], (base[unit] + 1) % 5, *base[unit + 1 :]) for unit in reversed(range(len(base)))]
    whole = Evaluator(model, data)
    reused = [whole.score(space.map_of(choice)) for choice in [base, *changed, base]]
    # Two layers under the head, one under each of the six matrices of the second, two when the base comes again.
    assert whole.prefix.reused == 2 + 6 + 2
    fresh = Evaluator(load_model(untied), data, state_bytes=0)
    assert reused == [fresh.score(space.map_of(choice)) for choice in [base, *changed, base]]
    assert fresh.prefix.reused == 0
    for capacity in (60_000, 110_000):  # the states before one point take 199 x 64 x 4 = 50,944 bytes
        small = Evaluator(load_model(untied), data, state_bytes=capacity)
        for choice, score in zip([base, *changed, base], reused, strict=True):
            assert small.score(space.map_of(choice)) == score
            kept = [state for states in small.prefix._states.values() for state in states]
            assert sum(state.numel() * state.element_size() for state in kept) <= capacity
        assert small.prefix.reused >= 2  # under the head


def test_accuracy_is_the_share_of_likeliest_tokens(checkpoint: Path, text: Path) -> None:
    model, data, space = opened(checkpoint, text)
    score = Evaluator(model, data).score(space.map_of(space.uniform("float16")))
    hits = 0
    with torch.no_grad():
        for ids_BL in data.batches:
            for ids_L in ids_BL:  # one window after another
                hits += int((model(input_ids=ids_L[None, :-1]).logits[0].argmax(-1) == ids_L[1:]).sum())
    assert score.accuracy == hits / data.tokens > 0.05


def test_a_model_that_gives_no_number_has_an_infinite_loss(checkpoint: Path, text: Path) -> None:
    model, data, space = opened(checkpoint, text)
    with torch.no_grad():
        model.model.norm.weight[0] = math.nan
    score = Evaluator(model, data).score(space.map_of(space.uniform("int8")))
    assert score.loss == math.inf
    assert score.perplexity == math.exp(700)


def test_a_text_or_context_that_the_model_cannot_read_is_refused(checkpoint: Path, text: Path) -> None:
    model = load_model(checkpoint)
    with pytest.raises(ConfigError, match="between 1 and 32"):
        open_data(EvaluationSettings(checkpoint=checkpoint, val_data=text, context=64), model)
    with pytest.raises(DataError, match="tokenizer"):
        open_data(EvaluationSettings(checkpoint=checkpoint, val_data=text, tokenizer=text.parent), model)
    with pytest.raises(DataError, match="--checkpoint"):
        open_model(EvaluationSettings(checkpoint=text, val_data=text))


def test_curvature_is_the_slope_and_grows_with_the_error(checkpoint: Path, text: Path) -> None:
    model, data, space = opened(checkpoint, text)
    added_UL = curvature_of(model, data, space)(space.uniform("float16"))
    assert added_UL.shape == (len(space.units), len(LEVELS))
    assert abs(added_UL[:, -1]).max() == 0.0  # no change, no loss
    totals = dict(zip(LEVELS, added_UL.sum(0), strict=True))
    assert totals["binary"] > max(totals["int4"], totals["int8"])
    # The slope by finite differences, along what int4 does to one matrix.
    gradients, fisher = _moments(model, data)
    weight = model.model.layers[0].mlp.up_proj.weight
    change = fake_quantize(weight.detach(), WeightQuantizer.for_level("int4")) - weight.detach()
    losses = []
    with torch.no_grad():
        for step in (0.5, -0.5):
            weight += step * change
            losses.append(mean_of_windows(model, data))
            weight -= step * change
    slope = float((gradients[id(weight)] * change).sum())
    assert slope == pytest.approx(losses[0] - losses[1], rel=0.05, abs=2e-5)  # float16 weights: steps are rounded
    assert fisher[id(weight)].min() >= 0.0


def mean_of_windows(model: Any, data: HeldOut) -> float:
    """Every window alike, the shorter last one too."""
    found = []
    for ids_BL in data.batches:
        logits_BLV = model(input_ids=ids_BL[:, :-1]).logits.double()
        losses_BL = torch.nn.functional.cross_entropy(logits_BLV.transpose(1, 2), ids_BL[:, 1:], reduction="none")
        found += losses_BL.mean(1).tolist()
    return sum(found) / len(found)


def test_scores_are_kept_on_disk_under_checkpoint_data_and_map(tmp_path: Path) -> None:
    file = tmp_path / "scores.sqlite"
    cache = ScoreCache(file, "model", "text")
    assert cache.get({"a": "int8"}) is None
    cache.put({"a": "int8", "b": "int4"}, Score(1.5, 0.25, 10))
    other = ScoreCache(file, "model", "text")  # while the first is open: a killed one never closes
    assert other.get({"b": "int4", "a": "int8"}) == Score(1.5, 0.25, 10)
    assert ScoreCache(file, "model", "other text").get({"a": "int8", "b": "int4"}) is None
    assert ScoreCache(file, "other model", "text").get({"a": "int8", "b": "int4"}) is None
    assert len(other) == 1
    other.put({"a": "binary"}, Score(math.inf, 0.0, 10))
    assert ScoreCache(file, "model", "text").get({"a": "binary"}) == Score(math.inf, 0.0, 10)
    for i in range(5000):  # more than memory keeps
        other._remember(str(i), Score(0.0, 0.0, 1))
    assert len(other._recent) == 4096
    assert other.get({"a": "int8", "b": "int4"}) == Score(1.5, 0.25, 10)
    (tmp_path / "damaged").write_text("no database" * 100)
    with pytest.raises(DataError, match="remove it"):
        ScoreCache(tmp_path / "damaged", "model", "text")
    with sqlite3.connect(file) as database:
        told = database.execute("SELECT map FROM scores ORDER BY loss").fetchall()
    assert told == [('{"a": "int8", "b": "int4"}',), ('{"a": "binary"}',)]
