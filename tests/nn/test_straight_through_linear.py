"""The product of the hard regime: what it keeps for the backward pass, and its two ways to multiply."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from onebit.nn import BitLinear, straight_through_linear

T, I, O = 40, 96, 32  # noqa: E741 - the shape suffixes of the house


def layer(**arguments: Any) -> BitLinear:
    torch.manual_seed(0)
    return BitLinear(I, O, **arguments)


def inputs(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(2, T // 2, I, generator=torch.Generator().manual_seed(1)).to(dtype)


def kept_bytes(module: torch.nn.Module, x: torch.Tensor) -> int:
    """Bytes that the graph holds beyond the parameters."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(x)
    for parameter in module.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    return sum(kept.values())


@pytest.mark.parametrize(
    "arguments",
    [
        {"quantizer": "absmean"},
        {"quantizer": "binary", "granularity": "per_row"},
        {"granularity": "per_group", "group_size": 64},
        {"weight_sparsity_threshold": 0.3},
        {"quantizer": None},
    ],
    ids=str,
)
def test_a_byte_for_each_input_and_nothing_of_the_weight_is_kept(arguments: dict[str, Any]) -> None:
    x = inputs().requires_grad_()
    assert kept_bytes(layer(**arguments), x) == T * I + 4 * T  # int8 codes and a float32 scale per token
    assert kept_bytes(torch.nn.Linear(I, O), x) == 4 * T * I


def test_layers_with_one_input_keep_its_codes_once() -> None:
    q, k = layer(), layer()
    x = inputs().requires_grad_()

    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k = q, k

        def forward(self, x_TI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            codes = self.q.activation_codes(x_TI)
            return self.q(x_TI, codes), self.k(x_TI, codes)

    assert kept_bytes(Both(), x) == T * I + 4 * T


def test_a_frozen_layer_keeps_no_inputs() -> None:
    m = layer().requires_grad_(False)
    assert kept_bytes(m, inputs().requires_grad_()) == 0


def test_a_weight_changed_before_its_backward_pass_is_refused() -> None:
    m = layer()
    y = m(inputs().requires_grad_())
    with torch.no_grad():
        m.weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.skipif(not straight_through_linear.HAS_INT8_PRODUCT, reason="this processor has no int8 product")
@pytest.mark.parametrize("quantizer", ["absmean", "threshold", "binary", "int8"])
@pytest.mark.parametrize("activation", ["int8", "sign"])
def test_int8_product_gives_the_bits_of_float32(
    quantizer: str, activation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    m = layer(quantizer=quantizer, activation_quantizer=activation)
    results = []
    for has_int8_product in (True, False):
        monkeypatch.setattr(straight_through_linear, "HAS_INT8_PRODUCT", has_int8_product)
        x = inputs().requires_grad_()
        y = m(x)
        y.square().sum().backward()
        results.append((y.detach(), x.grad, m.weight.grad))
        m.weight.grad = None
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.skipif(not straight_through_linear.HAS_INT8_PRODUCT, reason="this processor has no int8 product")
def test_int8_product_rounds_once_in_low_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    m = layer().to(torch.bfloat16).requires_grad_(False)
    x = inputs(torch.bfloat16)
    exact = copy.deepcopy(m).float()(x.float())
    errors = []
    for has_int8_product in (True, False):
        monkeypatch.setattr(straight_through_linear, "HAS_INT8_PRODUCT", has_int8_product)
        errors.append((m(x).float() - exact).abs().max().item())
    assert errors[0] <= errors[1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_diverged_input_or_weight_shows_in_the_result(bad: float) -> None:
    """int8 has no NaN, so the scales must carry it."""
    x = inputs()
    x[0, 3, 5] = bad
    y = layer()(x)
    assert not torch.isfinite(y[0, 3]).any()
    assert torch.isfinite(y[1]).all()
    m = layer()
    with torch.no_grad():
        m.weight[2, 2] = bad
    assert not torch.isfinite(m(inputs())).any()
