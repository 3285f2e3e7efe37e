"""Small models for the tests of this room."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from onebit.models import OneBitConfig, OneBitForCausalLM

SMALL = {
    "vocab_size": 61,
    "hidden_size": 48,
    "num_heads": 4,
    "num_layers": 2,
    "intermediate_size": 80,
    "max_seq_len": 40,
}


@pytest.fixture
def make_config() -> Callable[..., OneBitConfig]:
    def make(preset: str = "seed", **overrides: Any) -> OneBitConfig:
        return OneBitConfig.preset(preset, **(SMALL | overrides))

    return make


@pytest.fixture
def make_model(make_config: Callable[..., OneBitConfig]) -> Callable[..., OneBitForCausalLM]:
    """A seeded model in evaluation mode whose norms and biases are not at their trivial initial values."""

    def make(preset: str = "seed", seed: int = 0, **overrides: Any) -> OneBitForCausalLM:
        torch.manual_seed(seed)
        model = OneBitForCausalLM(make_config(preset, **overrides)).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.2)
                elif "embed_positions" in name:
                    parameter.mul_(10)
        return model

    return make
