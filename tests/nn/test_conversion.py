"""Conversion of a model: what is replaced, what is kept and why, and what a replaced layer keeps."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from onebit.errors import ConfigError, OnebitError
from onebit.nn import BitLinear, Schedule, replace_linear_with_bitlinear, replace_linear_with_bitnet_linear
from onebit.quant import WeightQuantizer, dequantize, fake_quantize_activations


class Conv1D(nn.Module):
    """The layer of transformers' GPT-2: x @ weight + bias with weight [I, O]."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.randn(nf))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.bias


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(16, 32)
        self.mix = Conv1D(16, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mix(torch.relu(self.up(x)))


class Small(nn.Module):
    def __init__(self, *, tied: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed_tokens = nn.Embedding(50, 16)
        self.layers = nn.ModuleList(Block() for _ in range(2))
        self.lm_head = nn.Linear(16, 50, bias=False)
        if tied:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(x)


IDS = torch.arange(12).view(2, 6)


def expected_linear(x: torch.Tensor, layer: BitLinear) -> torch.Tensor:
    q_x = fake_quantize_activations(x, layer.activation_quantizer).double()
    return q_x @ dequantize(layer.quantized()).double().t() + layer.bias.double()


def test_the_model_is_converted_in_place_and_computes_with_codes() -> None:
    model = Small()
    before = copy.deepcopy(model)
    assert replace_linear_with_bitlinear(model) is model
    report = model.conversion_report
    assert report.replaced == ("layers.0.up", "layers.0.mix", "layers.1.up", "layers.1.mix")
    assert report.kept == {"lm_head": "excluded by its name"}
    assert report.transposed == ("layers.0.mix", "layers.1.mix")
    assert str(report) == "4 linear layers replaced, 1 kept\n  kept lm_head: excluded by its name"
    x = before.embed_tokens(IDS)
    for layer in model.layers:
        hidden = torch.relu(expected_linear(x, layer.up)).float()
        x = x + expected_linear(hidden, layer.mix).float()
    torch.testing.assert_close(model(IDS), before.lm_head(x), rtol=1e-5, atol=1e-5)


def test_a_conv1d_is_transposed() -> None:
    model = Small()
    weights = [layer.mix.weight.detach().clone() for layer in model.layers]
    replace_linear_with_bitlinear(model)
    for layer, weight in zip(model.layers, weights, strict=True):
        assert torch.equal(layer.mix.weight, weight.t())
        assert (layer.mix.in_features, layer.mix.out_features) == (32, 16)
        assert layer.mix.weight.is_contiguous()


def test_everything_else_of_a_layer_is_kept() -> None:
    model = Small().to(torch.bfloat16).eval()
    layer = model.layers[0].up
    layer.weight.requires_grad_(False)
    layer.register_buffer("seen", torch.tensor(3))
    calls: list[nn.Module] = []
    handle = layer.register_forward_hook(lambda module, args, output: calls.append(module))
    weight, bias = layer.weight, layer.bias
    replace_linear_with_bitlinear(model)
    assert model.layers[0].up is layer
    assert isinstance(layer, BitLinear)
    assert layer.weight is weight
    assert layer.bias is bias
    assert not layer.weight.requires_grad
    assert layer.seen.item() == 3
    assert not layer.training
    assert not model.layers[0].mix.training
    assert model.layers[0].mix.weight.dtype == torch.bfloat16
    assert model(IDS).dtype == torch.bfloat16
    assert calls == [layer]
    handle.remove()
    model(IDS)
    assert len(calls) == 1


def test_training_moves_the_latents() -> None:
    model = replace_linear_with_bitlinear(Small())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    model(IDS).logsumexp(-1).mean().backward()
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_copy_and_a_checkpoint_give_the_same_numbers() -> None:
    model = replace_linear_with_bitlinear(Small())
    clone = copy.deepcopy(model)
    assert torch.equal(clone(IDS), model(IDS))
    assert clone.conversion_report == model.conversion_report
    fresh = replace_linear_with_bitlinear(Small())
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(IDS), model(IDS))
    assert set(model.state_dict()) == set(Small().state_dict())


def test_a_tied_head_stays_float_even_when_nothing_is_excluded() -> None:
    model = Small(tied=True)
    replace_linear_with_bitlinear(model, exclude_patterns=[])
    assert model.lm_head.weight is model.embed_tokens.weight
    assert type(model.lm_head) is nn.Linear
    reason = model.conversion_report.kept["lm_head"]
    assert reason == "its weight is tied to embed_tokens (Embedding), which stays float"


def test_layers_tied_to_each_other_are_replaced_together_or_not_at_all() -> None:
    model = Small()
    model.layers[1].up.weight = model.layers[0].up.weight
    model.layers[1].mix.weight = model.layers[0].mix.weight
    partial = copy.deepcopy(model)
    replace_linear_with_bitlinear(model)
    assert model.layers[0].mix.weight is model.layers[1].mix.weight
    assert model.layers[0].up.weight is model.layers[1].up.weight
    replace_linear_with_bitlinear(partial, exclude_patterns=["layers.1"])
    assert "tied to layers.1.up" in partial.conversion_report.kept["layers.0.up"]


def test_one_layer_in_two_places_is_replaced_once() -> None:
    model = Small()
    model.layers[1] = model.layers[0]
    replace_linear_with_bitlinear(model)
    assert model.layers[1].up is model.layers[0].up
    assert model.conversion_report.replaced == ("layers.0.up", "layers.0.mix")


class Careful(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * 2


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(4, 16, dtype=torch.uint8))


PackedBitLinear = type("BitLinear", (Packed,), {})


def patched() -> nn.Linear:
    layer = nn.Linear(4, 4)
    layer.forward = lambda x: x  # type: ignore[method-assign]
    return layer


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Careful(4, 4), "a subclass of nn.Linear (Careful)"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), "a subclass of nn.Linear (ParametrizedLinear)"),
        (patched(), "its forward was replaced"),
        (BitLinear(4, 4), "already a BitLinear"),
        (PackedBitLinear(), "packed codes (BitLinear)"),
        (nn.Linear(4, 0), "its weight is empty"),
    ],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_what_cannot_be_replaced_is_left_alone_and_said(layer: nn.Module, reason: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), layer)
    kind = type(layer)
    replace_linear_with_bitlinear(model)
    assert type(model[1]) is kind
    assert reason in model.conversion_report.kept["1"]
    assert model.conversion_report.replaced == ("0",)


def test_torchs_own_encoder_does_not_read_past_the_layers() -> None:
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(block, 2).eval()
    replace_linear_with_bitlinear(model)
    assert "layers.0.self_attn.out_proj" in model.conversion_report.kept
    x = torch.randn(2, 5, 16)
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask[:, 4] = True
    with torch.no_grad():
        without_gradient = model(x, src_key_padding_mask=mask)
    torch.testing.assert_close(without_gradient, model(x, src_key_padding_mask=mask))


def test_a_layer_alone_becomes_a_bitlinear() -> None:
    layer = nn.Linear(8, 4)
    assert replace_linear_with_bitlinear(layer) is layer
    assert isinstance(layer, BitLinear)


def test_the_arguments_reach_every_layer() -> None:
    model = Small()
    replace_linear_with_bitlinear(
        model,
        quantizer="threshold",
        granularity="per_group",
        group_size=64,
        activation_quantizer="none",
        ste_scale_factor=2.0,
    )
    for layer in (model.layers[0].up, model.layers[1].mix):
        assert layer.weight_quantizer == WeightQuantizer("threshold", "per_group", 64)
        assert layer.activation_quantizer == "none"
        assert layer.ste_scale_factor == 2.0
    sparse = replace_linear_with_bitlinear(Small(), 0.3)
    assert sparse.conversion_report.spec == WeightQuantizer("sparsity", sparsity=0.3)
    bitnet = replace_linear_with_bitnet_linear(Small())
    assert bitnet.conversion_report.spec == WeightQuantizer()
    assert bitnet.conversion_report.activation_quantizer == "int8"


def test_the_schedule_is_the_models_and_its_layers_read_it() -> None:
    schedule = Schedule(uses_lambda=True)
    model, plain = Small(), Small()
    replace_linear_with_bitlinear(model, schedule=schedule)
    assert model.schedule is schedule
    assert [module for module in model.modules() if isinstance(module, Schedule)] == [schedule]
    schedule.set(lambda_=0.0)
    torch.testing.assert_close(model(IDS), plain(IDS))
    clone = copy.deepcopy(model)
    clone.schedule.set(lambda_=1.0)
    torch.testing.assert_close(model(IDS), plain(IDS))
    assert not torch.allclose(clone(IDS), plain(IDS))
    with pytest.raises(ConfigError, match="has a 'schedule' already"):
        replace_linear_with_bitlinear(model, schedule=Schedule(uses_lambda=True))


def test_the_meta_device() -> None:
    with torch.device("meta"):
        model = Small()
    replace_linear_with_bitlinear(model, schedule=Schedule(uses_lambda=True))
    assert model.layers[0].mix.weight.is_meta
    real = replace_linear_with_bitlinear(Small())
    model.load_state_dict(real.state_dict(), assign=True, strict=False)  # strict would ask for the dials
    assert torch.equal(model.eval()(IDS), real(IDS))


@pytest.mark.parametrize(
    ("patterns", "kept"),
    [
        (["layers.1"], {"layers.1.up", "layers.1.mix"}),
        (["*.up"], {"layers.0.up", "layers.1.up"}),
        (["lm_head", "embedding", "wte", "wpe"], {"lm_head"}),
        ([], set()),
    ],
)
def test_patterns(patterns: list[str], kept: set[str]) -> None:
    model = replace_linear_with_bitlinear(Small(), exclude_patterns=patterns)
    assert set(model.conversion_report.kept) == kept


def test_a_number_in_a_pattern_is_a_whole_number() -> None:
    model = nn.Module()
    model.layer = nn.ModuleList(nn.Linear(2, 2) for _ in range(11))
    replace_linear_with_bitlinear(model, exclude_patterns=["layer.1"])
    assert set(model.conversion_report.kept) == {"layer.1"}


class Headed(Small):
    def get_output_embeddings(self) -> nn.Module:
        return self.layers[1].up


def test_the_output_embeddings_stay_float_whatever_their_name() -> None:
    model = replace_linear_with_bitlinear(Headed())
    assert set(model.conversion_report.kept) == {"layers.1.up", "lm_head"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"exclude_patterns": ["layres.1"]}, "'layres.1' is in the name of no module of the model; did you mean"),
        ({"exclude_patterns": ["ups"]}, "did you mean 'up'"),
        ({"exclude_patterns": ["zzz"]}, "named like 0, 1, embed_tokens"),
        ({"exclude_patterns": ["layers", "lm_head"]}, "none of the model's 5 linear layers can be replaced"),
        ({"exclude_patterns": "lm_head"}, r"expected a list of patterns: \['lm_head'\]"),
        ({"quantizer": None}, "quantizer is None"),
        ({"granularity": "per_group"}, "group_size is None"),
        ({"activation_quantizer": "int4"}, "activation_quantizer is 'int4'"),
    ],
)
def test_wrong_input_is_refused_and_changes_nothing(call: dict[str, Any], message: str) -> None:
    model = Small()
    with pytest.raises(OnebitError, match=message):
        replace_linear_with_bitlinear(model, **call)
    assert not any(isinstance(module, BitLinear) for module in model.modules())


def test_a_model_without_linear_layers_is_refused() -> None:
    with pytest.raises(OnebitError, match=r"no nn.Linear or Conv1D layer"):
        replace_linear_with_bitlinear(nn.Sequential(nn.Embedding(4, 4)))
    model = replace_linear_with_bitlinear(Small())
    assert replace_linear_with_bitlinear(model).conversion_report.replaced == ()  # twice is once
