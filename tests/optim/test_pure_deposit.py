"""Deposits against a float64 formula, and their independence of scale, order and division into rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from onebit.optim import pure_deposit
from onebit.optim.pure_deposit import (
    Factors,
    deposit_counts,
    deposit_rule,
    eta_from_lr,
    square_sums,
    update_energy,
    update_moments,
)
from onebit.quant.counters import counter_named

ETA = 0.12


def gradient(rows: int = 24, cols: int = 37, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.rand(rows, 1, generator=generator) * torch.rand(1, cols, generator=generator)
    return torch.randn(rows, cols, generator=generator) * sizes * 1e-4


def factors_of(g: Tensor, step: int = 1, moments: tuple[Tensor, Tensor] | None = None) -> Factors:
    moments = moments or (torch.zeros(g.shape[0]), torch.zeros(g.shape[1]))
    peak = g.abs().max()
    return update_moments(moments, square_sums(g, peak, g.shape[0]), peak, torch.tensor(step))


def counts(g: Tensor, parts: list[slice] | None = None, name: str = "int8", eta: float = ETA) -> Tensor:
    """One deposit as a division into rows would make it: each part sums by itself, and knows its first row."""
    rows = g.shape[0]
    parts = parts or [slice(0, rows)]
    peak = torch.stack([g[part].abs().max() for part in parts]).max()
    sums = [square_sums(g[part], peak, rows) for part in parts]
    all_sums = torch.cat([row for row, _ in sums]), torch.stack([column for _, column in sums]).sum(0)
    moments = torch.zeros(rows), torch.zeros(g.shape[1])
    factors = update_moments(moments, all_sums, peak, torch.tensor(1))
    shares = [Factors(factors.row_O1[part], factors.column_I, factors.is_finite) for part in parts]
    energy = sum(update_energy(g[part], share) for part, share in zip(parts, shares, strict=True))
    assert isinstance(energy, Tensor)
    rule = deposit_rule(counter_named(name), eta, energy / g.numel())
    made = [
        deposit_counts(
            g[part], share, *rule, seed=3, tensor=5, step=torch.tensor(1),
            part=slice(0, part.stop - part.start), first_row=part.start,
        )
        for part, share in zip(parts, shares, strict=True)
    ]  # fmt: skip
    return torch.cat(made)


def test_the_update_is_the_formula() -> None:
    row, column = torch.zeros(24), torch.zeros(37)
    row64, column64 = row.double(), column.double()
    for step in range(1, 5):
        g = gradient(seed=step)
        peak = g.abs().max()
        factors = update_moments((row, column), square_sums(g, peak, 24), peak, torch.tensor(step))
        row64 = 0.99 * row64 + 0.01 * g.double().square().mean(1)
        column64 = 0.99 * column64 + 0.01 * g.double().square().mean(0)
        expected = g.double() / torch.sqrt(row64.unsqueeze(1) * column64 / (row64.mean() * (1 - 0.99**step)))
        torch.testing.assert_close(g * factors.row_O1 * factors.column_I, expected.float(), rtol=1e-5, atol=0)
        energy = update_energy(g, factors)
        assert energy.item() == pytest.approx(expected.square().sum().item(), rel=1e-5)


@pytest.mark.parametrize("size", [0.5, 3.0])
def test_counts_have_the_mean_of_the_clipped_update(size: float) -> None:
    g = gradient(400, 400)
    factors = factors_of(g)
    u = g * factors.row_O1 * factors.column_I
    mean_square = u.double().square().mean() * size**2
    factors = Factors(factors.row_O1 * size, factors.column_I, factors.is_finite)
    rule = deposit_rule(counter_named("int8"), ETA, mean_square)
    got = torch.stack([
        deposit_counts(g, factors, *rule, seed=1, tensor=2, step=torch.tensor(step), part=slice(0, 400))
        for step in range(20)
    ]).double().mean(0)  # fmt: skip
    rms = mean_square.sqrt()
    expected = -0.12 * 63 * (u.double() * size) / max(1.0, rms.item())
    error = (got - expected) * 20**0.5  # of standard deviation at most 1/2
    assert error.square().mean().sqrt() < 0.55
    assert abs(error.mean().item()) < 6 * 0.5 / 400


@pytest.mark.parametrize("name", ["int8", "int4", "none"])
def test_any_division_into_rows_gives_the_same_integers(name: str) -> None:
    g, eta = gradient(), 0.5
    whole = counts(g, name=name, eta=eta)
    assert whole.abs().max() > 0
    for parts in ([slice(0, 12), slice(12, 24)], [slice(0, 1), slice(1, 8), slice(8, 24)]):
        assert torch.equal(counts(g, parts, name, eta), whole)


def test_sums_do_not_depend_on_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    g = gradient(300, 200) * torch.logspace(-6, 6, 300).unsqueeze(1)
    peak = g.abs().max()
    row, column = square_sums(g, peak, 300)
    monkeypatch.setattr(pure_deposit, "_CHUNK", {"cpu": 700})
    mixed = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    row_mixed, column_mixed = square_sums(g[mixed], peak, 300)
    assert torch.equal(column, column_mixed)
    assert torch.equal(row[mixed], row_mixed)
    assert torch.equal(square_sums(g.flip(1), peak, 300)[0], row)
    torch.testing.assert_close(column, g.double().square().sum(0), rtol=1e-6, atol=0)


def test_the_size_of_the_loss_does_not_matter() -> None:
    g = gradient()
    whole = counts(g)
    for scale in (2.0**-40, 2.0**30):  # powers of two, as others round
        assert torch.equal(counts(g * scale), whole)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e20])
def test_a_gradient_that_is_no_number_changes_nothing(bad: float) -> None:
    g = gradient()
    g[3, 4] = bad
    assert not counts(g).any()
    moments = torch.ones(24), torch.ones(37)
    peak = g.abs().max()
    update_moments(moments, square_sums(g, peak, 24), peak, torch.tensor(9))
    assert all(bool((one == 1.0).all()) for one in moments)


def test_rows_without_a_gradient_stay_where_they_are() -> None:
    g = gradient()
    g[2], g[:, 5] = 0.0, 0.0
    made = counts(g)
    assert made.abs().max() > 0
    assert not made[2].any()
    assert not made[:, 5].any()
    assert not counts(torch.zeros(4, 5)).any()


def test_eta() -> None:
    assert eta_from_lr(5e-3, 0.08, is_binary=False) == pytest.approx(0.125)
    assert eta_from_lr(5e-3, 0.08, is_binary=True) == pytest.approx(0.0625)
