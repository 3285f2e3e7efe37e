"""Muon against torch's own Muon and AdamW, and its orthogonal update against the singular values."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from onebit.optim import Muon, decaying_parameter_names, muon, muon_groups
from onebit.optim.muon import orthogonalize


def small_model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 16, bias=False), nn.RMSNorm(16), nn.Linear(16, 4))


def loss_of(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    return model(ids).float().square().mean() + model(ids).float().mean()


@pytest.mark.parametrize("shape", [(12, 12), (8, 32), (32, 8)])
def test_orthogonal_update_has_singular_values_near_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(shape)))
    assert (
        values.min() > 0.5
    )  # the coefficients trade exactness for speed: between 0.7 and 1.2, plus bfloat16's rounding
    assert values.max() < 1.3


def test_orthogonal_update_keeps_the_singular_vectors() -> None:
    torch.manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(16, 16))
    right, _ = torch.linalg.qr(torch.randn(16, 16))
    given = left @ torch.diag(torch.linspace(0.5, 1.0, 16)) @ right
    cosine = nn.functional.cosine_similarity(orthogonalize(given).flatten(), (left @ right).flatten(), dim=0)
    assert cosine > 0.97


def test_follows_torch_muon_and_adamw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muon, "_product_dtype", lambda g: torch.bfloat16)  # as torch's, on every processor
    ours, theirs = small_model(), small_model()
    ids = torch.randint(0, 11, (4, 5))
    names = decaying_parameter_names(ours)
    optimizer = Muon(muon_groups(ours, names, 0.1), lr=1e-2)
    matrices = [p for n, p in theirs.named_parameters() if n in names]
    rest = [p for n, p in theirs.named_parameters() if n not in names]
    their_muon = torch.optim.Muon(matrices, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW(rest, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0)
    for _ in range(5):
        for model, steppers in ((ours, [optimizer]), (theirs, [their_muon, adam])):
            loss_of(model, ids).backward()
            for stepper in steppers:
                stepper.step()
                stepper.zero_grad()
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        # Matrix updates of 0.02 in bfloat16 products (8 bits), in another order than torch's.
        tolerance = 2e-3 if name in names else 1e-4
        assert torch.allclose(a, b, atol=tolerance), name


def test_state_goes_through_a_checkpoint() -> None:
    model = small_model()
    ids = torch.randint(0, 11, (4, 5))
    optimizer = Muon(muon_groups(model, decaying_parameter_names(model), 0.1), lr=1e-2)

    def step(target: nn.Module, stepper: torch.optim.Optimizer) -> None:
        loss_of(target, ids).backward()
        stepper.step()
        stepper.zero_grad()

    step(model, optimizer)
    other = small_model()
    other.load_state_dict(model.state_dict())
    resumed = Muon(muon_groups(other, decaying_parameter_names(other), 0.1), lr=1e-2)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(model, optimizer)
    step(other, resumed)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
