"""Compressing a model and back is exact in codes, scales, all other tensors and in what the model computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from onebit.cli.main import execute
from onebit.errors import FormatError, OnebitError
from onebit.formats.compress import compress, decompress, latent_state, quantized_layers, quantized_state_of
from onebit.formats.compressed_file import (
    CompressedFile,
    compress_checkpoint,
    decompress_to_checkpoint,
    read_compressed,
    write_compressed,
)
from onebit.models import OneBitConfig, OneBitForCausalLM
from onebit.nn import BitLinear, bit_layers
from onebit.quant import WeightQuantizer

SPECS = [
    WeightQuantizer("absmean"),
    WeightQuantizer("absmean", "per_row"),
    WeightQuantizer("absmean", "per_group", 64),
    WeightQuantizer("threshold", "per_group", 64),
    WeightQuantizer("sparsity", sparsity=0.3),
    WeightQuantizer("binary"),
    WeightQuantizer("binary", "per_row", center=False),
]


def small(preset: str = "bitnet", **fields: Any) -> OneBitForCausalLM:
    torch.manual_seed(0)
    shape = {"vocab_size": 101, "hidden_size": 48, "num_heads": 4, "num_layers": 2, "intermediate_size": 70}
    return OneBitForCausalLM(OneBitConfig.preset(preset, **(shape | {"max_seq_len": 32} | fields))).eval()


def save(model: OneBitForCausalLM, folder: Path) -> Path:
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text('{"a": "ä"}', encoding="utf-8")
    (folder / "chat_template.jinja").write_bytes(b"")
    (folder / "run.json").write_text("{}")
    return folder


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


def test_four_codes_a_byte_first_in_the_low_bits() -> None:
    """The published layout, by hand: 00 is 0, 01 is +1, 11 is -1."""
    layer = nn.Sequential(BitLinear(5, 1, bias=False))
    layer[0].weight.data = torch.tensor([[1.0, -1.0, 0.0, 1.0, -1.0]])
    packed = compress(layer)
    assert packed["0.codes"].tolist() == [[0b01_00_11_01, 0b00_00_00_11]]
    assert packed["0.shape"].tolist() == [1, 5]
    assert packed["0.scale"].item() == pytest.approx(0.8)  # mean |w|
    assert set(packed) == {"0.codes", "0.shape", "0.scale", "0.quantizer"}


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("shape", [(7, 130), (64, 64), (3, 1)])
def test_codes_and_scales_come_back(spec: WeightQuantizer, shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(BitLinear(shape[1], shape[0], quantizer=spec), nn.LayerNorm(shape[0]))
    wanted = model[0].quantized()
    state = quantized_state_of(model)
    packed = compress(model)
    per_byte = 8 if spec.quantizer == "binary" else 4
    assert packed["0.codes"].dtype == torch.uint8
    assert packed["0.codes"].shape == (shape[0], -(-shape[1] // per_byte))
    back = decompress(packed)
    assert equal(back, state)
    assert torch.equal(back["0.codes"], wanted.codes_OI)
    assert equal(compress(back), packed)
    assert torch.equal(back["1.weight"], model[1].weight)
    assert torch.equal(back["0.bias"], model[0].bias)


@pytest.mark.parametrize(
    ("preset", "fields"),
    [
        ("bitnet", {}),
        ("bitnet", {"tie_word_embeddings": True, "granularity": "per_group", "group_size": 64}),
        ("llama", {"granularity": "per_row", "quantizer": "threshold"}),
        ("seed", {}),
        ("bitnet", {"bit_width_map": {"layers.0.mlp.down_proj": "int8"}}),
    ],
)
def test_a_checkpoint_goes_to_a_file_and_back_and_computes_the_same(
    tmp_path: Path, preset: str, fields: dict[str, Any]
) -> None:
    model = small(preset, **fields)
    folder = save(model, tmp_path / "model")
    file, again = tmp_path / "model.safetensors", tmp_path / "again"
    compress_checkpoint(folder, file)
    decompress_to_checkpoint(file, again)
    assert {path.name for path in again.iterdir()} == {path.name for path in folder.iterdir()} - {"run.json"}
    assert (again / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert (again / "chat_template.jinja").read_bytes() == b""
    loaded = OneBitForCausalLM.from_pretrained(again).eval()
    for (name, old), (_, new) in zip(bit_layers(model), bit_layers(loaded), strict=True):
        assert torch.equal(old.quantized().codes_OI, new.quantized().codes_OI), name
        assert torch.equal(old.quantized().scale, new.quantized().scale), name
    ids = torch.arange(32)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, loaded(ids).logits)
    compress_checkpoint(again, tmp_path / "second.safetensors")
    first, second = (read_compressed(path).state for path in (file, tmp_path / "second.safetensors"))
    assert equal(first, second)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3"])
@pytest.mark.parametrize("rotate", [False, True])
def test_a_converted_model_goes_to_a_file_and_back(tmp_path: Path, kind: str, rotate: bool) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    from onebit.models.converted import Conversion, convert_model, load_converted

    torch.manual_seed(0)
    shape = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    if kind != "gpt2":
        shape |= {"intermediate_size": 64, "num_key_value_heads": 1, "tie_word_embeddings": kind == "qwen3"}
    config = AutoConfig.for_model(kind, **shape, **ends)
    conversion = Conversion(group_size=64, sub_norms=True, hadamard_block=16 if rotate else None)
    model = convert_model(AutoModelForCausalLM.from_config(config), conversion).eval()
    model.save_pretrained(tmp_path / "model")
    file, again = tmp_path / "m.safetensors", tmp_path / "again"
    compress_checkpoint(tmp_path / "model", file)
    decompress_to_checkpoint(file, again)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, load_converted(again).eval()(ids).logits)
    compress_checkpoint(again, tmp_path / "second.safetensors")
    first, second = (read_compressed(path) for path in (file, tmp_path / "second.safetensors"))
    assert equal(dict(first.state), dict(second.state))
    assert len(first.transposed) == (8 if kind == "gpt2" else 0)


def test_the_file_is_as_small_as_two_bits_a_weight(tmp_path: Path) -> None:
    model = small(hidden_size=128, intermediate_size=256, vocab_size=64, num_layers=4)
    file = tmp_path / "m.safetensors"
    compress_checkpoint(save(model, tmp_path / "model"), file)
    coded = sum(layer.weight.numel() for _, layer in bit_layers(model))
    others = sum(p.numel() for p in model.parameters()) - coded
    header = int.from_bytes(file.read_bytes()[:8], "little")
    beside = sum(len(content) for content in read_compressed(file).files.values())
    assert file.stat().st_size - header - beside == pytest.approx(coded / 4 + others * 4, rel=0.02)


def test_a_weight_tied_to_an_embedding_stays_float() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(6, 4), "head": BitLinear(4, 6, bias=False), "other": BitLinear(4, 4)})
    model["head"].weight = model["embed"].weight
    state = quantized_state_of(model)
    assert quantized_layers(state) == ["other"]
    assert state["head.weight"].data_ptr() == state["embed.weight"].data_ptr()


def test_layers_that_share_a_weight_share_their_codes(tmp_path: Path) -> None:
    model = nn.ModuleDict({"a": BitLinear(8, 8), "b": BitLinear(8, 8)})
    model["b"].weight = model["a"].weight
    packed = compress(model)
    assert packed["a.codes"] is packed["b.codes"]
    write_compressed(tmp_path / "f", CompressedFile(state=packed))
    assert "b.codes" not in load_file(tmp_path / "f")
    read = read_compressed(tmp_path / "f").state
    assert equal(read, packed)
    assert equal(decompress(read), quantized_state_of(model))
    latents = latent_state(decompress(read))
    other = nn.ModuleDict({"a": BitLinear(8, 8), "b": BitLinear(8, 8)})
    other.load_state_dict(latents)
    assert torch.equal(other["b"].quantized().codes_OI, model["a"].quantized().codes_OI)


def test_a_state_without_quantised_layers_is_refused() -> None:
    for nothing in (nn.Linear(4, 4), nn.Sequential(BitLinear(4, 4, quantizer=None)), {"weight": torch.ones(3, 3)}, {}):
        with pytest.raises(OnebitError, match="nothing to compress"):
            compress(nothing)


def test_damage_is_named(tmp_path: Path) -> None:
    packed = compress(nn.Sequential(BitLinear(6, 3)))
    invalid = packed["0.codes"].clone()
    invalid[0, 0] = 0b10
    padding = packed["0.codes"].clone()
    padding[0, 1] |= 0b0101_0000
    for change in (
        {"0.codes": invalid},
        {"0.codes": padding},
        {"0.codes": packed["0.codes"][:2]},
        {"0.codes": packed["0.codes"].float()},
        {"0.codes": packed["0.codes"][:, None]},
        {"0.codes": torch.tensor(3, dtype=torch.uint8)},
        {"0.shape": torch.tensor([3, 60])},
        {"0.shape": torch.tensor([3])},
        {"0.shape": torch.tensor([3, -1])},
        {"0.scale": torch.ones(3)},
        {"0.scale": torch.tensor(float("nan"))},
        {"0.quantizer": torch.tensor([1, 2], dtype=torch.uint8)},
    ):
        with pytest.raises(FormatError, match=r"layer 0 of the compressed state is damaged: \S"):
            decompress(packed | change)
    with pytest.raises(FormatError, match="shape is not there"):
        decompress({name: tensor for name, tensor in packed.items() if name != "0.shape"})


def test_a_damaged_configuration_leaves_no_folder(tmp_path: Path) -> None:
    state = compress(nn.Sequential(BitLinear(4, 4)))
    for config in (b"{", b"[1]", b"\xff"):
        write_compressed(tmp_path / "f", CompressedFile(state=state, files={"config.json": config}))
        with pytest.raises(FormatError, match=r"config\.json inside"):
            decompress_to_checkpoint(tmp_path / "f", tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", ".hidden", "a\\b", ""])
def test_a_file_inside_cannot_leave_its_folder(tmp_path: Path, name: str) -> None:
    path = tmp_path / "hostile"
    write_compressed(path, CompressedFile(state=compress(nn.Sequential(BitLinear(4, 4))), files={name: b"x"}))
    with pytest.raises(FormatError, match="plain name"):
        read_compressed(path)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save(small(), tmp_path / "model")
    file, again = tmp_path / "model.safetensors", tmp_path / "again"
    assert execute(["compress", str(folder), "--output", str(file), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["layers"] == len(list(bit_layers(small())))
    assert figures["bytes_after"] == file.stat().st_size < figures["bytes_before"]
    assert execute(["compress", str(file), "--decompress", "--output", str(again)]) == 0
    assert "quantised layers" in capsys.readouterr().out
    other = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(2)}, other)
    (tmp_path / "garbage").write_bytes(np.arange(100, dtype=np.uint8).tobytes())
    save_pretrained_llama(tmp_path / "float")
    capsys.readouterr()
    for args, says in (
        ([file, "--decompress", "--output", again], "is there already"),
        ([other, "--decompress", "--output", tmp_path / "n"], "none that onebit compress wrote"),
        ([tmp_path / "garbage", "--decompress", "--output", tmp_path / "n"], "not a safetensors file"),
        ([tmp_path / "none", "--decompress", "--output", tmp_path / "n"], "none: no such file"),
        ([folder, "--decompress", "--output", tmp_path / "n"], "is a folder; with --decompress"),
        ([file, "--output", tmp_path / "n"], "is a file; give a checkpoint folder"),
        ([tmp_path / "none", "--output", tmp_path / "n"], "no config.json"),
        ([folder, "--output", tmp_path], "is a folder; give the name of a file"),
        ([folder, "--output", tmp_path / "no" / "n"], "does not exist"),
        ([tmp_path / "float", "--output", tmp_path / "n"], "not a model that onebit converted"),
    ):
        assert execute(["compress", *map(str, args)]) == 2, args
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1
    assert not (tmp_path / "n").exists()
    assert not list(tmp_path.glob(".*"))


def save_pretrained_llama(folder: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(folder)
