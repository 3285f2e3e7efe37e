"""The comparison of two forms, on forms whose differences were put there on purpose."""

from __future__ import annotations

import json

import numpy as np
import pytest

from onebit.errors import DataError, OnebitError
from onebit.eval.comparison import FLOAT_ACTIVATIONS, ROUNDED_ACTIVATIONS, Spread, Tolerance, spread, tolerance_for
from onebit.eval.verify import Alone, Outputs, compare, verify

from .tables import TableForm

TABLE = np.random.default_rng(2).standard_normal((256, 256))
NOTHING = Spread(0.0, 0.0, 0.0)


def test_a_form_equals_itself() -> None:
    report = verify(TableForm(TABLE), TableForm(TABLE))
    assert report.passed
    assert report.max_absolute == report.kl_max == 0.0
    assert report.logits == NOTHING
    assert report.greedy_agreement == 1.0
    assert report.first_divergence is report.divergence_margin is report.first_layer is report.layers_alone is None
    assert str(report).startswith("same: ")


def test_figures_by_hand() -> None:
    a = np.array([[0.0, 1.0, 4.0], [0.0, 3.0, 3.5]], np.float32)
    b = np.array([[0.0, 1.0, 4.0], [0.0, 3.75, 3.5]], np.float32)
    stream = np.ones((3, 2, 5), np.float32)
    moved = stream.copy()
    moved[2] += 0.25
    report = compare(Outputs(a, stream), Outputs(b, moved), FLOAT_ACTIVATIONS)
    assert report.max_absolute == 0.75
    assert report.logits.maximum == 0.75 / 4
    assert report.greedy_agreement == 0.5
    assert report.first_divergence == 1
    assert report.divergence_margin == 0.5 / 4
    assert [layer.median for layer in report.layers] == [0.0, 0.0, 0.25]
    assert report.first_layer == 2
    assert not report.passed
    p, q = (np.exp(x[1].astype(np.float64)) / np.exp(x[1].astype(np.float64)).sum() for x in (a, b))
    assert report.kl_max == pytest.approx(float((p * np.log(p / q)).sum()))
    assert report.kl_mean == pytest.approx(report.kl_max / 2)
    assert "after layer 1" in report.reasons[-1]


def test_spread_by_hand() -> None:
    found = spread(np.array([[-10.0, 1.0, 2.0]], np.float32), np.array([[-10.0, 1.5, 3.0]], np.float32))
    assert (found.median, found.maximum) == (0.05, 0.1)
    assert found.percentile_99 == pytest.approx(0.099)


def test_rounding_passes_and_an_error_does_not() -> None:
    noise = np.random.default_rng(3).standard_normal(TABLE.shape)
    assert verify(TableForm(TABLE), TableForm(TABLE + 1e-6 * noise)).passed
    assert not verify(TableForm(TABLE), TableForm(TABLE + 1e-3 * noise)).passed


def rare_and_common_jumps() -> tuple[Outputs, Outputs, Outputs]:
    a = np.random.default_rng(4).standard_normal((500, 100)).astype(np.float32)
    a[0, 0] = 10.0
    rare, common = a.copy(), a.copy()
    rare[7] += 0.1  # 1 % of the largest logit at one position of 500
    common[:100] += 0.1
    stream = np.ones((1, 500, 4), np.float32)
    return Outputs(a, stream), Outputs(rare, stream), Outputs(common, stream)


def test_rounded_activations_allow_rare_jumps_only() -> None:
    a, rare, common = rare_and_common_jumps()
    assert compare(a, rare, ROUNDED_ACTIVATIONS).passed
    assert not compare(a, rare, FLOAT_ACTIVATIONS).passed
    assert not compare(a, common, ROUNDED_ACTIVATIONS).passed


def test_common_jumps_pass_only_when_every_layer_alone_agrees() -> None:
    a, _, common = rare_and_common_jumps()
    agreeing = compare(a, common, ROUNDED_ACTIVATIONS, [Alone(0.9, 0.01), Alone(1.0, 0.0)])
    assert agreeing.passed
    assert "each layer alone agrees" in agreeing.notes[-1]
    wrong = compare(a, common, ROUNDED_ACTIVATIONS, [Alone(1.0, 0.0), Alone(0.1, 0.01)])
    assert not wrong.passed
    assert "the head, on the same input" in wrong.reasons[-1]
    assert not compare(a, common, FLOAT_ACTIVATIONS, [Alone(1.0, 0.0)]).passed  # nothing to excuse floats with


def test_nan_never_passes() -> None:
    broken = TABLE.copy()
    broken[:, 3] = np.nan
    report = verify(TableForm(TABLE), TableForm(broken))
    assert not report.passed
    assert "NaN" in report.reasons[0]


def test_bounds_follow_the_activations() -> None:
    assert tolerance_for(frozenset({"none"})) == FLOAT_ACTIVATIONS
    assert tolerance_for(frozenset({"none", "int8"})) == ROUNDED_ACTIVATIONS
    assert verify(TableForm(TABLE), TableForm(TABLE * 1.5), bound=Tolerance(1, 1, 1)).passed


def test_tokens_are_the_ones_asked_for() -> None:
    a, b = TableForm(TABLE), TableForm(TABLE)
    verify(a, b, text="abcdef", num_tokens=3)
    assert a.fed == b.fed == [a.tokenizer.encode("abc").ids]  # type: ignore[union-attr]
    a.fed.clear()
    verify(a, b, ids=[1, 2, 3])
    assert a.fed == [[1, 2, 3]]
    a.fed.clear()
    verify(a, b, num_tokens=10_000)  # cut to the context
    assert len(a.fed[0]) == a.context


def test_without_a_tokenizer_random_tokens_and_a_note() -> None:
    a, b = TableForm(TABLE), TableForm(TABLE)
    a.tokenizer = b.tokenizer = None
    report = verify(a, b)
    assert report.passed
    assert "random tokens" in report.notes[0]
    with pytest.raises(DataError, match="give token ids"):
        verify(a, b, text="abc")


def test_what_cannot_be_compared() -> None:
    with pytest.raises(OnebitError, match="vocabulary of 256"):
        verify(TableForm(TABLE), TableForm(np.zeros((40, 40))))
    wide = TableForm(TABLE, name="wide")
    wide.hidden = lambda ids_T: np.zeros((3, len(ids_T), 4), np.float32)  # type: ignore[method-assign]
    with pytest.raises(OnebitError, match="1 layers of width 4, wide 2 layers"):
        verify(TableForm(TABLE), wide)
    with pytest.raises(DataError, match="outside the vocabulary"):
        verify(TableForm(TABLE), TableForm(TABLE), ids=[256])
    with pytest.raises(DataError, match="no tokens"):
        verify(TableForm(TABLE), TableForm(TABLE), text="")


def test_the_report_is_json() -> None:
    report = verify(TableForm(TABLE), TableForm(-TABLE))
    parsed = json.loads(json.dumps(report.to_dict()))
    assert parsed["passed"] is False
    assert parsed["bound"]["maximum"] == 1e-4
