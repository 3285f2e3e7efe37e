"""The soft regimes in a layer: formulas, limits, evaluation, sharing, and one compiled graph for all values."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch._dynamo.testing
from torch import nn

from onebit.nn import BitLinear, Schedule
from onebit.quant import dequantize, fake_quantize_activations, soft_quantize


class Pair(nn.Module):
    """A small model that owns a schedule which its two layers read."""

    def __init__(self) -> None:
        super().__init__()
        self.schedule = Schedule(uses_lambda=True, uses_soft_codes=True)
        self.first = BitLinear(16, 16, quantizer="threshold", schedule=self.schedule)
        self.second = BitLinear(16, 8, quantizer="binary", schedule=self.schedule)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


def layer_with(**dials: float) -> BitLinear:
    torch.manual_seed(0)
    schedule = Schedule(
        uses_lambda="lambda_" in dials, uses_soft_codes="soft_alpha" in dials, uses_arenas="arenas" in dials
    )
    schedule.set(**dials)
    return BitLinear(32, 16, bias=False, schedule=schedule)


X = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))


def test_lambda_mixes_weights_and_activations() -> None:
    m = layer_with(lambda_=0.25)
    w, q_w = m.weight.detach().double(), dequantize(m.quantized()).double()
    q_x = fake_quantize_activations(X, "int8").double()
    expected = (0.75 * X.double() + 0.25 * q_x) @ (0.75 * w + 0.25 * q_w).t()
    np.testing.assert_allclose(m(X).detach(), expected, atol=1e-5)


def test_lambda_zero_is_the_float_layer() -> None:
    m = layer_with(lambda_=0.0)
    np.testing.assert_allclose(m(X).detach(), nn.functional.linear(X, m.weight).detach(), atol=1e-6)


def test_soft_codes_replace_the_hard_ones() -> None:
    m = layer_with(soft_alpha=3.0)
    q_x = fake_quantize_activations(X, "int8")
    expected = q_x @ soft_quantize(m.weight, m.weight_quantizer, torch.tensor(3.0)).t()
    np.testing.assert_allclose(m(X).detach(), expected.detach(), atol=1e-6)
    steep = layer_with(soft_alpha=1e7)
    # weights within 1e-7 of the threshold excepted, of which there are none
    np.testing.assert_allclose(steep(X).detach(), layer_with()(X).detach(), atol=1e-5)


def test_arenas_adds_the_full_precision_weight() -> None:
    m = layer_with(arenas=0.1)
    q_x = fake_quantize_activations(X, "int8").double()
    expected = q_x @ (dequantize(m.quantized()).double() + 0.1 * m.weight.detach().double()).t()
    np.testing.assert_allclose(m(X).detach(), expected, atol=1e-5)


@pytest.mark.parametrize("dials", [{"lambda_": 0.2}, {"soft_alpha": 2.0}, {"arenas": 0.3}])
def test_evaluation_is_fully_quantised(dials: dict[str, float]) -> None:
    soft = layer_with(**dials)
    hard = BitLinear(32, 16, bias=False)
    hard.load_state_dict(soft.state_dict())
    assert not torch.allclose(soft(X), hard(X))
    assert torch.equal(soft.eval()(X), hard.eval()(X))


def test_hard_dials_give_the_hard_layer_with_and_without_the_fast_path() -> None:
    m = layer_with(lambda_=1.0, soft_alpha=0.0, arenas=0.0)
    schedule: Schedule = m.__dict__["schedule"]
    assert not schedule.is_soft
    fast = m(X)
    schedule.is_soft = True  # as after loading a checkpoint, before a callback has spoken
    np.testing.assert_allclose(m(X).detach(), fast.detach(), atol=1e-5)


def test_gradient_of_the_mixture() -> None:
    schedule = Schedule(uses_lambda=True)
    schedule.set(lambda_=0.25)
    torch.manual_seed(0)
    m = BitLinear(32, 16, bias=False, schedule=schedule, ste_scale_factor=2.0)
    m(X).sum().backward()
    q_x = fake_quantize_activations(X, "int8").double()
    x_eff = 0.75 * X.double() + 0.25 * q_x
    expected = (0.75 + 0.25 * 2.0) * x_eff.sum(0)
    np.testing.assert_allclose(m.weight.grad[0], expected, atol=1e-5)


def test_two_models_do_not_share_and_copies_do_inside() -> None:
    one, two = Pair(), Pair()
    one.schedule.set(lambda_=0.5, soft_alpha=4.0)
    assert two.schedule.lambda_.item() == 1.0
    clone = copy.deepcopy(one)
    assert clone.schedule is not one.schedule
    assert clone.first.__dict__["schedule"] is clone.schedule is clone.second.__dict__["schedule"]
    clone.schedule.set(lambda_=0.9)
    assert one.schedule.lambda_.item() == 0.5


def test_dials_travel_with_the_checkpoint_once() -> None:
    one, two = Pair(), Pair()
    one.schedule.set(lambda_=0.5, soft_alpha=4.0)
    state = one.state_dict()
    assert [key for key in state if "schedule" in key] == ["schedule.lambda_", "schedule.soft_alpha", "schedule.arenas"]
    two.load_state_dict(state)
    x = torch.randn(2, 16)
    assert torch.equal(two(x), one(x))
    assert not Schedule().state_dict()  # a hard model's checkpoint holds no dials


def test_dials_stay_float32() -> None:
    model = Pair()
    model.schedule.set(lambda_=0.999)
    model.bfloat16()
    assert model.schedule.lambda_.dtype == torch.float32
    assert model.schedule.lambda_.item() == pytest.approx(0.999)
    assert model(torch.randn(2, 16).bfloat16()).dtype == torch.bfloat16


def test_autocast_in_the_soft_regime() -> None:
    m = layer_with(lambda_=0.5, soft_alpha=2.0, arenas=0.1)
    full = m(X)
    with torch.autocast("cpu", torch.bfloat16):
        y = m(X)
    y.float().sum().backward()
    assert (y.float() - full).abs().max() <= 0.02 * full.abs().max()  # bfloat16 inputs and weights
    assert m.weight.grad.dtype == torch.float32


def test_new_values_do_not_compile_again() -> None:
    model = Pair()
    counter = torch._dynamo.testing.CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    x = torch.randn(3, 16)
    for step in range(1, 6):
        model.schedule.set(lambda_=0.1 * step, soft_alpha=float(step))
        torch.testing.assert_close(compiled(x), model(x))
    assert counter.frame_count == 1
