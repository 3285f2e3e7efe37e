"""The optimizer and its helper: rates, accumulation, resuming, sharing, and what is refused."""

from __future__ import annotations

import copy
import io
import logging
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from onebit.errors import ConfigError, OnebitError
from onebit.nn.pure_gradient_sum import Int8Sum
from onebit.nn.pure_training import create_pure1bit_optimizer, pure1bit_training_step
from onebit.optim.pure_deposit import row_chunks

from .pure_models import IDS, layers_of, loss_of, pure_model, train


def differing(a: nn.Module, b: nn.Module) -> list[str]:
    theirs = b.state_dict()
    return [name for name, value in a.state_dict().items() if not torch.equal(value, theirs[name])]


def test_the_guides_loop() -> None:
    model = pure_model()
    optimizer, helper = create_pure1bit_optimizer(model, lr=2e-2)
    assert isinstance(optimizer, torch.optim.Optimizer)

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs.view(-1, outputs.size(-1)), targets.view(-1))

    losses = [
        pure1bit_training_step(model, optimizer, helper, loss_fn, IDS[step % 6], IDS[step % 6]).item()
        for step in range(30)
    ]
    assert losses[-1] < 0.5 * losses[0]
    told = helper.telemetry()
    assert set(told) == {"flips", "zeros", "fill", "saturated"}
    codes = torch.cat([made.quantized().codes_OI.flatten() for made in layers_of(model)])
    counts = torch.cat([made.weight.counts().flatten() for made in layers_of(model)]).int()
    assert told["zeros"] == pytest.approx((codes == 0).float().mean().item())
    assert told["fill"] == pytest.approx(counts.abs().float().mean().item() / 63)
    assert told["saturated"] == pytest.approx((counts.abs() == 126).float().mean().item())
    assert 0 < told["flips"] < 0.2
    helper.cleanup()
    before = copy.deepcopy(model.state_dict())
    loss_of(model, IDS[0]).backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items() if "counters" in name)
    create_pure1bit_optimizer(model)  # the model can be trained again


def test_eta_is_two_lr_over_the_mean_weight_and_follows_the_root_of_the_schedule() -> None:
    model = pure_model()
    optimizer, helper = create_pure1bit_optimizer(model, lr=1e-3)
    weight = model.up.weight
    assert optimizer.eta(weight) == pytest.approx(2e-3 / weight.mean_magnitude.item())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.25)
    assert schedule.get_last_lr()[0] == 2.5e-4
    assert optimizer.eta(weight) == pytest.approx(1e-3 / weight.mean_magnitude.item())
    helper.cleanup()
    optimizer, helper = create_pure1bit_optimizer(model, lr=1e-3, eta=0.12)
    for group in optimizer.param_groups:
        group["lr"] *= 0.25
    assert optimizer.eta(weight) == pytest.approx(0.06)
    helper.cleanup()
    binary = pure_model(quantizer="binary")
    optimizer, _ = create_pure1bit_optimizer(binary, lr=1e-3)
    assert optimizer.eta(binary.up.weight) == pytest.approx(1e-3 / binary.up.weight.mean_magnitude.item())


def test_lr_and_eta_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "onebit"):
        create_pure1bit_optimizer(pure_model(), lr=1e-3, eta=0.12)
    assert "pure training of 4 matrices: lr 0.001, eta 0.12 to 0.12" in caplog.text


def test_a_rate_of_zero_changes_no_counter() -> None:
    model = pure_model()
    counters = model.up.weight.counters.clone()
    optimizer, _ = create_pure1bit_optimizer(model, lr=1e-3)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    loss_of(model, IDS[0]).backward()
    optimizer.step()
    assert torch.equal(model.up.weight.counters, counters)
    assert int(model.up.weight.deposits) == 1


def microbatched(model: Callable[[Tensor], Tensor], optimizer: Any, steps: Iterable[int], parts: int) -> None:
    for step in steps:
        for part in IDS[step].chunk(parts):
            (loss_of(model, part) / parts).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize(("accumulation", "error"), [("bfloat16", 2.0**-8), ("int8", 0.02)])
def test_microbatches_are_one_large_batch(accumulation: Any, error: float) -> None:
    # Inputs are rounded per token, so that a gradient is the sum of its microbatches' but for the sum's rounding.
    whole, parted = pure_model(), pure_model()
    gradients: dict[str, list[Tensor]] = {"whole": [], "parted": []}
    etas: list[float] = []
    for name, model, parts in (("whole", whole, 1), ("parted", parted, 4)):
        optimizer, _ = create_pure1bit_optimizer(
            model, lr=2e-2, gradient_accumulation_steps=parts, accumulation=accumulation
        )
        weight, deposit = model.up.weight, model.up.weight.deposit
        weight.__dict__["deposit"] = lambda g, eta, name=name, deposit=deposit: (
            gradients[name].append(g.clone().float()), etas.append(float(eta)), deposit(g, eta)
        )  # fmt: skip
        microbatched(model, optimizer, range(1), parts)
    assert len(gradients["parted"]) == 1
    expected = gradients["whole"][0]
    off = ((expected - gradients["parted"][0]).norm() / expected.norm()).item()
    assert off < error
    differ = (whole.up.weight.counters != parted.up.weight.counters).float().mean()
    # With one random number, two deposits are rounded to two integers with the probability of their difference, whose
    # mean is at most its root mean square: that of a deposit, eta theta at most, times how far the gradients are off.
    assert differ < etas[0] * 63 * off
    moved_apart = whole.up.quantized().codes_OI != parted.up.quantized().codes_OI
    assert moved_apart.float().mean() < 0.02


def test_an_int8_sum_keeps_columns_of_any_size() -> None:
    torch.manual_seed(0)
    sizes = torch.logspace(-2, 2, 100).unsqueeze(0) * torch.logspace(-1, 1, 30).unsqueeze(1)
    parts = [torch.randn(30, 100) * sizes * 1e-6 for _ in range(16)]
    moments = parts[0].square().mean(0)
    total = Int8Sum(moments)
    for part in parts:
        total.add(part)
    exact = torch.stack(parts).double().sum(0)
    error = (total.total() - exact) / (sizes * 1e-6)
    assert error.square().mean().sqrt() < 0.3  # of 4, the size of a sum of 16
    assert total.total().shape == (30, 100)
    bad = Int8Sum(moments)
    bad.add(parts[0].masked_fill(parts[0].abs() == parts[0].abs().max(), torch.inf))
    assert not torch.isfinite(bad.total()).all()


@pytest.mark.parametrize("count", [2, 4, 16])
def test_an_int8_sum_is_as_near_as_its_roundings_allow(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    parts = torch.randn(count, 64, 256, generator=generator)
    total = Int8Sum(torch.ones(256))
    for part in parts:
        total.add(part)
    exact = parts.double().sum(0)
    error = float((total.total() - exact).norm() / exact.norm())
    # Each rounding of a sum of k parts adds the variance step^2 / 12 with a step of max / 127, where the largest of 64
    # normal numbers is 2.4 of their deviations, 2.5 in the square mean: sum of k = 1 .. count, over count.
    assert error == pytest.approx(2.5 / 127 / 12**0.5 * ((count + 1) / 2) ** 0.5, rel=0.1)


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e6])
def test_an_int8_sum_that_begins_with_zeros(size: float) -> None:
    """A first microbatch without a label, before any moment is known: its zeros say nothing about sizes."""
    torch.manual_seed(0)
    weight = layers_of(pure_model())[0].weight
    create_pure1bit_optimizer(nn.ModuleList([weight]), gradient_accumulation_steps=3)
    parts = [torch.zeros(weight.shape), *(size * torch.randn(2, *weight.shape))]
    for part in parts:
        weight.take(part)
    assert isinstance(weight.gradient_sum, Int8Sum)
    exact = sum(parts)
    assert float((weight.gradient_sum.total() - exact).norm()) < 0.02 * float(exact.norm())


def test_an_int8_sum_of_columns_that_begin_later() -> None:
    """Inputs that are 0 throughout the first microbatch, as behind a ReLU, do not spoil their neighbours' sums."""
    torch.manual_seed(0)
    parts = torch.randn(4, 30, 128)
    parts[0, :, ::3] = 0.0
    total = Int8Sum(parts[0].square().mean(0))
    for part in parts:
        total.add(part)
    exact = parts.double().sum(0)
    assert float((total.total() - exact).norm()) < 0.015 * float(exact.norm())


def test_the_first_step_finds_out_whether_gradients_are_summed() -> None:
    single, double = pure_model(), pure_model()
    optimizer, _ = create_pure1bit_optimizer(single)
    assert optimizer.deposits_at_once(single.up.weight) is False
    microbatched(single, optimizer, range(1), 1)
    assert optimizer.deposits_at_once(single.up.weight) is True
    optimizer, _ = create_pure1bit_optimizer(double)
    microbatched(double, optimizer, range(2), 2)
    assert optimizer.deposits_at_once(double.up.weight) is False
    assert int(double.up.weight.deposits) == 2


def test_depositing_each_microbatch() -> None:
    model = pure_model()
    optimizer, _ = create_pure1bit_optimizer(model, lr=2e-2, gradient_accumulation_steps=4, accumulation="deposit")
    eta = 4e-2 / model.up.weight.mean_magnitude.item()
    assert optimizer.eta(model.up.weight) == pytest.approx(eta / 2)
    microbatched(model, optimizer, range(2), 4)
    assert int(model.up.weight.deposits) == 8
    assert model.up.weight.gradient_sum is None


def test_a_second_gradient_after_a_deposit_is_refused() -> None:
    model = pure_model()
    create_pure1bit_optimizer(model, gradient_accumulation_steps=1)
    loss_of(model, IDS[0]).backward()
    with pytest.raises(OnebitError, match="give gradient_accumulation_steps to create_pure1bit_optimizer"):
        loss_of(model, IDS[0]).backward()


def test_zero_grad_drops_the_sum() -> None:
    model = pure_model()
    counters = model.up.weight.counters.clone()
    optimizer, _ = create_pure1bit_optimizer(model, gradient_accumulation_steps=2)
    loss_of(model, IDS[0]).backward()
    optimizer.zero_grad()
    assert model.up.weight.gradient_sum is None
    optimizer.step()
    assert torch.equal(model.up.weight.counters, counters)


@pytest.mark.parametrize(
    ("counter", "parts", "accumulation"),
    [("int8", 1, "int8"), ("int4", 1, "int8"), ("none", 1, "int8"), ("int8", 2, "int8"), ("int8", 2, "bfloat16")],
)
def test_a_resumed_run_is_the_same_to_the_bit(counter: str, parts: int, accumulation: Any) -> None:
    straight = pure_model(counter=counter, tied=True)
    optimizer, _ = create_pure1bit_optimizer(straight, lr=2e-2, accumulation=accumulation)
    microbatched(straight, optimizer, range(3), parts)
    saved = io.BytesIO()
    torch.save({"model": straight.state_dict(), "optimizer": optimizer.state_dict()}, saved)
    microbatched(straight, optimizer, range(3, 6), parts)

    saved.seek(0)
    kept = torch.load(saved, weights_only=True)
    resumed = pure_model(counter=counter, tied=True, seed=1)
    optimizer, _ = create_pure1bit_optimizer(resumed, lr=7.0, seed=9)  # all of this comes from the file
    resumed.load_state_dict(kept["model"])
    optimizer.load_state_dict(kept["optimizer"])
    assert optimizer.accumulation == accumulation
    microbatched(resumed, optimizer, range(3, 6), parts)
    assert not differing(straight, resumed)


def test_a_resumed_run_may_have_other_microbatches() -> None:
    model = pure_model()
    kept = train(model, 1, gradient_accumulation_steps=1, seed=5)
    state = kept.state_dict()
    kept.detach()
    optimizer, helper = create_pure1bit_optimizer(model, gradient_accumulation_steps=2)
    optimizer.load_state_dict(state)
    assert optimizer.seed == 5
    for part in IDS[1].chunk(2):
        loss_of(model, part).backward()
    assert model.up.weight.gradient_sum is not None
    helper.cleanup()
    optimizer, _ = create_pure1bit_optimizer(model)  # not told: the file knows
    optimizer.load_state_dict(state)
    loss_of(model, IDS[1]).backward()
    assert model.up.weight.gradient_sum is None


def test_the_seed_and_the_name_decide_the_random_numbers() -> None:
    models = [pure_model() for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        train(model, 2, seed=seed)
    assert not differing(models[0], models[1])
    assert "up.weight.counters" in differing(models[0], models[2])
    numbers = {made.weight.tensor for made in layers_of(models[0])}
    assert len(numbers) == 4


def test_parts_of_a_matrix_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = pure_model(), pure_model()
    train(whole, 3)
    monkeypatch.setattr("onebit.optim.pure_deposit._CHUNK", {"cpu": 100})
    assert len(list(row_chunks(70, 32, torch.device("cpu")))) == 24
    train(parts, 3)
    assert not differing(whole, parts)


@pytest.mark.parametrize(("parts", "has_autocast"), [(1, False), (2, False), (1, True)])
def test_compiled_in_one_graph_it_trains_to_the_same_bits(parts: int, has_autocast: bool) -> None:
    eager, inner = pure_model(), pure_model()
    torch._dynamo.reset()
    compiled = torch.compile(inner, fullgraph=True, backend="aot_eager")
    for model, called in ((eager, eager), (inner, compiled)):
        optimizer, _ = create_pure1bit_optimizer(model, lr=2e-2)
        forward = torch.autocast("cpu", torch.bfloat16, enabled=has_autocast)(called)
        microbatched(forward, optimizer, range(3), parts)
    assert not differing(eager, inner)


def test_a_gradient_that_is_no_number_changes_no_counter() -> None:
    model = pure_model()
    optimizer = train(model, 2)
    before = copy.deepcopy(model.state_dict())
    (loss_of(model, IDS[0]) * float("nan")).backward()
    for weight in optimizer.weights:
        weight.settle()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) or name.endswith("deposits")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": 0.0}, "lr is 0.0"),
        ({"eta": -1.0}, "eta is -1.0"),
        ({"seed": -1}, "seed is -1"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps is 0"),
        ({"accumulation": "mean"}, "accumulation is 'mean'"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_pure1bit_optimizer(pure_model(), **arguments)


def test_wrong_models_and_helpers() -> None:
    with pytest.raises(OnebitError, match="no Pure1BitLinear layer"):
        create_pure1bit_optimizer(nn.Linear(4, 4))
    with pytest.raises(OnebitError, match="all 4 matrices of codes are frozen"):
        create_pure1bit_optimizer(pure_model().requires_grad_(False))
    model = pure_model()
    create_pure1bit_optimizer(model)
    with pytest.raises(OnebitError, match="another optimizer trains this model's codes already"):
        create_pure1bit_optimizer(model)
    optimizer, _ = create_pure1bit_optimizer(pure_model())
    _, helper = create_pure1bit_optimizer(pure_model())
    with pytest.raises(OnebitError, match="the helper is another optimizer's"):
        pure1bit_training_step(model, optimizer, helper, lambda a, b: a, None, None)
