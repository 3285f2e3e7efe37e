"""Counters: rounding without bias, firing with reset, what latents leave in them."""

from __future__ import annotations

import itertools

import pytest
import torch

from onebit.errors import ConfigError
from onebit.quant import WeightQuantizer, quantize
from onebit.quant.counters import counter_named, fire, round_stochastically, start_counters
from onebit.quant.philox import random16


@pytest.mark.parametrize("value", [0.0, 0.25, -0.25, 0.003, -1.5, 2.999, -7.0])
def test_rounding_keeps_the_mean_and_moves_by_less_than_one(value: float) -> None:
    random = random16(0, 1, 2, range(1000), 1000, torch.device("cpu"))
    rounded = round_stochastically(torch.full((1000, 1000), value), random)
    assert torch.equal(rounded, rounded.round())
    assert (rounded - value).abs().max() < 1
    spread = max((value % 1) * (1 - value % 1), 1e-12) ** 0.5
    assert abs(rounded.double().mean().item() - value) < 5 * spread / 1000 + 2**-17


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_every_state_fires_as_told(name: str) -> None:
    counter = counter_named(name)
    states = list(itertools.product((-1, 0, 1), range(-counter.bound, counter.bound + 1)))
    codes, counters = torch.tensor(states, dtype=torch.int8).t().unsqueeze(1)
    new_codes, new_counters, moves = fire(codes, counters, counter, is_binary=False)
    moved = 0
    for (w, a), new_w, new_a in zip(states, new_codes[0].tolist(), new_counters[0].tolist(), strict=True):
        if a >= counter.threshold and w < 1:
            expected = (w + 1, 0)
        elif a <= -counter.threshold and w > -1:
            expected = (w - 1, 0)
        else:
            expected = (w, a)
        assert (new_w, new_a) == expected
        moved += expected != (w, a)
    assert int(moves) == moved


def test_a_binary_code_changes_its_sign() -> None:
    counter = counter_named("int8")
    codes = torch.tensor([[-1, -1, 1, 1, 1]], dtype=torch.int8)
    counters = torch.tensor([[63, -63, 63, -63, -62]], dtype=torch.int8)
    new_codes, new_counters, moves = fire(codes, counters, counter, is_binary=True)
    assert new_codes.tolist() == [[1, -1, 1, -1, 1]]
    assert new_counters.tolist() == [[0, -63, 63, 0, -62]]
    assert int(moves) == 2


def test_without_a_counter_nothing_is_remembered() -> None:
    codes = torch.tensor([[-1, 0, 1, 1]], dtype=torch.int8)
    new_codes, counters, moves = fire(
        codes, torch.tensor([[1, -1, 1, 0]]).char(), counter_named("none"), is_binary=False
    )
    assert new_codes.tolist() == [[0, -1, 1, 1]]
    assert counters.tolist() == [[0, 0, 0, 0]]
    assert int(moves) == 2


@pytest.mark.parametrize("name", ["int8", "int4"])
@pytest.mark.parametrize("quantizer", ["absmean", "binary"])
def test_latents_are_kept_to_half_a_count(name: str, quantizer: str) -> None:
    counter, is_binary = counter_named(name), quantizer == "binary"
    w = torch.randn(40, 50, generator=torch.Generator().manual_seed(1))
    quantized = quantize(w, WeightQuantizer(quantizer, center=False))  # type: ignore[arg-type]
    codes, relative = quantized.codes_OI, w.double() / quantized.scale.double()
    counters = start_counters(w / quantized.scale, codes, counter, is_binary=is_binary)
    units = counter.threshold * (1 if is_binary else 2)
    near = (relative - codes).abs() * units < counter.threshold - 1
    assert near.float().mean() > 0.5
    assert ((codes + counters.double() / units) - relative)[near].abs().max() <= 0.5001 / units
    assert int(fire(codes, counters, counter, is_binary=is_binary)[2]) == 0  # nothing moves at the start
    assert counters.abs().max() <= counter.bound
    assert bool((counters[codes == 1] > 0).any())


def test_an_unknown_counter_is_refused() -> None:
    with pytest.raises(ConfigError, match="counter is 'int16', expected one of int8, int4, none"):
        counter_named("int16")
