"""Schedules against closed formulas and against the published BitNet figures."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from onebit.errors import ConfigError
from onebit.optim import (
    LambdaShape,
    LearningRate,
    arenas,
    decaying_parameter_names,
    lambda_mix,
    soft_alpha,
    weight_decay,
)


def test_cosine_against_the_formula() -> None:
    rate = LearningRate(peak=3e-3, minimum=1e-5, warmup_steps=20, total_steps=220, decay="cosine")
    for step in range(20, 221):
        expected = 1e-5 + (3e-3 - 1e-5) * math.cos(math.pi * (step - 20) / 400) ** 2  # the half-angle form
        assert rate(step) == pytest.approx(expected, rel=1e-12, abs=1e-15)
    assert rate(20) == 3e-3
    assert rate(220) == pytest.approx(1e-5)
    assert rate(10_000) == pytest.approx(1e-5)


@pytest.mark.parametrize("decay", ["constant", "linear", "cosine", "two-stage"])
def test_warmup_is_linear_and_reaches_the_peak(decay: str) -> None:
    rate = LearningRate(peak=1.0, warmup_steps=4, total_steps=100, decay=decay)  # type: ignore[arg-type]
    assert [rate(step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_linear_and_constant() -> None:
    linear = LearningRate(peak=1.0, minimum=0.2, total_steps=10, decay="linear")
    assert [linear(s) for s in (0, 5, 10, 99)] == pytest.approx([1.0, 0.6, 0.2, 0.2])
    constant = LearningRate(peak=0.3, total_steps=10, decay="constant")
    assert {constant(s) for s in range(20)} == {0.3}


def test_two_stage_drops_by_a_third_at_half_as_b158_did() -> None:
    rate = LearningRate(peak=1.5e-3, total_steps=1000, decay="two-stage")
    ratio = rate(500) / rate(499)
    assert ratio == pytest.approx(1.0e-3 / 1.5e-3, rel=3e-3)  # one step of linear decay apart: 1/500
    assert rate(0) == 1.5e-3
    assert rate(250) == pytest.approx(1.5e-3 * 0.75)
    assert rate(750) == pytest.approx(1.0e-3 * 0.25)
    assert LearningRate(peak=1.5e-3, minimum=1e-4, total_steps=1000, decay="two-stage")(999) == 1e-4


def test_weight_decay_ends_at_half_only_in_two_stages() -> None:
    assert [weight_decay(s, 0.1, 100, "two-stage") for s in (0, 49, 50, 99)] == [0.1, 0.1, 0.0, 0.0]
    assert {weight_decay(s, 0.1, 100, "cosine") for s in range(100)} == {0.1}


def test_as_factor_drives_torch() -> None:
    rate = LearningRate(peak=2e-3, minimum=1e-4, warmup_steps=3, total_steps=12)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate.peak)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate.as_factor())
    for step in range(12):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rate(step), rel=1e-12)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decay": "cosin"}, "did you mean 'cosine'"),
        ({"minimum": 2.0}, "--min-lr 2.0 is above --lr 1.0"),
        ({"peak": math.nan}, "peak is nan"),
        ({"warmup_steps": -1}, "warmup_steps is -1"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        LearningRate(**{"peak": 1.0, "total_steps": 10, **settings})  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_soft_alpha_grows_from_one_to_eight_then_is_hard() -> None:
    assert soft_alpha(0, 1000, 0.3) == 1.0
    assert soft_alpha(150, 1000, 0.3) == pytest.approx(4.5)
    assert soft_alpha(299, 1000, 0.3) == pytest.approx(8.0, abs=0.03)
    assert soft_alpha(300, 1000, 0.3) is None
    assert soft_alpha(0, 1000, 0.0) is None


def test_lambda_mix_follows_the_seed() -> None:
    # BitNet 1.58 gradual training: 0 -> 1 over the first 40 % of the steps, then pure ternary.
    assert [lambda_mix(s, 1000, 0.4) for s in (0, 200, 400, 999)] == [0.0, 0.5, 1.0, 1.0]
    assert lambda_mix(0, 1000, None) == 1.0
    assert lambda_mix(0, 1000, 0.0) == 1.0


@pytest.mark.parametrize("shape", ["linear", "cosine", "sigmoid", "exponential"])
def test_every_lambda_shape_begins_at_0_grows_and_is_held_at_1(shape: LambdaShape) -> None:
    values = [lambda_mix(step, 100, 0.4, shape) for step in range(100)]
    assert values[0] == pytest.approx(0.0, abs=1e-12)
    assert all(later > earlier for earlier, later in pairwise(values[:41]))
    assert values[40:] == [1.0] * 60
    expected = {"linear": 0.5, "cosine": 0.5, "sigmoid": 0.5, "exponential": (1 - math.exp(-2.5)) / (1 - math.exp(-5))}
    assert values[20] == pytest.approx(expected[shape])


def test_arenas_anneals_to_nothing() -> None:
    assert [arenas(s, 0.1, 5000) for s in (0, 2500, 5000, 9000)] == [0.1, 0.05, 0.0, 0.0]
    assert arenas(0, None, 5000) == 0.0


def test_decay_acts_on_matrices_of_layers_only() -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(10, 4)
            self.body = torch.nn.Linear(4, 4)
            self.norm = torch.nn.LayerNorm(4)
            self.head = torch.nn.Linear(4, 10, bias=False)
            self.head.weight = self.embed.weight

    assert decaying_parameter_names(Tied()) == ["body.weight"]
