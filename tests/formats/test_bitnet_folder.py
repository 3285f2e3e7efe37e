"""Folders of BitNet models: what is written runs in transformers and computes what was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.integrations.bitnet import pack_weights

from onebit.cli.main import execute
from onebit.errors import ConfigError, DataError, FormatError, OnebitError
from onebit.formats.bitnet_folder import convert_to_bf16, quantize_to_1bit
from onebit.nn import replace_linear_with_bitlinear
from onebit.nn.hadamard import HadamardRotation
from onebit.packing import bitnet
from onebit.quant import WeightQuantizer, fake_quantize

IDS = torch.arange(3, 15).view(1, 12)
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def latents(folder: Path, kind: str = "Llama", *, shards: bool = False, **changes: Any) -> Any:
    """A folder of latents in bfloat16, as a `prequantized` revision has them, and its converted model."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SIZES, **changes)
    model = transformers.AutoModelForCausalLM.from_config(config).bfloat16()
    model.save_pretrained(folder, max_shard_size="10KB" if shards else "1GB")
    (folder / "tokenizer_config.json").write_text("{}")
    return replace_linear_with_bitlinear(model.float().eval())


def note(folder: Path, **conversion: Any) -> None:
    """What onebit writes of a conversion into config.json."""
    config = json.loads((folder / "config.json").read_text())
    config["onebit_conversion"] = {"granularity": "per_tensor", **conversion}
    (folder / "config.json").write_text(json.dumps(config))


def load(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):  # its layers compile themselves otherwise
        result: torch.Tensor = model(IDS).logits
    return result


def test_the_packing_is_that_of_transformers() -> None:
    codes = torch.randint(-1, 2, (24, 7), generator=torch.Generator().manual_seed(0), dtype=torch.int8)
    packed = bitnet.pack(codes)
    assert torch.equal(packed, pack_weights(codes.clone()))
    assert torch.equal(bitnet.unpack(packed), codes)
    assert np.array_equal(bitnet.pack(codes.numpy()), packed.numpy())
    # rows 0, 1, 2, 3 of one column in bits 0-1, 2-3, 4-5, 6-7 as code + 1: 2, 1, 0, 1
    assert bitnet.pack(torch.tensor([[1], [0], [-1], [0]], dtype=torch.int8)).tolist() == [[0b01_00_01_10]]
    with pytest.raises(FormatError, match="6 rows cannot be packed"):
        bitnet.pack(codes[:6])
    with pytest.raises(FormatError, match="1 codes have the bits 11"):
        bitnet.unpack(torch.tensor([[0b11]], dtype=torch.uint8))


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("Llama", {}),
        ("Llama", {"attention_bias": True, "tie_word_embeddings": True}),
        ("Qwen3", {"head_dim": 8}),
        ("BitNet", {"tie_word_embeddings": True}),
        ("Phi3", {}),
    ],
    ids=str,
)
def test_a_packed_folder_runs_in_transformers(tmp_path: Path, kind: str, changes: dict[str, Any]) -> None:
    trained = latents(tmp_path / "latents", kind, **changes)
    assert quantize_to_1bit(tmp_path / "latents", tmp_path / "packed") == str(tmp_path / "packed")
    packed = load(tmp_path / "packed")
    assert type(packed.model.layers[0].mlp.down_proj).__name__ == "BitLinear"
    assert type(packed.lm_head) is torch.nn.Linear
    wanted, found = logits(trained), logits(packed)
    # weight_scale is stored in bfloat16, 2^-9 apart; an int8 code or two of the inputs may fall the other way
    assert (found - wanted).abs().max() < 0.03 * wanted.abs().max()
    tensors = load_file(tmp_path / "packed" / "model.safetensors")
    name = "model.layers.1.mlp.down_proj"
    layer = trained.get_submodule(name)
    assert torch.equal(bitnet.unpack(tensors[f"{name}.weight"]), layer.quantized().codes_OI)
    assert tensors[f"{name}.weight_scale"].shape == (1,)
    inverse = 1 / layer.weight.abs().mean()
    torch.testing.assert_close(tensors[f"{name}.weight_scale"].float()[0], inverse, rtol=2**-8, atol=0)
    assert {t.dtype for n, t in tensors.items() if "proj.weight" not in n} == {torch.bfloat16}
    config = json.loads((tmp_path / "packed" / "config.json").read_text())
    assert config["is_bitnet_config"] is True
    assert config["quantization_config"]["linear_class"] == "bitlinear"
    assert (tmp_path / "packed" / "tokenizer_config.json").read_text() == "{}"


def test_many_shards_are_the_same_model(tmp_path: Path) -> None:
    latents(tmp_path / "one")
    latents(tmp_path / "many", shards=True)
    for name in ("one", "many"):
        quantize_to_1bit(tmp_path / name, tmp_path / f"{name}-packed")
    shards = list((tmp_path / "many-packed").glob("*.safetensors"))
    assert len(shards) > 3
    index = json.loads((tmp_path / "many-packed" / "model.safetensors.index.json").read_text())
    joined = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    assert set(index["weight_map"]) == set(joined)
    single = load_file(tmp_path / "one-packed" / "model.safetensors")
    assert all(torch.equal(joined[name], tensor) for name, tensor in single.items())
    assert torch.equal(logits(load(tmp_path / "many-packed")), logits(load(tmp_path / "one-packed")))
    convert_to_bf16(tmp_path / "many-packed", tmp_path / "bf16")
    assert len(list((tmp_path / "bf16").glob("*.safetensors"))) == len(shards)


@pytest.mark.parametrize("start", ["latents", "packed"])
def test_bfloat16_is_codes_times_scale(tmp_path: Path, start: str) -> None:
    trained = latents(tmp_path / "latents")
    quantize_to_1bit(tmp_path / "latents", tmp_path / "packed")
    convert_to_bf16(tmp_path / start, tmp_path / "bf16")
    plain = load(tmp_path / "bf16")
    assert not hasattr(plain.config, "quantization_config")
    name = "model.layers.1.mlp.down_proj"
    wanted = fake_quantize(trained.get_submodule(name).weight, WeightQuantizer())
    torch.testing.assert_close(plain.get_submodule(name).weight, wanted, rtol=2**-7, atol=0)
    assert (logits(plain) - logits(trained)).abs().max() < 0.1 * logits(trained).abs().max()  # inputs are not rounded


def test_what_a_conversion_recorded_is_used(tmp_path: Path) -> None:
    latents(tmp_path / "latents")
    name = "model.layers.0.mlp.up_proj"
    before = load_file(tmp_path / "latents" / "model.safetensors")
    note(tmp_path / "latents", granularity="per_group", group_size=64, hadamard_block=16, exclude=["down_proj"])
    convert_to_bf16(tmp_path / "latents", tmp_path / "bf16")
    after = load_file(tmp_path / "bf16" / "model.safetensors")
    spec = WeightQuantizer("absmean", "per_group", 64)
    expected = HadamardRotation(32, 16).inverse(fake_quantize(before[f"{name}.weight"], spec)).bfloat16()
    assert torch.equal(after[f"{name}.weight"], expected)
    down = "model.layers.0.mlp.down_proj.weight"
    assert torch.equal(after[down], before[down])
    assert "onebit_conversion" not in json.loads((tmp_path / "bf16" / "config.json").read_text())


@pytest.mark.parametrize("tied", [True, False])
def test_quantised_tables_become_bfloat16_and_cannot_be_packed(tied: bool, tmp_path: Path) -> None:
    latents(tmp_path / "latents", tie_word_embeddings=tied)
    note(tmp_path / "latents", tables=True)
    convert_to_bf16(tmp_path / "latents", tmp_path / "bf16")
    before, after = (load(tmp_path / name) for name in ("latents", "bf16"))
    for get in ("get_input_embeddings", "get_output_embeddings"):
        expected = fake_quantize(getattr(before, get)().weight, WeightQuantizer()).bfloat16().float()
        assert torch.equal(getattr(after, get)().weight, expected)
    with pytest.raises(FormatError, match="its embedding is ternary"):
        quantize_to_1bit(tmp_path / "latents", tmp_path / "packed")


def test_excluded_layers_stay_float_in_a_packed_folder(tmp_path: Path) -> None:
    latents(tmp_path / "latents")
    note(tmp_path / "latents", exclude=["lm_head", "layers.1"])
    quantize_to_1bit(tmp_path / "latents", tmp_path / "packed")
    packed = load(tmp_path / "packed")
    kinds = [type(layer.self_attn.q_proj).__name__ for layer in packed.model.layers]
    assert kinds == ["BitLinear", "Linear"]
    assert torch.isfinite(logits(packed)).all()


def test_microsofts_meaning_of_the_scale(tmp_path: Path) -> None:
    trained = latents(tmp_path / "latents", "BitNet")
    quantize_to_1bit(tmp_path / "latents", tmp_path / "packed")
    tensors = load_file(tmp_path / "packed" / "model.safetensors")
    turned = {n: 1 / t.float() if n.endswith("weight_scale") else t for n, t in tensors.items()}
    save_file(turned, tmp_path / "packed" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FormatError, match="cannot be 1 / scale; see linear_class"):
        convert_to_bf16(tmp_path / "packed", tmp_path / "bf16")
    config = json.loads((tmp_path / "packed" / "config.json").read_text())
    config["quantization_config"]["linear_class"] = "autobitlinear"
    (tmp_path / "packed" / "config.json").write_text(json.dumps(config))
    convert_to_bf16(tmp_path / "packed", tmp_path / "bf16")
    name = "model.layers.1.mlp.down_proj"
    wanted = fake_quantize(trained.get_submodule(name).weight, WeightQuantizer())
    torch.testing.assert_close(load(tmp_path / "bf16").get_submodule(name).weight, wanted, rtol=2**-6, atol=0)


def test_gpt2_becomes_bfloat16_but_cannot_be_packed(tmp_path: Path) -> None:
    config = transformers.GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "latents")
    with pytest.raises(FormatError, match="is a Conv1D, which transformers runs as floats only"):
        quantize_to_1bit(tmp_path / "latents", tmp_path / "packed")
    before = load_file(tmp_path / "latents" / "model.safetensors")
    convert_to_bf16(tmp_path / "latents", tmp_path / "bf16")
    after = load_file(tmp_path / "bf16" / "model.safetensors")
    (name,) = [name for name in after if name.endswith("h.0.mlp.c_fc.weight")]
    assert torch.equal(after[name], fake_quantize(before[name].t(), WeightQuantizer()).t().bfloat16())


@pytest.mark.parametrize(
    ("conversion", "message"),
    [
        ({"granularity": "per_row"}, "holds ternary codes with one scale a tensor"),
        ({"quantizer": "binary"}, "holds ternary codes with one scale a tensor"),
        ({"hadamard_block": 16}, "turns its inputs"),
        ({"sub_norms": True}, "norms were added"),
        ({"activation_quantizer": "sign"}, "rounds its inputs to 'sign'"),
    ],
)
def test_what_the_layout_cannot_hold_is_refused(tmp_path: Path, conversion: dict[str, Any], message: str) -> None:
    latents(tmp_path / "latents")
    note(tmp_path / "latents", **conversion)
    with pytest.raises(FormatError, match=message):
        quantize_to_1bit(tmp_path / "latents", tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


def test_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no config\.json that can be read"):
        quantize_to_1bit(tmp_path / "none", tmp_path / "packed")
    latents(tmp_path / "latents")
    with pytest.raises(ConfigError, match="is there already"):
        quantize_to_1bit(tmp_path / "latents", tmp_path / "latents")
    weights = tmp_path / "latents" / "model.safetensors"
    whole = weights.read_bytes()
    tensors = load_file(weights)
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, weights)
    with pytest.raises(DataError, match="the weights of 1 of 14 linear layers are missing"):
        quantize_to_1bit(tmp_path / "latents", tmp_path / "packed")
    weights.write_bytes(whole[:-50])
    with pytest.raises(OnebitError, match=r"model\.safetensors is damaged"):
        quantize_to_1bit(tmp_path / "latents", tmp_path / "packed")
    weights.rename(tmp_path / "latents" / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"no model.safetensors in it; \.bin files are pickles"):
        quantize_to_1bit(tmp_path / "latents", tmp_path / "packed")
    assert [path.name for path in tmp_path.iterdir()] == ["latents"]  # nothing half-written


def test_hostile_folders(tmp_path: Path) -> None:
    latents(tmp_path / "latents", shards=True)
    index = tmp_path / "latents" / "model.safetensors.index.json"
    honest = index.read_text()
    index.write_text(json.dumps({"weight_map": {"a": "../latents/model.safetensors"}}))
    with pytest.raises(FormatError, match="outside the folder"):
        quantize_to_1bit(tmp_path / "latents", tmp_path / "packed")
    index.write_text("[1, 2")
    with pytest.raises(FormatError, match="cannot be read"):
        quantize_to_1bit(tmp_path / "latents", tmp_path / "packed")
    index.write_text(honest)
    config = json.loads((tmp_path / "latents" / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "evil.Model"}
    (tmp_path / "latents" / "config.json").write_text(json.dumps(config))
    (tmp_path / "latents" / "evil.py").write_text("raise SystemExit('it ran')")
    quantize_to_1bit(tmp_path / "latents", tmp_path / "packed")  # with transformers' own class
    (tmp_path / "latents" / "config.json").write_text(json.dumps({**config, "model_type": "unheard-of"}))
    with pytest.raises(DataError, match="names no model of transformers"):
        quantize_to_1bit(tmp_path / "latents", tmp_path / "other")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    latents(tmp_path / "latents")
    capsys.readouterr()
    for to in ("hf", "bf16"):
        assert execute(["convert", str(tmp_path / "latents"), str(tmp_path / to), "--to", to]) == 0
        assert "MB of weights became" in capsys.readouterr().out
    assert torch.isfinite(logits(load(tmp_path / "hf"))).all()
    capsys.readouterr()
    assert execute(["convert", str(tmp_path / "latents"), str(tmp_path / "bf16"), "--to", "bf16"]) == 2
    wanted = f"error: the output '{tmp_path / 'bf16'}' is there already; give the name of a new folder\n"
    assert capsys.readouterr().err == wanted
