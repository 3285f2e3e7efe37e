"""The comparison of two forms, on forms whose differences were put there on purpose."""

from __future__ import annotations

import json

import numpy as np
import pytest

from onebit.errors import DataError, OnebitError
from onebit.eval.verify import FLOAT_ACTIVATIONS, ROUNDED_ACTIVATIONS, Tolerance, compare, tolerance_for, verify

from .tables import TableForm

TABLE = np.random.default_rng(2).standard_normal((256, 256))


def test_a_form_equals_itself() -> None:
    report = verify(TableForm(TABLE), TableForm(TABLE))
    assert report.passed
    assert report.max_absolute == report.kl_max == 0.0
    assert report.greedy_agreement == 1.0
    assert report.first_divergence is report.divergence_margin is report.first_layer is None
    assert str(report).startswith("same: ")


def test_figures_by_hand() -> None:
    a = np.array([[0.0, 1.0, 4.0], [0.0, 3.0, 3.5]], np.float32)
    b = np.array([[0.0, 1.0, 4.0], [0.0, 3.75, 3.5]], np.float32)
    stream = np.ones((3, 2, 5), np.float32)
    moved = stream.copy()
    moved[2] += 0.25
    report = compare(a, b, stream, moved, FLOAT_ACTIVATIONS)
    assert report.max_absolute == 0.75
    assert report.max_relative == 0.75 / 4
    assert report.greedy_agreement == 0.5
    assert report.first_divergence == 1
    assert report.divergence_margin == 0.5 / 4
    assert report.layer_relative == [0.0, 0.0, 0.25]
    assert report.first_layer == 2
    assert not report.passed
    p, q = (np.exp(x[1].astype(np.float64)) / np.exp(x[1].astype(np.float64)).sum() for x in (a, b))
    assert report.kl_max == pytest.approx(float((p * np.log(p / q)).sum()))
    assert report.kl_mean == pytest.approx(report.kl_max / 2)
    assert "after layer 1" in report.reasons[-1]


def test_rounding_passes_and_an_error_does_not() -> None:
    noise = np.random.default_rng(3).standard_normal(TABLE.shape)
    assert verify(TableForm(TABLE), TableForm(TABLE + 1e-6 * noise)).passed
    assert not verify(TableForm(TABLE), TableForm(TABLE + 1e-3 * noise)).passed


def test_int8_activations_allow_rare_jumps_only() -> None:
    a = np.random.default_rng(4).standard_normal((500, 100)).astype(np.float32)
    a[0, 0] = 10.0
    stream = np.ones((1, 500, 4), np.float32)
    rare, common = a.copy(), a.copy()
    rare[7] += 0.1  # 1 % of the largest logit at one position of 500
    common[:100] += 0.1
    assert compare(a, rare, stream, stream, ROUNDED_ACTIVATIONS).passed
    assert not compare(a, rare, stream, stream, FLOAT_ACTIVATIONS).passed
    assert not compare(a, common, stream, stream, ROUNDED_ACTIVATIONS).passed


def test_nan_never_passes() -> None:
    broken = TABLE.copy()
    broken[:, 3] = np.nan
    report = verify(TableForm(TABLE), TableForm(broken))
    assert not report.passed
    assert "NaN" in report.reasons[0]


def test_tolerances_follow_the_activations() -> None:
    assert tolerance_for(frozenset({"none"})) == FLOAT_ACTIVATIONS
    assert tolerance_for(frozenset({"none", "int8"})) == ROUNDED_ACTIVATIONS
    assert verify(TableForm(TABLE), TableForm(TABLE * 1.5), tolerance=Tolerance(1, 1, 1)).passed


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
    with pytest.raises(DataError, match="outside the vocabulary"):
        verify(TableForm(TABLE), TableForm(TABLE), ids=[256])
    with pytest.raises(DataError, match="no tokens"):
        verify(TableForm(TABLE), TableForm(TABLE), text="")


def test_the_report_is_json() -> None:
    report = verify(TableForm(TABLE), TableForm(-TABLE))
    parsed = json.loads(json.dumps(report.to_dict()))
    assert parsed["passed"] is False
    assert parsed["tolerance"]["maximum"] == 1e-4
