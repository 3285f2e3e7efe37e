"""Norms added to a model: where they sit, what they compute, and that fitting them keeps the sizes."""

from __future__ import annotations

import copy
from typing import Any

import pytest

pytest.importorskip("transformers")

import torch
import transformers
from torch import nn

from onebit.errors import OnebitError
from onebit.nn import BitLinear, RMSNorm, replace_linear_with_bitlinear
from onebit.nn.attached_norms import attach_post_attention_norms, attach_sub_norms, attached_norms, fit_norms

IDS = torch.randint(0, 60, (2, 8), generator=torch.Generator().manual_seed(0))


def tiny(kind: str = "Llama") -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 60, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16}
    if kind == "GPT2":
        sizes = {"vocab_size": 60, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
    else:
        sizes |= {"intermediate_size": 32, "num_key_value_heads": 1, "head_dim": 12, "pad_token_id": 0}
    if kind == "BitNet":
        sizes |= {"head_dim": 8, "hidden_act": "silu"}
    config = getattr(transformers, f"{kind}Config")(**sizes)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def rms(x: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


@pytest.mark.parametrize(("kind", "mlp_out"), [("Llama", "down_proj"), ("Phi3", "down_proj"), ("GPT2", "c_proj")])
def test_sub_norms_stand_before_the_last_projections(kind: str, mlp_out: str) -> None:
    model = tiny(kind)
    plain = copy.deepcopy(model)
    added = attach_sub_norms(model, eps=1e-6)
    assert len(added) == 4
    assert sorted(added) == sorted(attached_norms(model))
    mlp = (model.transformer.h if kind == "GPT2" else model.model.layers)[1].mlp
    twin = (plain.transformer.h if kind == "GPT2" else plain.model.layers)[1].mlp
    assert mlp.ffn_sub_norm.weight.shape == (64 if kind == "GPT2" else 32,)
    seen: list[torch.Tensor] = []
    getattr(twin, mlp_out).register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    x = torch.randn(1, 3, 16)
    twin(x)
    with torch.no_grad():
        mlp.ffn_sub_norm.weight.uniform_(0.5, 1.5)
        expected = getattr(twin, mlp_out)(rms(seen[0]) * mlp.ffn_sub_norm.weight)
        torch.testing.assert_close(mlp(x), expected)


def test_they_are_those_of_bitnet() -> None:
    """A Llama with sub-norms is transformers' BitNet, weight by weight, so its checkpoint loads there."""
    bitnet, llama = tiny("BitNet"), tiny("Llama")
    config = copy.deepcopy(llama.config)
    config.head_dim = 8
    config.rms_norm_eps, config.rope_parameters = bitnet.config.rms_norm_eps, bitnet.config.rope_parameters
    llama = transformers.AutoModelForCausalLM.from_config(config).eval()
    attach_sub_norms(llama)
    for norm in attached_norms(llama).values():
        nn.init.uniform_(norm.weight, 0.5, 1.5)
    assert set(llama.state_dict()) == set(bitnet.state_dict())
    bitnet.load_state_dict(llama.state_dict())
    torch.testing.assert_close(llama(IDS).logits, bitnet(IDS).logits)
    assert attach_sub_norms(bitnet) == []  # it has them


def test_post_attention_norms_stand_behind() -> None:
    model, plain = tiny(), tiny()
    added = attach_post_attention_norms(model, eps=1e-6)
    assert added == [f"model.layers.{i}.self_attn.post_attn_norm" for i in range(2)]
    outputs: list[torch.Tensor] = []
    for m in (plain, model):
        m.model.layers[0].self_attn.register_forward_hook(lambda module, inputs, output: outputs.append(output[0]))
        m(IDS)
    torch.testing.assert_close(outputs[1], rms(outputs[0]))


def test_fitting_keeps_the_function_close() -> None:
    model, plain = tiny(), tiny()
    attach_sub_norms(model)
    attach_post_attention_norms(model)
    wanted = plain(IDS).logits
    before = (model(IDS).logits - wanted).square().mean()
    fit_norms(model, [IDS[:1], IDS[1:]])
    assert (model(IDS).logits - wanted).square().mean() < 0.1 * before
    norm = model.model.layers[0].mlp.ffn_sub_norm
    seen: list[torch.Tensor] = []
    plain.model.layers[0].mlp.down_proj.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    plain(IDS)
    torch.testing.assert_close(norm.weight, seen[0].square().mean().sqrt().expand(32))
    with pytest.raises(OnebitError, match="met no input"):
        fit_norms(model, [])


def test_at_conversion_they_are_the_copys_own_and_train() -> None:
    model = replace_linear_with_bitlinear(tiny(), sub_norms=True, rmsnorm_post_attn=True)
    assert len(model.conversion_report.norms) == 6
    clone = copy.deepcopy(model)
    assert torch.equal(clone(IDS).logits, model(IDS).logits)
    nn.init.zeros_(clone.model.layers[1].mlp.ffn_sub_norm.weight)  # only the copy hears nothing
    assert not torch.equal(clone(IDS).logits, model(IDS).logits)
    model(IDS, labels=IDS).loss.backward()
    assert all(norm.weight.grad.abs().sum() > 0 for norm in attached_norms(model).values())
    assert isinstance(model.model.layers[0].self_attn.attn_sub_norm, RMSNorm)
    assert isinstance(model.model.layers[0].self_attn.o_proj, BitLinear)
    assert model.model.layers[0].self_attn.attn_sub_norm.eps == model.config.rms_norm_eps


def test_a_model_without_known_names_is_refused() -> None:
    with pytest.raises(OnebitError, match=r"found no projection .* known are the names attention\.dense"):
        attach_sub_norms(nn.Sequential(nn.Linear(4, 4)))
