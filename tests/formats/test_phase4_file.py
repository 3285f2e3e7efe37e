"""The hand-over file: what was trained arrives, whatever the file is called, and nothing in it can run code."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

import torch
import transformers
from safetensors import safe_open
from torch import nn

from onebit.errors import FormatError, OnebitError
from onebit.formats.phase4_file import load_phase4_model, save_phase4_model
from onebit.nn import BitLinear, replace_linear_with_bitlinear
from onebit.nn.compressed_model import BitNetQuantizer, CompressedModel, Phase4Config, compression_stats
from onebit.quant import dequantize

IDS = torch.arange(8).view(1, 8)


def tiny(kind: str = "llama", *, tied: bool = False) -> Any:
    torch.manual_seed(0)
    if kind == "gpt2":
        config = transformers.GPT2Config(vocab_size=60, n_positions=32, n_embd=16, n_layer=2, n_head=2)
        return transformers.GPT2LMHeadModel(config).eval()
    config = transformers.LlamaConfig(
        vocab_size=60,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
    )
    return transformers.LlamaForCausalLM(config).eval()


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"granularity": "per_group", "group_size": 64},
        {"quantizer": "binary"},
        {"tables": True, "hadamard_block": 16},
    ],
)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_latents_come_back_as_the_converted_model(tmp_path: Path, kind: str, arguments: dict[str, Any]) -> None:
    model = replace_linear_with_bitlinear(tiny(kind), **arguments)
    for saved in (model.state_dict(), {"model_state_dict": model.state_dict(), "vocab_size": 60}):
        torch.save(saved, tmp_path / "out.safetensors")
        loaded = load_phase4_model(tmp_path / "out.safetensors").eval()
        assert loaded.conversion_report.replaced == model.conversion_report.replaced
        assert torch.equal(loaded(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("kind", ["llama", "tied", "gpt2"])
def test_the_float16_hand_over_is_safetensors_and_codes_times_scale(tmp_path: Path, kind: str) -> None:
    model = tiny("llama", tied=True) if kind == "tied" else tiny(kind)
    compressed = CompressedModel(model, BitNetQuantizer(Phase4Config()), Phase4Config())
    save_phase4_model(compressed, tmp_path / "out.safetensors")
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118
    loaded = load_phase4_model(tmp_path / "out.safetensors").eval()
    assert type(loaded) is type(tiny("gpt2" if kind == "gpt2" else "llama"))
    name, layer = next((n, m) for n, m in model.named_modules() if isinstance(m, BitLinear))
    weight = loaded.get_submodule(name).weight
    weight = weight.t() if kind == "gpt2" else weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, dequantize(layer.quantized()).half().float())
    # The same function but for the rounding of activations to 8 bits and of weights to float16.
    assert (loaded(IDS).logits - model(IDS).logits).abs().max() < 0.05 * model(IDS).logits.abs().max()


def test_a_model_of_ones_own_is_passed(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    replace_linear_with_bitlinear(model)
    torch.save(model.state_dict(), tmp_path / "own.pth")
    with pytest.raises(OnebitError, match=r"not what model they belong to; pass it: load_phase4_model\(path, model\)"):
        load_phase4_model(tmp_path / "own.pth")
    fresh = replace_linear_with_bitlinear(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)))
    x = torch.randn(3, 8)
    assert torch.equal(load_phase4_model(tmp_path / "own.pth", fresh)(x), model(x))
    other = replace_linear_with_bitlinear(nn.Sequential(nn.Linear(8, 8), nn.ReLU()))
    with pytest.raises(OnebitError, match="has unexpected 2 weights of Sequential"):
        load_phase4_model(tmp_path / "own.pth", other)


class Bomb:
    def __reduce__(self) -> Any:
        return (print, ("it went off",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model_state_dict": {}, "extra": Bomb()}, "which could run code on loading"),
        ({"weights": [1, 2]}, "holds no state_dict"),
        (b"not a model at all", "neither safetensors nor a file of torch.save"),
    ],
)
def test_hostile_and_foreign_files(
    tmp_path: Path, content: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(FormatError, match=message):
        load_phase4_model(path)
    assert capsys.readouterr().out == ""


def test_a_plain_pickle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.pkl"
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(FormatError, match="neither safetensors"):
        load_phase4_model(path)


def test_a_float_model_is_no_hand_over(tmp_path: Path) -> None:
    with pytest.raises(OnebitError, match="the model is not converted"):
        save_phase4_model(tiny(), tmp_path / "out.safetensors")
    assert not list(tmp_path.iterdir())


def test_statistics_count_every_parameter_once() -> None:
    model = tiny(tied=True)
    total = sum(p.numel() for p in model.parameters())
    stats = compression_stats(replace_linear_with_bitlinear(model, granularity="per_row"))
    layers = [m for m in model.modules() if isinstance(m, BitLinear)]
    weights, rows = sum(m.weight.numel() for m in layers), sum(m.out_features for m in layers)
    assert (stats["quantized_layers"], stats["quantized_weights"], stats["total_weights"]) == (14, weights, total)
    assert stats["original_fp32"] == 4 * total
    assert stats["quantized_1.58bit"] == pytest.approx(4 * (total - weights) + weights * 1.58 / 8 + 4 * rows, abs=1)
    assert stats["compression_ratio_practical"] == pytest.approx(
        4 * total / (4 * (total - weights) + weights + 4 * rows)
    )
    zeros = sum(int((m.quantized().codes_OI == 0).sum()) for m in layers)
    assert stats["zeros"] == pytest.approx(zeros / weights)


def test_without_bitlinear_the_weights_are_rounded_once() -> None:
    model, twin = tiny(), replace_linear_with_bitlinear(tiny(), 0.1, activation_quantizer="none")
    config = Phase4Config()
    compressed = CompressedModel(model, BitNetQuantizer(config), config, use_bitlinear=False)
    assert type(model.model.layers[0].mlp.up_proj) is nn.Linear
    assert compressed.get_compression_stats()["quantized_layers"] == 14
    torch.testing.assert_close(compressed(IDS).logits, twin(IDS).logits)
