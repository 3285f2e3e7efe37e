"""The calibrated start: outputs nearer to the float model's, layer by layer, and latents that training takes up."""

from __future__ import annotations

import copy
from typing import Any

import pytest

pytest.importorskip("transformers")

import torch
import transformers
from torch import nn

from onebit.errors import OnebitError
from onebit.nn import BitLinear, replace_linear_with_bitlinear
from onebit.nn.calibration import calibrate
from onebit.quant import dequantize, fake_quantize_activations, quantize
from onebit.quant.fit_codes import fit_codes

GENERATOR = torch.Generator().manual_seed(0)
BATCHES = [torch.randint(0, 60, (4, 16), generator=GENERATOR) for _ in range(6)]
HELD_OUT = torch.randint(0, 60, (8, 16), generator=GENERATOR)


def tiny(kind: str = "Llama") -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 60, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    if kind == "GPT2":
        sizes = {"vocab_size": 60, "n_embd": 48, "n_layer": 2, "n_head": 2, "n_positions": 32}
    else:
        sizes |= {"intermediate_size": 96, "num_key_value_heads": 1, "pad_token_id": 0}
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, f"{kind}Config")(**sizes)).eval()
    for parameter in model.parameters():  # weights of a size at which the layers matter
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return model


def distance(model: Any, wanted: Any) -> float:
    """KL of the logits on text that was not calibrated on, nats a token."""
    with torch.no_grad():
        log_p, log_q = (m(HELD_OUT).logits.log_softmax(-1) for m in (wanted, model))
    return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"granularity": "per_group", "group_size": 64},
        {"granularity": "per_group", "group_size": 64, "hadamard_block": 16, "sub_norms": True},
        {"quantizer": "threshold", "granularity": "per_row"},
        {"quantizer": "binary", "center": False, "granularity": "per_row", "activation_quantizer": "none"},
    ],
    ids=str,
)
def test_outputs_come_nearer_to_the_float_models(arguments: dict[str, Any]) -> None:
    wanted = tiny()
    rounded = replace_linear_with_bitlinear(tiny(), **arguments)
    fitted = replace_linear_with_bitlinear(tiny(), calibration=BATCHES, **arguments)
    fits = fitted.conversion_report.fits
    assert set(fits) == set(fitted.conversion_report.replaced)
    assert all(fit.fitted < 0.75 * fit.rounded for fit in fits.values())
    assert distance(fitted, wanted) < 0.75 * distance(rounded, wanted)


@pytest.mark.parametrize("kind", ["GPT2", "Phi3", "Qwen3", "Mistral"])
def test_other_architectures(kind: str) -> None:
    wanted = tiny(kind)
    fitted = replace_linear_with_bitlinear(tiny(kind), granularity="per_row", calibration=BATCHES)
    assert set(fitted.conversion_report.fits) == set(fitted.conversion_report.replaced)
    assert distance(fitted, wanted) < 0.9 * distance(
        replace_linear_with_bitlinear(tiny(kind), granularity="per_row"), wanted
    )


def test_a_layer_makes_up_for_the_layers_before_it() -> None:
    """Its codes are those of the weights that give the float model's outputs best from the inputs it really gets."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 8))
    plain = copy.deepcopy(model)
    batches = [torch.randn(100, 32, generator=GENERATOR) for _ in range(3)]
    replace_linear_with_bitlinear(model, granularity="per_row")
    fits = calibrate(model, batches)
    w = plain[2].weight.detach().double()
    inputs = torch.cat([fake_quantize_activations(model[1](model[0](x)), "int8") for x in batches]).double().detach()
    hidden = torch.cat([plain[1](plain[0](x)) for x in batches]).detach()
    floats = fake_quantize_activations(hidden, "none").double()
    pull = 0.01 * inputs.square().mean() * len(inputs)
    own = inputs.t() @ inputs
    target = torch.linalg.solve(own + pull * torch.eye(32), inputs.t() @ floats @ w.t() + pull * w.t()).t()
    expected = fit_codes(target.float(), own.float() / len(inputs), model[2].weight_quantizer)
    found = quantize(model[2].weight, model[2].weight_quantizer)
    assert (found.codes_OI != expected.codes_OI).float().mean() < 0.02  # a tie of float32 sums or two
    torch.testing.assert_close(found.scale, expected.scale, rtol=1e-2, atol=0)
    outputs, wanted = inputs @ dequantize(found).double().t(), floats @ w.t()
    error = (outputs - wanted).square().sum() / wanted.square().sum()
    assert fits["2"].fitted == pytest.approx(error.item(), rel=1e-3)
    assert fits["2"].fitted < 0.6 * fits["2"].rounded


def test_training_goes_on_from_there() -> None:
    model = replace_linear_with_bitlinear(tiny(), granularity="per_row", calibration=BATCHES).train()
    layers = [module for module in model.modules() if isinstance(module, BitLinear)]
    before = [layer.quantized().codes_OI for layer in layers]
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(8):
        loss = model(BATCHES[0], labels=BATCHES[0]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    flips = [(layer.quantized().codes_OI != codes).float().mean() for layer, codes in zip(layers, before, strict=True)]
    assert 0 < max(flips) < 0.3


def test_nothing_else_changes() -> None:
    model = replace_linear_with_bitlinear(tiny().train(), granularity="per_row")
    other = {name: p.detach().clone() for name, p in model.named_parameters() if "proj" not in name}
    hooks = sum(len(module._forward_pre_hooks) for module in model.modules())
    done: list[tuple[int, int]] = []
    calibrate(model, [{"input_ids": batch} for batch in BATCHES[:2]], progress=lambda *at: done.append(at))
    assert done == [(1, 2), (2, 2)]
    assert model.training
    assert all(torch.equal(p, other[name]) for name, p in model.named_parameters() if name in other)
    assert hooks == sum(len(module._forward_pre_hooks) for module in model.modules())


def test_wrong_input_is_refused() -> None:
    with pytest.raises(OnebitError, match="no binary or ternary layer"):
        calibrate(tiny(), BATCHES)
    model = replace_linear_with_bitlinear(tiny())
    with pytest.raises(OnebitError, match="no batch of samples"):
        calibrate(model, [])
    with pytest.raises(OnebitError, match="codes cannot be fitted for quantizer 'sparsity'"):
        replace_linear_with_bitlinear(tiny(), 0.3, calibration=BATCHES)
