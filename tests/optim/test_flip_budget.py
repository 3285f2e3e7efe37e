"""eta from a flip budget: held to the random walk that it is derived from."""

from __future__ import annotations

import math

import pytest
import torch

from onebit.errors import ConfigError
from onebit.optim.flip_budget import eta_from_flip_budget
from onebit.quant.counters import counter_named, fire, round_stochastically


def test_a_cosine_gives_the_closed_form() -> None:
    steps = 1000
    cosine = [0.5 * (1 + math.cos(math.pi * step / steps)) for step in range(steps)]
    # The mean of a cosine decay is 1/2, up to its first term's 0.5 / steps.
    assert eta_from_flip_budget(0.5, cosine) == pytest.approx(math.sqrt(0.5 / (0.5 * steps)), rel=1e-3)


def test_noise_spends_the_budget() -> None:
    """Gaussian updates of size 1: a walk from 0 to +-theta takes 1 / eta^2 steps: steps eta^2 moves."""
    steps, budget = 400, 4.0
    eta = eta_from_flip_budget(budget, [1.0] * steps)
    generator = torch.Generator().manual_seed(0)
    counter = counter_named("int8")
    codes = torch.zeros(64, 64, dtype=torch.int8)
    counts, moves = torch.zeros_like(codes), 0
    for _ in range(steps):
        deposit = torch.randn(codes.shape, generator=generator) * eta * counter.threshold
        random = torch.randint(-(2**15), 2**15, codes.shape, generator=generator).to(torch.int16)
        counts = (counts + round_stochastically(deposit, random)).clamp(-126, 126).to(torch.int8)
        _, counts, moved = fire(torch.zeros_like(codes), counts, counter, is_binary=False)  # free to move either way
        moves += int(moved)
    # A step passes the threshold by about half its size, and the last walk is not finished: fewer moves, never more.
    assert 0.75 * budget < moves / codes.numel() < 1.02 * budget


@pytest.mark.parametrize(("moves", "factors", "message"), [(0.0, [1.0], "flip budget"), (1.0, [0.0], "schedule")])
def test_what_no_eta_satisfies(moves: float, factors: list[float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        eta_from_flip_budget(moves, factors)
