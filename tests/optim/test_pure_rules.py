"""Each rule against its formula in float64, written out for one matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from onebit.errors import ConfigError
from onebit.nn.pure_training import create_pure1bit_optimizer
from onebit.nn.pure_weight import PureWeight
from onebit.optim.pure_rules import DQT, Bop, GradientBuffer, Rule, Shadow, ShadowSGD, rule_from
from onebit.quant import WeightQuantizer
from onebit.quant.counters import counter_named
from onebit.quant.philox import random16

STEPS = 8
RULES = (Shadow(lr=5e-3), ShadowSGD(lr=0.1), GradientBuffer(threshold=0.2), Bop(tau=0.2, gamma=0.1), DQT(lr=5e-3))
SPECS = {
    "ternary": WeightQuantizer(),
    "rows": WeightQuantizer("absmean", "per_row"),
    "binary": WeightQuantizer("binary"),
}
Array = np.ndarray[Any, np.dtype[np.float64]]


def latents() -> Tensor:
    return torch.randn(12, 21, generator=torch.Generator().manual_seed(1)) * 0.05


def gradients() -> list[Tensor]:
    """With a part that stays, so that averages grow; exact in bfloat16, which the first is kept in."""
    generator = torch.Generator().manual_seed(0)
    drift = torch.randn(12, 21, generator=generator) * 0.05
    return [(torch.randn(12, 21, generator=generator) * 0.1 + drift).bfloat16().float() for _ in range(STEPS)]


def trained(rule: Rule, spec: WeightQuantizer, counter: str = "int8") -> tuple[PureWeight, list[Tensor], Any]:
    """(the weight, its codes before and after every step, its optimizer); the rate is 1 and 0.5 in turn."""
    weight = PureWeight(21, 12, spec, counter_named(counter))
    weight.set_latents(latents())
    optimizer, _ = create_pure1bit_optimizer(torch.nn.ModuleDict({"only": weight}), lr=1e-3, rule=rule)
    codes = [weight.quantized().codes_OI]
    for step, g_OI in enumerate(gradients()):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * _share(step)
        weight.take(g_OI.clone())
        weight.log_scale.grad = torch.zeros_like(weight.log_scale)  # the scale stays
        optimizer.step()
        optimizer.zero_grad()
        codes.append(weight.quantized().codes_OI)
    return weight, codes, optimizer


def _share(step: int) -> float:
    return 1.0 if step % 2 == 0 else 0.5


def _adam(g: Array, memory: dict[str, Array], step: int) -> Array:
    """The update of Kingma and Ba's algorithm 1 (arXiv 1412.6980)."""
    memory["m"] = 0.9 * memory.get("m", 0.0) + 0.1 * g  # type: ignore[assignment]
    memory["v"] = 0.98 * memory.get("v", 0.0) + 0.02 * g**2  # type: ignore[assignment]
    return (memory["m"] / (1 - 0.9**step)) / (np.sqrt(memory["v"] / (1 - 0.98**step)) + 1e-8)  # type: ignore[no-any-return]


def _nearest(x: Array, levels: list[int]) -> Array:
    return np.array(levels)[np.abs(x[..., None] - np.array(levels)).argmin(-1)].astype(float)


def _shadow(gs: list[Array], w: Array, codes: Array, scale: Array, levels: list[int], weight: PureWeight) -> Array:
    memory: dict[str, Array] = {}
    for t, g in enumerate(gs):
        w = w - 5e-3 * _share(t) * _adam(g, memory, t + 1)
    return _nearest(w / scale, levels)


def _shadow_sgd(gs: list[Array], w: Array, codes: Array, scale: Array, levels: list[int], weight: PureWeight) -> Array:
    return _nearest((w - sum(0.1 * _share(t) * g for t, g in enumerate(gs))) / scale, levels)


def _buffer(gs: list[Array], w: Array, codes: Array, scale: Array, levels: list[int], weight: PureWeight) -> Array:
    codes = codes.copy()
    for place in np.ndindex(codes.shape):
        total = 0.0
        for g in gs:
            total += g[place]
            if abs(total) > 0.2:
                at = levels.index(int(codes[place])) + (-1 if total > 0 else 1)
                codes[place] = levels[min(max(at, 0), len(levels) - 1)]
                total = 0.0
    return codes


def _bop(gs: list[Array], w: Array, codes: Array, scale: Array, levels: list[int], weight: PureWeight) -> Array:
    codes, m, square = codes.copy(), np.zeros_like(codes), 0.0
    for t, g in enumerate(gs):
        m = 0.9 * m + 0.1 * g
        square = 0.99 * square + 0.01 * float((g**2).mean())
        threshold = 0.2 * np.sqrt(square / (1 - 0.99 ** (t + 1)))
        for place in np.ndindex(codes.shape):
            if abs(m[place]) > threshold:
                at = levels.index(int(codes[place])) - int(np.sign(m[place]))
                codes[place] = levels[min(max(at, 0), len(levels) - 1)]
    return codes


def _dqt(gs: list[Array], w: Array, codes: Array, scale: Array, levels: list[int], weight: PureWeight) -> Array:
    memory: dict[str, Array] = {}
    gap = levels[1] - levels[0]
    for t, g in enumerate(gs):
        moved = codes * scale - 5e-3 * _share(t) * _adam(g, memory, t + 1)
        above = (np.clip(moved / scale, -1, 1) + 1) / gap
        words = random16(0, weight.tensor, t + 1, range(12), 21, torch.device("cpu")).double().numpy()
        codes = (np.floor(above) + ((words + 32768.5) / 65536 < above - np.floor(above))) * gap - 1
    return codes


FORMULAS: dict[str, Callable[..., Array]] = {
    "shadow": _shadow,
    "shadow_sgd": _shadow_sgd,
    "gradient_buffer": _buffer,
    "bop": _bop,
    "dqt": _dqt,
}


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_the_rule_is_its_formula(rule: Rule, kind: str) -> None:
    weight, codes, _ = trained(rule, SPECS[kind])
    levels = [-1, 1] if kind == "binary" else [-1, 0, 1]
    start = PureWeight(21, 12, SPECS[kind], counter_named("int8"))
    start.set_latents(latents())
    scale = start.quantized().scale.double().numpy()
    scale = scale[:, None] if scale.ndim else scale
    units = 63 if kind == "binary" else 126
    w = (codes[0].double().numpy() + start.counts().double().numpy() / units) * scale
    gs = [g.double().numpy() for g in gradients()]
    expected = FORMULAS[rule.name](gs, w, codes[0].double().numpy(), scale, levels, weight)
    np.testing.assert_array_equal(codes[-1].numpy(), expected)
    assert 0.02 < (codes[-1] != codes[0]).float().mean() < 0.9
    assert all(set(made.unique().tolist()) <= set(levels) for made in codes)
    assert not weight.counts().any()


def test_a_shadow_begins_at_the_latents_as_far_as_they_are_known() -> None:
    for counter, error in (("int8", 1 / 126), ("none", 0.5)):
        weight = PureWeight(21, 12, WeightQuantizer(), counter_named(counter))
        weight.set_latents(latents())
        scale = weight.quantized().scale
        inside = latents().abs() < (2 if counter == "int8" else 1.5) * scale  # what lies further out is cut off
        off = (weight.hand_over_counters() - latents()) / scale
        assert off[inside].abs().max() <= error + 1e-6


def test_state_is_float32_beside_the_scales_and_comes_back() -> None:
    for rule, count in zip(RULES, (3, 1, 1, 1, 2), strict=True):
        _, _, optimizer = trained(rule, WeightQuantizer())
        kept = optimizer.state_dict()["state"][0]["codes"]
        assert sum(value.numel() == 12 * 21 for value in kept.values()) == count
        assert {value.dtype for value in kept.values()} == {torch.float32}
        assert rule_from(optimizer.state_dict()["param_groups"][-1]["rule"]) == rule


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Shadow(lr=0), "lr is 0"),
        (lambda: ShadowSGD(lr=-1), "lr is -1"),
        (lambda: GradientBuffer(threshold=0), "threshold is 0"),
        (lambda: Bop(tau=0), "tau is 0"),
        (lambda: Bop(tau=1, gamma=2), "gamma is 2"),
        (lambda: DQT(lr=float("nan")), "lr is nan"),
    ],
)
def test_wrong_numbers(make: Callable[[], Rule], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
