"""Pure1BitLinear: products against float64, gradients, codes and counters through training, nothing float between."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from onebit.errors import ConfigError, OnebitError
from onebit.nn.coded_matrix import exported_scale
from onebit.nn.pure_linear import Pure1BitLinear
from onebit.nn.pure_training import create_pure1bit_optimizer
from onebit.quant import dequantize, fake_quantize_activations

from .pure_models import IDS, WIDE, layers_of, live_float_shapes, loss_of, pure_model, train

FORMS: list[dict[str, Any]] = [
    {},
    {"granularity": "per_row"},
    {"granularity": "per_group", "group_size": 64},
    {"quantizer": "binary"},
    {"quantizer": "binary", "granularity": "per_group", "group_size": 64, "activation_quantizer": "sign"},
    {"quantizer": "threshold", "activation_quantizer": "none"},
]


def layer(**arguments: Any) -> Pure1BitLinear:
    torch.manual_seed(0)
    return Pure1BitLinear(WIDE, 24, **arguments)


@pytest.mark.parametrize("arguments", FORMS, ids=str)
def test_forward_and_gradients_are_the_formula(arguments: dict[str, Any]) -> None:
    made = layer(**arguments)
    x = torch.randn(3, 5, WIDE, requires_grad=True)
    y = made(x)
    quantized = made.quantized()
    w = dequantize(quantized).double().requires_grad_()
    kind = made.activation_quantizer
    q = x.detach().double() if kind == "none" else fake_quantize_activations(x.detach(), kind).double()
    q.requires_grad_()
    expected = q @ w.t() + made.bias.detach().double()
    torch.testing.assert_close(y, expected.float(), rtol=1e-5, atol=1e-5)
    g = torch.randn_like(y)
    y.backward(g)
    expected.backward(g.double())
    torch.testing.assert_close(x.grad, q.grad.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(made.bias.grad, g.flatten(0, 1).sum(0))
    # The scale's gradient: dL/dW through W = codes * exp(log_scale), summed over what shares it: with scales per group
    # they keep their proportions in a row.
    shares = w.grad * w.detach()
    shares = shares.sum(1) if made.weight.log_scale.ndim else shares.sum()
    torch.testing.assert_close(made.weight.log_scale.grad, shares.float(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("counter", ["int8", "int4", "none"])
@pytest.mark.parametrize("quantizer", ["absmean", "binary"])
def test_codes_stay_codes_and_move(counter: str, quantizer: str) -> None:
    model = pure_model(counter=counter, quantizer=quantizer)
    optimizer, _ = create_pure1bit_optimizer(model, lr=2e-2, eta=0.5)
    allowed = {-1, 1} if quantizer == "binary" else {-1, 0, 1}
    before = [made.quantized().codes_OI.clone() for made in layers_of(model)]
    first = None
    for step in range(20):
        loss = loss_of(model, IDS[step % 6])
        first = first or loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for made in layers_of(model):
            assert set(made.quantized().codes_OI.unique().tolist()) <= allowed
            assert made.weight.counts().abs().max() <= made.weight.counter.bound
            assert made.weight.moves is not None
    assert all(
        bool((made.quantized().codes_OI != codes).any()) for made, codes in zip(layers_of(model), before, strict=True)
    )
    assert loss.item() < first  # type: ignore[operator]


@pytest.mark.parametrize("steps", [1, 2])
def test_no_float_of_a_weights_size_lives_between_steps(steps: int) -> None:
    weights = {(WIDE, 32), (32, WIDE), (WIDE * 32,)}
    model = pure_model()
    optimizer, _ = create_pure1bit_optimizer(model, lr=1e-3, gradient_accumulation_steps=steps)
    for step in range(4):
        loss_of(model, IDS[step]).backward()
        if step % steps == 0 and steps > 1:
            continue
        optimizer.step()
        optimizer.zero_grad()
        assert not weights & live_float_shapes(), step
    # The walk does find what it looks for.
    kept = torch.zeros(WIDE, 32)
    assert tuple(kept.shape) in live_float_shapes()


def test_forward_and_backward_change_no_code() -> None:
    model = pure_model()
    create_pure1bit_optimizer(model, lr=0.1, gradient_accumulation_steps=2)
    before = [made.weight.codes.clone() for made in layers_of(model)]
    loss_of(model, IDS[0]).backward()
    assert all(torch.equal(made.weight.codes, codes) for made, codes in zip(layers_of(model), before, strict=True))
    assert all(made.weight.gradient_sum is not None for made in layers_of(model))


def test_a_step_between_forward_and_backward_is_noticed() -> None:
    model = pure_model()
    optimizer, _ = create_pure1bit_optimizer(model)
    loss = loss_of(model, IDS[0])
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_scales_per_group_keep_their_proportions_and_train_a_factor_for_each_row() -> None:
    model = pure_model(granularity="per_group", group_size=64)
    weight = model.up.weight
    before = model.up.quantized().scale.float()
    assert torch.equal(weight.group_scales.float(), before)
    assert weight.log_scale.shape == before.shape[:1]
    train(model).detach()
    after = model.up.quantized().scale
    assert after.dtype == torch.float16
    factor = after.float() / before
    assert not torch.equal(factor, torch.ones_like(factor))
    torch.testing.assert_close(factor, factor[:, :1].expand_as(factor), rtol=2.0**-9, atol=0)  # rounded to float16


@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float16, torch.float64])
def test_a_cast_leaves_codes_counters_and_scale_alone(cast: torch.dtype) -> None:
    model = pure_model()
    train(model).detach()
    before = {name: value.clone() for name, value in model.up.weight.state_dict().items()}
    parameter = model.up.weight.log_scale
    model.to(cast)
    assert model.up.weight.log_scale is parameter
    assert model.up.bias.dtype == cast
    for name, value in model.up.weight.state_dict().items():
        assert torch.equal(value, before[name])
        assert value.dtype == before[name].dtype
    assert model(IDS[0]).dtype == cast


def test_bfloat16_and_autocast_train() -> None:
    whole = pure_model().bfloat16()
    train(whole, 2)
    assert whole.embed_tokens.weight.dtype == torch.bfloat16
    mixed = pure_model()
    optimizer, _ = create_pure1bit_optimizer(mixed, lr=2e-2)
    for step in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(mixed, IDS[step])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(int(made.weight.deposits) == 3 for made in layers_of(mixed))
    assert mixed.up(torch.randn(2, 32)).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert mixed.up(torch.randn(2, 32)).dtype == torch.bfloat16


def test_float16_is_refused_in_training_only() -> None:
    model = pure_model().half()
    assert model(IDS[0]).dtype == torch.float16
    create_pure1bit_optimizer(model)
    with pytest.raises(OnebitError, match="loss scaling skips steps after their gradients were deposited"):
        model(IDS[0])
    with torch.no_grad():
        assert bool(torch.isfinite(model(IDS[0])).all())


def test_large_sums_of_codes_fit_into_float16() -> None:
    made = Pure1BitLinear(4096, 1, bias=False).half()
    made.weight.codes.fill_(0b01010101)
    x = torch.ones(1, 4096, dtype=torch.float16)
    expected = 4096 * made.quantized().scale.item()
    assert made(x).item() == pytest.approx(expected, rel=2e-3)


def test_a_copy_and_a_state_dict_hold_everything() -> None:
    model = pure_model()
    train(model)
    clone = copy.deepcopy(model)
    assert all(made.weight.handle == 0 for made in layers_of(clone))
    assert all(made.weight.handle != 0 for made in layers_of(model))
    fresh = pure_model(seed=1)
    fresh.load_state_dict(model.state_dict())
    for other in (clone, fresh):
        assert torch.equal(other(IDS[0]), model(IDS[0]))
        assert torch.equal(other.up.weight.counts(), model.up.weight.counts())


def test_one_vector_and_no_gradient_for_inputs() -> None:
    made = layer()
    x = torch.randn(2, WIDE)
    torch.testing.assert_close(made(x[0]), made(x)[0])
    made(x).sum().backward()
    assert made.weight.log_scale.grad is not None
    with torch.no_grad():
        assert made(x).requires_grad is False


def test_checkpointing_deposits_once() -> None:
    plain, checkpointed = pure_model(), pure_model()
    for model in (plain, checkpointed):
        optimizer, _ = create_pure1bit_optimizer(model, lr=2e-2)
        for step in range(3):
            if model is checkpointed:
                x = model.embed_tokens(IDS[step])
                x = torch.utils.checkpoint.checkpoint(_blocks(model), x, use_reentrant=False)
                logits = model.lm_head(x)
                loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[step][:, 1:].flatten())
            else:
                loss = loss_of(model, IDS[step])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert int(checkpointed.up.weight.deposits) == 3
    for ours, theirs in zip(plain.state_dict().values(), checkpointed.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def _blocks(model: Any) -> Any:
    def run(x: Tensor) -> Tensor:
        x = x + model.down(torch.relu(model.up(model.norm(x))))
        return x + model.back(torch.relu(model.again(model.norm(x))))

    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quantizer": "int8"}, "quantizer is 'int8', but pure training has ternary and binary codes only"),
        ({"quantizer": None}, "quantizer is None"),
        ({"counter": "int2"}, "counter is 'int2'"),
        ({"activation_quantizer": "int4"}, "activation_quantizer is 'int4'"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        layer(**arguments)


def test_the_meta_device_and_back() -> None:
    made = Pure1BitLinear(WIDE, 24, device="meta")
    assert made.weight.codes.is_meta
    made.to_empty(device="cpu")
    made.load_state_dict(layer().state_dict())
    x = torch.randn(2, WIDE)
    assert torch.equal(made(x), layer()(x))


@pytest.mark.parametrize("arguments", FORMS[:3], ids=str)
def test_what_a_compiler_is_told_of_a_scales_gradient_is_what_it_gets(arguments: dict[str, Any]) -> None:
    w = layer(**arguments).weight
    scale = exported_scale(w.log_scale.detach(), w.group_scales)
    g_TO, x_TI = torch.randn(5, w.out_features), torch.randint(-127, 128, (5, w.in_features), dtype=torch.int8)
    given = g_TO, x_TI, w.codes, scale, w.spec.group_size or 0, False, 0
    got = torch.ops.onebit.pure_weight_gradient(*given)
    with FakeTensorMode() as mode:
        fakes = (mode.from_tensor(one) if isinstance(one, Tensor) else one for one in given)
        told = torch.ops.onebit.pure_weight_gradient(*fakes)
    assert (told.shape, told.dtype) == (got.shape, got.dtype) == (w.log_scale.shape, torch.float32)
