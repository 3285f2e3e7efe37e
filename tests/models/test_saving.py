"""Checkpoints, copies and devices: whatever a model goes through, it computes the same."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from onebit.models import OneBitConfig, OneBitForCausalLM, OneBitModel
from onebit.nn import BitLinear, bit_layers

MakeModel = Callable[..., OneBitForCausalLM]
IDS = torch.tensor([[3, 17, 60, 5, 42, 42, 9, 31]])


@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        ("seed", {}),
        ("bitnet", {"tie_word_embeddings": True}),
        ("llama", {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}),
        ("qwen3", {"num_key_value_heads": 2, "granularity": "per_group", "group_size": 64}),
        ("bitnet", {"bit_width_map": {"embed_tokens": "int8", "lm_head": "int8", "layers.0.*": "binary"}}),
    ],
    ids=str,
)
@torch.no_grad()
def test_save_and_load(make_model: MakeModel, tmp_path: Path, preset: str, changes: dict[str, Any]) -> None:
    model = make_model(preset, **changes)
    model.save_pretrained(tmp_path)
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert isinstance(loaded, OneBitForCausalLM)
    assert torch.equal(loaded.eval()(IDS).logits, model(IDS).logits)
    tied = loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert tied == model.config.tie_word_embeddings
    low = OneBitForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert low.dtype == low(IDS).logits.dtype == torch.bfloat16
    body = AutoModel.from_pretrained(tmp_path)
    assert isinstance(body, OneBitModel)
    assert torch.equal(body.eval()(IDS).last_hidden_state, model.model(IDS).last_hidden_state)


def test_dials_are_saved_and_restored(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model("seed", lambda_warmup_fraction=0.4).train()
    model.schedule.set(lambda_=0.25, soft_alpha=3.0)
    model.save_pretrained(tmp_path)
    loaded = OneBitForCausalLM.from_pretrained(tmp_path).train()
    assert (loaded.schedule.lambda_.item(), loaded.schedule.soft_alpha.item()) == (0.25, 3.0)
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    assert not [key for key in make_model("bitnet").state_dict() if "schedule" in key]


@torch.no_grad()
def test_deepcopy(make_model: MakeModel) -> None:
    model = make_model("seed")
    clone = copy.deepcopy(model)
    assert torch.equal(clone(IDS).logits, model(IDS).logits)
    assert clone.schedule is not model.schedule
    assert all(layer.__dict__["schedule"] is clone.schedule for _, layer in bit_layers(clone))
    assert clone.lm_head.weight is clone.model.embed_tokens.weight


@pytest.mark.parametrize("preset", ["seed", "bitnet"])
@torch.no_grad()
def test_meta_device(make_model: MakeModel, make_config: Callable[..., OneBitConfig], preset: str) -> None:
    with torch.device("meta"):
        model = OneBitForCausalLM(make_config(preset))
        assert model(IDS.to("meta")).logits.shape == (1, 8, 61)
    model.to_empty(device="cpu")
    model.init_weights()
    model.tie_weights()
    # every buffer is valid again: with the same weights it is the same model
    source = make_model(preset)
    model.load_state_dict(source.state_dict())
    assert torch.equal(model.eval()(IDS).logits, source(IDS).logits)


@torch.no_grad()
def test_initial_weights(make_config: Callable[..., OneBitConfig]) -> None:
    torch.manual_seed(0)
    model = OneBitForCausalLM(make_config("bitnet", hidden_size=128, initializer_range=0.05, attention_bias=True))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            # 128 x 61 samples and more: the estimate is good to 1/sqrt(2 * 7808) = 0.8 %
            assert parameter.std().item() == pytest.approx(0.05, rel=0.04), name
        else:
            assert parameter.eq(0.0 if name.endswith("bias") else 1.0).all(), name


@torch.no_grad()
def test_resized_vocabulary(make_model: MakeModel) -> None:
    model = make_model("bitnet")
    model.resize_token_embeddings(70)
    assert model(IDS).logits.shape[-1] == model.config.vocab_size == 70
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert isinstance(model.lm_head, (BitLinear, torch.nn.Linear))


def test_no_float64_on_the_model(make_model: MakeModel) -> None:
    for preset in ("seed", "bitnet"):
        model = make_model(preset)
        tensors = [*model.parameters(), *model.buffers()]
        assert all(tensor.dtype != torch.float64 for tensor in tensors)  # mps has none
