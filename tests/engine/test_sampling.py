"""The sampler's distribution, its filters one by one, and its numbers on every run."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from onebit.engine import Sampler
from onebit.errors import EngineError

LOGITS = np.log(np.array([0.4, 0.05, 0.25, 0.2, 0.1], np.float32))
DRAWS = 20_000


def _frequencies(sampler: Sampler, logits: np.ndarray = LOGITS) -> np.ndarray:
    counts = Counter(sampler(logits) for _ in range(DRAWS))
    return np.array([counts[token] for token in range(logits.size)]) / DRAWS


def _expect(frequencies: np.ndarray, probabilities: list[float]) -> None:
    # four standard deviations of a share of 20 000 draws: at most 0.0142
    np.testing.assert_allclose(frequencies, probabilities, atol=0.0142)
    assert not frequencies[np.array(probabilities) == 0].any()


def test_greedy_takes_the_first_best() -> None:
    assert Sampler()(np.array([0.0, 2.0, 2.0, 1.0], np.float32)) == 1


def test_plain_draw_follows_the_probabilities() -> None:
    _expect(_frequencies(Sampler(temperature=1.0, seed=1)), [0.4, 0.05, 0.25, 0.2, 0.1])


def test_temperature() -> None:
    sharp = np.exp(LOGITS / 0.5) / np.exp(LOGITS / 0.5).sum()
    _expect(_frequencies(Sampler(temperature=0.5, seed=2)), list(sharp))


def test_top_k() -> None:
    _expect(_frequencies(Sampler(temperature=1.0, top_k=2, seed=3)), [0.4 / 0.65, 0, 0.25 / 0.65, 0, 0])


def test_top_p_keeps_the_token_that_crosses() -> None:
    _expect(_frequencies(Sampler(temperature=1.0, top_p=0.7, seed=4)), [0.4 / 0.85, 0, 0.25 / 0.85, 0.2 / 0.85, 0])


def test_min_p() -> None:
    _expect(_frequencies(Sampler(temperature=1.0, min_p=0.3, seed=5)), [0.4 / 0.85, 0, 0.25 / 0.85, 0.2 / 0.85, 0])


def test_filters_together() -> None:
    """top-k leaves 0.4, 0.25, 0.2, 0.1; of their 0.95, top-p 0.8 keeps three; min-p 0.55 drops the third."""
    sampler = Sampler(temperature=1.0, top_k=4, top_p=0.8, min_p=0.55, seed=6)
    _expect(_frequencies(sampler), [0.4 / 0.65, 0, 0.25 / 0.65, 0, 0])


def test_repetition_penalty_counts_a_token_once() -> None:
    logits = np.array([2.0, 1.5, -1.0, -1.9], np.float32)
    assert Sampler(repetition_penalty=1.5)(logits, [0]) == 1
    assert Sampler(repetition_penalty=1.3)(logits, [0, 0, 0]) == 0  # 2 / 1.3 > 1.5; penalised thrice it would lose
    assert Sampler(repetition_penalty=2.0)(logits[2:], [0]) == 1  # a negative logit goes down: -2 < -1.9


def test_a_seed_gives_these_tokens() -> None:
    """splitmix64 from the given state; computed here in Python integers."""
    state, mask, expected = 42, (1 << 64) - 1, []
    cumulative = np.cumsum(np.array([0.4, 0.05, 0.25, 0.2, 0.1]))
    for _ in range(50):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = ((state ^ state >> 30) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) & mask
        uniform = ((z ^ z >> 31) >> 11) / 2**53
        expected.append(int(np.searchsorted(cumulative, uniform, side="right")))
    sampler = Sampler(temperature=1.0, seed=42)
    assert [sampler(LOGITS) for _ in range(50)] == expected


def test_broken_logits_and_options() -> None:
    for bad in ([0.0, np.nan], [np.inf, 0.0], [-np.inf, -np.inf]):
        with pytest.raises(EngineError, match="not numbers"):
            Sampler(temperature=1.0)(np.array(bad, np.float32))
    assert Sampler(temperature=1.0)(np.array([-np.inf, 0.0], np.float32)) == 1
    for options in ({"temperature": -1.0}, {"top_p": 0.0}, {"min_p": 2.0}, {"repetition_penalty": 0.0}):
        with pytest.raises(EngineError, match=next(iter(options))):
            Sampler(**options)  # type: ignore[arg-type]


def test_many_tokens() -> None:
    """A vocabulary where the heap matters: top-k draws only among the real top k."""
    logits = np.random.default_rng(0).standard_normal(50_257).astype(np.float32)
    best = set(np.argsort(-logits, kind="stable")[:40].tolist())
    sampler = Sampler(temperature=1.5, top_k=40, top_p=0.99, seed=7)
    assert {sampler(logits) for _ in range(400)} <= best
