"""Conversion of the embedding and the head: what is looked up and multiplied by is one quantised table."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from onebit.errors import OnebitError
from onebit.nn import BitEmbedding, BitLinear, Schedule, replace_linear_with_bitlinear
from onebit.nn.compressed_model import compression_stats, dequantized_state_dict
from onebit.quant import dequantize

IDS = torch.randint(0, 90, (2, 12), generator=torch.Generator().manual_seed(0))
GROUPS: dict[str, Any] = {"granularity": "per_group", "group_size": 64, "tables": True}


def llama(tied: bool, **changes: Any) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=90,
        tie_word_embeddings=tied,
        initializer_range=0.3,
        **changes,
    )
    return LlamaForCausalLM(config).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=IDS).logits
    return result


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("granularity", ["per_tensor", "per_row", "per_group"])
def test_rows_are_looked_up_in_the_table_that_the_head_multiplies_by(tied: bool, granularity: str) -> None:
    model = llama(tied)
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    size = 64 if granularity == "per_group" else None
    replace_linear_with_bitlinear(model, granularity=granularity, group_size=size, tables=True)  # type: ignore[arg-type]
    assert model.get_input_embeddings() is table
    assert (type(table), type(head)) == (BitEmbedding, BitLinear)
    assert (table.weight is head.weight) == tied
    report = model.conversion_report
    assert report.tables == ("model.embed_tokens",)
    assert "lm_head" in report.replaced
    assert str(report).startswith("15 linear layers and model.embed_tokens replaced, 0 kept")
    np.testing.assert_allclose(table(IDS).detach(), dequantize(table.quantized())[IDS], rtol=1e-6)
    if tied:
        assert torch.equal(table.quantized().codes_OI, head.quantized().codes_OI)
        assert torch.equal(table.quantized().scale, head.quantized().scale)
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert torch.count_nonzero(table.weight.grad)


def test_gpt2_keeps_its_positions_in_float() -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=16, vocab_size=90)).eval()
    replace_linear_with_bitlinear(model, tables=True)
    assert type(model.transformer.wte) is BitEmbedding
    assert type(model.transformer.wpe) is nn.Embedding
    assert model.lm_head.weight is model.transformer.wte.weight


@pytest.mark.parametrize("tied", [True, False])
def test_a_warm_up_begins_at_the_float_model(tied: bool) -> None:
    model = llama(tied)
    twin, schedule = copy.deepcopy(model), Schedule(uses_lambda=True)
    replace_linear_with_bitlinear(model, schedule=schedule, **GROUPS)
    hard = logits(model)
    model.train()
    schedule.set(lambda_=0.0)
    np.testing.assert_allclose(logits(model), logits(twin), rtol=1e-5, atol=1e-5)
    schedule.set(lambda_=0.5)
    middle = model.get_input_embeddings()(IDS).detach()
    expected = (dequantize(model.get_input_embeddings().quantized()) + twin.get_input_embeddings().weight)[IDS] / 2
    np.testing.assert_allclose(middle, expected.detach(), rtol=1e-5, atol=1e-6)
    schedule.set(lambda_=1.0)
    assert torch.equal(logits(model), hard)


@pytest.mark.parametrize("tied", [True, False])
def test_a_rotation_turns_the_table_and_what_is_looked_up_back(tied: bool) -> None:
    twin = llama(tied)
    for block, expected in ((32, 32), (1024, 64)):
        model = copy.deepcopy(twin)
        replace_linear_with_bitlinear(model, activation_quantizer="none", hadamard_block=block, **GROUPS)
        assert model.conversion_report.rotated["model.embed_tokens"] == expected
        assert model.conversion_report.rotated["lm_head"] == expected
        handed = LlamaForCausalLM(twin.config).eval()
        handed.load_state_dict(dequantized_state_dict(model, torch.float32))
        np.testing.assert_allclose(logits(handed), logits(model), rtol=1e-3, atol=1e-3)
        for layer in model.modules():
            if isinstance(layer, (BitLinear, BitEmbedding)):
                layer.weight_quantizer = None
        assert not torch.allclose(model.lm_head.weight, twin.lm_head.weight, atol=0.1)
        np.testing.assert_allclose(logits(model), logits(twin), rtol=1e-3, atol=1e-3)


def test_calibration_leaves_the_tables_rounded_and_aims_at_the_float_embedding() -> None:
    model = llama(tied=True)
    rounded, twin = copy.deepcopy(model), copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randint(0, 90, (8, 32), generator=generator) for _ in range(8)]
    replace_linear_with_bitlinear(rounded, **GROUPS)
    replace_linear_with_bitlinear(model, calibration=batches, **GROUPS)
    assert torch.equal(model.lm_head.weight, twin.lm_head.weight)
    assert model.get_input_embeddings().weight_quantizer is not None
    fits = model.conversion_report.fits
    assert len(fits) == 14
    # Against a table that was quantised on both sides, a first layer's error would be that of its weights alone.
    first = "model.layers.0.self_attn.q_proj"
    float_table = copy.deepcopy(twin)
    replace_linear_with_bitlinear(float_table, granularity="per_group", group_size=64, calibration=batches)
    assert fits[first].rounded > 1.2 * float_table.conversion_report.fits[first].rounded
    assert fits[first].fitted < fits[first].rounded

    def distance(other: Any) -> float:
        return float((logits(other) - logits(twin)).square().mean())

    assert distance(model) < distance(rounded)


def test_what_cannot_be_done_is_named() -> None:
    with pytest.raises(OnebitError, match=r"Sequential has no nn\.Embedding of tokens"):
        replace_linear_with_bitlinear(nn.Sequential(nn.Linear(4, 4)), tables=True)
    with pytest.raises(OnebitError, match=r"embed_tokens cannot be quantised: its weight is tied to lm_head"):
        replace_linear_with_bitlinear(llama(tied=True), exclude_patterns=["lm_head"], tables=True)
    model = llama(tied=False)
    replace_linear_with_bitlinear(model, exclude_patterns=["lm_head"], tables=True)
    assert model.conversion_report.kept == {"lm_head": "excluded by its name"}
    assert type(model.get_input_embeddings()) is BitEmbedding
    renormalised = llama(tied=False)
    renormalised.model.embed_tokens.max_norm = 1.0
    with pytest.raises(OnebitError, match="renormalises its rows"):
        replace_linear_with_bitlinear(renormalised, tables=True)


def test_sizes_count_the_table_once() -> None:
    tied, untied = llama(tied=True), llama(tied=False)
    for model in (tied, untied):
        replace_linear_with_bitlinear(model, **GROUPS)
    assert compression_stats(tied)["quantized_weights"] + 90 * 64 == compression_stats(untied)["quantized_weights"]
    assert compression_stats(untied)["quantized_layers"] == 16
