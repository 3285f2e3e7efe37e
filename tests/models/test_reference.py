"""Logits against the float64 reference over the grid of flags: a flag that the model ignores fails here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from onebit.models import OneBitForCausalLM

from .reference import Reference

IDS = [3, 17, 60, 0, 5, 42, 42, 9, 31, 7, 11, 2]
MakeModel = Callable[..., OneBitForCausalLM]

# Every architecture flag of the configuration, away from its value in the preset that it is tried on.
FLAGS: list[tuple[str, dict[str, Any]]] = [
    ("seed", {"use_ternary": True}),
    ("seed", {"use_ternary": True, "use_dynamic_threshold": False}),
    ("seed", {"use_relu2": True}),
    ("seed", {"use_swiglu": True}),
    ("seed", {"use_relu2": True, "use_swiglu": True}),
    ("seed", {"use_subln": True}),
    ("seed", {"use_rope": True}),
    ("seed", {"use_qk_norm": False}),
    ("seed", {"use_residual_scaling": False}),
    ("seed", {"use_sub_norm": True}),
    ("seed", {"center_binary": False}),
    ("bitnet", {"num_key_value_heads": 2}),
    ("bitnet", {"num_key_value_heads": 1, "head_dim": 16}),
    ("bitnet", {"rope_theta": 100.0}),
    ("bitnet", {"norm_eps": 0.3}),
    ("bitnet", {"attention_bias": True}),
    ("bitnet", {"mlp_bias": True}),
    ("bitnet", {"tie_word_embeddings": False}),
    ("bitnet", {"granularity": "per_row"}),
    ("bitnet", {"granularity": "per_group", "group_size": 64}),
    ("bitnet", {"quantizer": "threshold"}),
    ("bitnet", {"quantizer": "binary"}),
    ("bitnet", {"quantizer": "none"}),
    ("bitnet", {"weight_sparsity_threshold": 0.6}),
    ("bitnet", {"bit_width_map": {"layers.0.*": "binary", "layers.1.mlp.*": "int4", "layers.1.attention.*": "int8"}}),
    ("bitnet", {"bit_width_map": {"layers.*.mlp.down_proj": "float16", "layers.0.*": "float32"}}),
    ("bitnet", {"bit_width_map": {"embed_tokens": "int8", "lm_head": "int8"}}),
    ("bitnet", {"bit_width_map": {"*": "ternary"}, "granularity": "per_group", "group_size": 64}),
    ("bitnet", {"bit_width_map": {"embed_tokens": "float16", "lm_head": "int4"}, "tie_word_embeddings": False}),
    ("llama", {}),
    ("qwen3", {"head_dim": 24}),
]


@pytest.mark.parametrize(("preset", "changes"), FLAGS, ids=str)
def test_every_flag_does_what_it_says(make_model: MakeModel, preset: str, changes: dict[str, Any]) -> None:
    model = make_model(preset, activation_quantizer="none", **changes)
    with torch.no_grad():
        got = model(torch.tensor([IDS])).logits[0].numpy()
    expected = Reference(model).logits(IDS)
    # float32 against float64 through two layers: 1e-5 of the largest logit is about 80 roundings
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()

    plain = make_model(preset, activation_quantizer="none")
    if changes and _same_shapes(model, plain):
        plain.load_state_dict(model.state_dict())
        with torch.no_grad():
            unchanged = plain(torch.tensor([IDS])).logits[0].numpy()
        # float16 of the tied table changes least: a weight moves by 2^-12 of itself
        assert np.abs(got - unchanged).max() > 1e-4 * np.abs(got).max(), "the flag changes nothing"


def _same_shapes(one: OneBitForCausalLM, other: OneBitForCausalLM) -> bool:
    shapes = [{name: value.shape for name, value in model.state_dict().items()} for model in (one, other)]
    return shapes[0] == shapes[1]


@pytest.mark.parametrize("preset", ["seed", "bitnet", "llama", "qwen3"])
@pytest.mark.parametrize("kind", ["int8", "sign"])
def test_activation_quantisers(make_model: MakeModel, preset: str, kind: str) -> None:
    model = make_model(preset, activation_quantizer=kind)
    with torch.no_grad():
        got = model(torch.tensor([IDS])).logits[0].numpy()
        without = make_model(preset, activation_quantizer="none")(torch.tensor([IDS])).logits[0].numpy()
    expected = Reference(model).logits(IDS)
    difference = np.abs(got - expected) / np.abs(expected).max()
    # A code that rounds the other way in float64 is a real jump, so the median speaks and the maximum is loose.
    assert np.median(difference) <= 1e-5
    assert difference.max() <= 2e-2
    assert np.median(np.abs(got - without)) > 1e-4 * np.abs(got).max()


def test_hidden_states_are_the_residual_stream(make_model: MakeModel) -> None:
    model = make_model("bitnet", activation_quantizer="none")
    with torch.no_grad():
        got = model(torch.tensor([IDS]), output_hidden_states=True).hidden_states
    _, expected = Reference(model).hidden(IDS)
    assert len(got) == len(expected) == 3
    for torch_state, state in zip(got, expected, strict=True):
        assert np.abs(torch_state[0].numpy() - state).max() <= 1e-5 * np.abs(state).max()


def test_float16_and_bfloat16_models_stay_close(make_model: MakeModel) -> None:
    for preset in ("bitnet", "llama"):
        # Weights that are exact in bfloat16, so that rounding them flips no code.
        model = make_model(preset).bfloat16().float()
        with torch.no_grad():
            full = model(torch.tensor([IDS])).logits
            for dtype, tolerance in ((torch.bfloat16, 0.1), (torch.float16, 0.02)):
                logits = make_model(preset).bfloat16().to(dtype)(torch.tensor([IDS])).logits
                assert logits.dtype == dtype
                assert (logits.float() - full).abs().max() <= tolerance * full.abs().max()


def test_relu_squared_does_not_overflow_float16(make_model: MakeModel) -> None:
    model = make_model("bitnet", quantizer="none", activation_quantizer="none")
    with torch.no_grad():
        model.model.layers[0].mlp.gate_proj.weight.mul_(5000)
        model.model.layers[0].mlp_norm.weight.fill_(1.0)
        logits = model.half()(torch.tensor([IDS])).logits
    assert torch.isfinite(logits).all()
