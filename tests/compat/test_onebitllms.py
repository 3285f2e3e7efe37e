"""The names of onebitllms, aliased under the old import name: they are there and compute its published formulas."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")

import torch
import transformers
from torch import nn

import onebit
from onebit.compat import onebitllms as ours


@pytest.fixture(autouse=True)
def _alias(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onebitllms", ours)


def test_what_its_readme_does(tmp_path: Path) -> None:
    """Load latents, replace, train, save, quantise, and back to bfloat16: the calls of its README."""
    from onebitllms import convert_to_bf16, quantize_to_1bit, replace_linear_with_bitnet_linear

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "prequantized")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "prequantized", dtype=torch.bfloat16)
    model = replace_linear_with_bitnet_linear(model)
    assert isinstance(model.model.layers[0].mlp.up_proj, onebit.BitLinear)
    assert type(model.lm_head) is nn.Linear
    ids = torch.arange(8).view(1, 8)
    loss = model(ids, labels=ids).loss
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    model.save_pretrained(tmp_path / "trained")

    quantize_to_1bit(str(tmp_path / "trained"), str(tmp_path / "quantized"))
    convert_to_bf16(str(tmp_path / "trained"), str(tmp_path / "bf16"))
    packed = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "quantized", dtype=torch.bfloat16)
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "bf16", dtype=torch.bfloat16)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        wanted = model.eval()(ids).logits.float()
        for found in (packed(ids).logits, plain(ids).logits):
            assert (found.float() - wanted).abs().max() < 0.05 * wanted.abs().max()


def test_the_layer_and_its_two_functions() -> None:
    from onebitllms import BitNetLinear, activation_quant_triton, weight_quant_triton

    torch.manual_seed(0)
    layer = BitNetLinear(64, 24)
    assert layer.bias is None
    w, x = layer.weight.detach().double(), torch.randn(2, 3, 64)
    scale = 1 / w.abs().mean()
    q_w = (w * scale).round().clamp(-1, 1) / scale
    q_x = x.double()
    x_scale = 127 / q_x.abs().amax(-1, keepdim=True)
    q_x = (q_x * x_scale).round().clamp(-128, 127) / x_scale
    torch.testing.assert_close(weight_quant_triton(layer.weight.detach()).double(), q_w, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(activation_quant_triton(x).double(), q_x, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(layer(x).double(), q_x @ q_w.t(), rtol=1e-5, atol=1e-5)
    assert weight_quant_triton(layer.weight.bfloat16()).dtype == torch.bfloat16
    assert BitNetLinear(4, 4, bias=True).bias is not None


def test_every_name_it_exports_is_here_with_its_arguments() -> None:
    expected = {
        "BitNetLinear": ["in_features", "out_features", "bias"],
        "activation_quant_triton": ["x"],
        "convert_to_bf16": ["input_checkpoint_path", "output_checkpoint_path"],
        "quantize_to_1bit": ["input_checkpoint_path", "output_checkpoint_path"],
        "replace_linear_with_bitnet_linear": ["model", "previous_dtype"],
        "weight_quant_triton": ["w_2d", "block_size"],
    }
    for name, arguments in expected.items():
        assert list(inspect.signature(getattr(ours, name)).parameters)[: len(arguments)] == arguments
