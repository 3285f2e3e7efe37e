"""The rules beside the counters, in the training of a model: they learn, resume, sum, and say what they do not take."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from onebit.errors import ConfigError
from onebit.nn.pure_training import create_pure1bit_optimizer
from onebit.optim.pure_rules import DQT, Bop, GradientBuffer, Rule, Shadow, ShadowSGD

from .pure_models import IDS, Small, layers_of, loss_of, pure_model

RULES = (Shadow(lr=2e-2), ShadowSGD(lr=1.0), GradientBuffer(threshold=0.02), Bop(tau=0.3), DQT(lr=2e-3))
each_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)


def steps_of(model: Small, optimizer: Any, steps: range, parts: int = 1) -> list[float]:
    losses = []
    for step in steps:
        losses.append(0.0)
        for part in IDS[step % 6].chunk(parts):
            loss = loss_of(model, part) / parts
            loss.backward()
            losses[-1] += float(loss.detach())
        optimizer.step()
        optimizer.zero_grad()
    return losses


@each_rule
@pytest.mark.parametrize("quantizer", ["absmean", "binary"])
def test_the_loss_falls_with_codes_alone(rule: Rule, quantizer: str) -> None:
    model = pure_model(quantizer=quantizer)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("log_scale"))
    optimizer, helper = create_pure1bit_optimizer(model, lr=1e-6, rule=rule)  # of the scales, which then hardly move
    levels = {-1, 1} if quantizer == "binary" else {-1, 0, 1}
    losses = []
    for step in range(60):
        losses += steps_of(model, optimizer, range(step, step + 1))
        for made in layers_of(model):
            assert set(made.quantized().codes_OI.unique().tolist()) <= levels
    assert sum(losses[-6:]) < 0.97 * sum(losses[:6])
    assert 0 < helper.telemetry()["flips"] < 0.3


@each_rule
def test_a_resumed_run_is_the_same_to_the_bit(rule: Rule) -> None:
    straight = pure_model(counter="none")
    optimizer, _ = create_pure1bit_optimizer(straight, lr=2e-2, rule=rule)
    steps_of(straight, optimizer, range(3))
    saved = io.BytesIO()
    torch.save({"model": straight.state_dict(), "optimizer": optimizer.state_dict()}, saved)
    steps_of(straight, optimizer, range(3, 6))

    saved.seek(0)
    kept = torch.load(saved, weights_only=True)
    resumed = pure_model(counter="none", seed=1)
    optimizer, _ = create_pure1bit_optimizer(resumed, lr=7.0, rule=Bop(tau=5), seed=9)  # all of it comes from the file
    resumed.load_state_dict(kept["model"])
    optimizer.load_state_dict(kept["optimizer"])
    steps_of(resumed, optimizer, range(3, 6))
    theirs = resumed.state_dict()
    assert [name for name, value in straight.state_dict().items() if not torch.equal(value, theirs[name])] == []


@each_rule
def test_microbatches_are_one_large_batch(rule: Rule) -> None:
    models = pure_model(), pure_model()
    for model, parts in zip(models, (1, 2), strict=True):
        optimizer, _ = create_pure1bit_optimizer(model, lr=2e-2, rule=rule)
        steps_of(model, optimizer, range(2), parts)
        assert optimizer.deposits_at_once(model.up.weight) is (parts == 1)
    same = models[0].up.quantized().codes_OI == models[1].up.quantized().codes_OI
    assert same.float().mean() > 0.98  # sums of the microbatches are rounded to bfloat16


@each_rule
def test_processes_take_the_mean_of_their_gradients(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    alone, one_of_two = pure_model(), pure_model()
    steps_of(alone, create_pure1bit_optimizer(alone, lr=2e-2, rule=rule)[0], range(3))
    yes, add_its_twins = (lambda: True), (lambda g: g.mul_(2))
    pair = SimpleNamespace(is_available=yes, is_initialized=yes, get_world_size=lambda: 2, all_reduce=add_its_twins)
    monkeypatch.setattr("onebit.nn.pure_weight.dist", pair)
    steps_of(one_of_two, create_pure1bit_optimizer(one_of_two, lr=2e-2, rule=rule)[0], range(3))
    theirs = one_of_two.state_dict()
    assert [name for name, value in alone.state_dict().items() if not torch.equal(value, theirs[name])] == []


@pytest.mark.parametrize("wrong", [{"eta": 0.1}, {"accumulation": "deposit"}])
def test_what_belongs_to_the_counters_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match='the rule "bop" was given with eta or accumulation="deposit"'):
        create_pure1bit_optimizer(pure_model(), rule=Bop(tau=0.2), **wrong)
