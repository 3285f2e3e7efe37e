"""The measures against definitions written another way, and the windowing rule as a property."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onebit.errors import DataError
from onebit.eval.perplexity import summarize, token_losses, windows


@given(num_tokens=st.integers(2, 300), context=st.integers(1, 64), data=st.data())
def test_every_token_but_the_first_is_scored_exactly_once(num_tokens: int, context: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, context))
    scored: list[int] = []
    for window in windows(num_tokens, context, stride):
        assert 0 < window.stop - window.start <= context
        assert window.start < window.first_scored
        scored.extend(range(window.first_scored, window.stop + 1))
    assert scored == list(range(1, num_tokens))


@given(num_tokens=st.integers(100, 300), context=st.integers(2, 64), data=st.data())
def test_stride_promises_a_minimum_of_context(num_tokens: int, context: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, context))
    for window in list(windows(num_tokens, context, stride))[1:]:
        assert window.first_scored - window.start >= min(context - stride + 1, window.stop - window.start)


def test_windows_worked_by_hand() -> None:
    assert [(w.start, w.stop, w.first_scored) for w in windows(8, 3)] == [(0, 3, 1), (3, 6, 4), (6, 7, 7)]
    assert [(w.start, w.stop, w.first_scored) for w in windows(6, 4, 1)] == [(0, 4, 1), (1, 5, 5)]


@pytest.mark.parametrize(("tokens", "context", "stride"), [(1, 4, 4), (10, 0, None), (10, 4, 5), (10, 4, 0)])
def test_windows_that_make_no_sense(tokens: int, context: int, stride: int | None) -> None:
    with pytest.raises(DataError):
        list(windows(tokens, context, stride))


def test_token_losses_by_the_definition_in_float64() -> None:
    rng = np.random.default_rng(0)
    logits = (rng.standard_normal((7, 11)) * 20).astype(np.float32)
    targets = rng.integers(0, 11, 7)
    probabilities = np.exp(logits.astype(np.float64))
    probabilities /= probabilities.sum(-1, keepdims=True)
    expected = -np.log(probabilities[np.arange(7), targets])
    np.testing.assert_allclose(token_losses(logits, targets), expected, rtol=1e-12)


def test_token_losses_survive_huge_logits() -> None:
    logits = np.array([[1e30, 0.0], [-1e30, 1e30]], dtype=np.float32)
    assert token_losses(logits, np.array([0, 1])).tolist() == [0.0, 0.0]


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary() -> None:
    losses = token_losses(np.zeros((50, 256), np.float32), np.arange(50))
    quality = summarize(float(losses.sum()), tokens=50, num_bytes=50, words=10)
    assert quality.perplexity == pytest.approx(256)
    assert quality.bits_per_byte == pytest.approx(8)  # 256 equal choices for each byte
    assert quality.perplexity_per_word == pytest.approx(256.0**5)


def test_a_hopeless_model_is_infinite_not_an_overflow() -> None:
    assert summarize(1e6, 1, 1, 1).perplexity == math.inf


def test_nothing_scored_is_an_error() -> None:
    with pytest.raises(DataError, match="empty"):
        summarize(0.0, 0, 0, 0)
