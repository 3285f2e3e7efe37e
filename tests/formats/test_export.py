"""Export against the torch model itself: the file's weights are the ones its layers compute with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from onebit.errors import ConfigError, DataError  # noqa: E402
from onebit.formats.checkpoint import from_checkpoint  # noqa: E402
from onebit.formats.export import from_model  # noqa: E402
from onebit.formats.onebit_file import read, write  # noqa: E402
from onebit.models import OneBitConfig, OneBitForCausalLM  # noqa: E402
from onebit.quant import WeightQuantizer, fake_quantize  # noqa: E402

SHAPE = {
    "vocab_size": 300,
    "hidden_size": 72,
    "num_heads": 4,
    "num_layers": 2,
    "intermediate_size": 100,
    "max_seq_len": 32,
    "head_dim": 18,
}
BITNET = {
    "use_ternary": True,
    "use_dynamic_threshold": False,
    "use_subln": True,
    "use_rope": True,
    "use_relu2": True,
    "use_swiglu": True,
    "use_sub_norm": True,
    "num_key_value_heads": 2,
}


def model_of(**fields: Any) -> OneBitForCausalLM:
    torch.manual_seed(0)
    model = OneBitForCausalLM(OneBitConfig(**(SHAPE | fields)))
    for name, parameter in model.named_parameters():  # biases and norms start as zeros and ones: make them tell
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, 1.0 if name.endswith("weight") else 0.0, 0.1)
    return model.eval()


def grid(**fields: Any) -> list[Any]:
    """Quantisers by granularity."""
    return [
        pytest.param({"granularity": granularity, "group_size": group, **fields}, id=f"{granularity}")
        for granularity, group in (("per_tensor", None), ("per_row", None), ("per_group", 64))
    ]


def expected_values(model: OneBitForCausalLM, name: str) -> np.ndarray:
    """What the layer multiplies with, computed from the latent weight by quant's own float path."""
    path, _, parameter = name.rpartition(".")
    module = model.get_submodule(path)
    value = getattr(module, parameter).detach().float()
    spec = getattr(module, "weight_quantizer", None)
    if parameter == "weight" and spec is not None:
        return fake_quantize(value, spec).numpy()
    return np.atleast_2d(value.numpy())


@pytest.mark.parametrize("quantisation", grid())
@pytest.mark.parametrize("architecture", [{}, BITNET], ids=["seed", "bitnet"])
@pytest.mark.parametrize("layout", ["run", "exchange"])
def test_weights_are_carried_exactly(
    quantisation: dict[str, Any], architecture: dict[str, Any], layout: str, tmp_path: Path
) -> None:
    model = model_of(attention_bias=True, mlp_bias=True, **architecture, **quantisation)
    write(tmp_path / "m.1bit", from_model(model, layout=layout, embedding_level="float32"))
    file = read(tmp_path / "m.1bit")
    for name, tensor in file.tensors.items():
        assert np.array_equal(tensor.values(), expected_values(model, name)), name
    parameters = {name for name, _ in model.named_parameters()} - {"lm_head.weight"}
    assert parameters == set(file.tensors) - {"lm_head.weight"}
    level = "ternary" if architecture else "binary"
    suffix = "_t16" if layout == "run" else ""
    assert file.tensors["model.layers.0.attention.q_proj.weight"].layout.label == level + suffix


def test_description_says_what_the_config_says() -> None:
    config = {"rope_theta": 5e5, "norm_eps": 1e-6, "bos_token_id": 1, "eos_token_id": [2], "tie_word_embeddings": False}
    file = from_model(model_of(**BITNET, **config))
    d = file.description
    assert (d.norm, d.mlp, d.position) == ("rmsnorm", "relu2_glu", "rope")
    assert (d.qk_norm, d.sub_norm, d.tied_head) == (True, True, False)
    assert (d.num_heads, d.num_key_value_heads, d.head_dim, d.intermediate_size) == (4, 2, 18, 100)
    assert (d.bos, d.eos, d.pad, d.rope_theta) == (1, 2, None, 5e5)
    assert d.residual_scale == pytest.approx(2**-0.5, rel=1e-7)  # float32
    assert file.config is not None
    assert OneBitConfig(**file.config).to_dict() == model_of(**BITNET, **config).config.to_dict()
    plain = from_model(model_of(use_residual_scaling=False, use_qk_norm=False)).description
    assert (plain.norm, plain.mlp, plain.position) == ("layernorm", "gelu", "learned")
    assert (plain.residual_scale, plain.qk_norm, plain.tied_head) == (1.0, False, True)


def test_mixed_levels_each_in_their_own_layout() -> None:
    levels = {
        "layers.0.mlp.*": "int8",
        "layers.1.mlp.up_proj": "binary",
        "layers.1.mlp.down_proj": "int4",
        "layers.0.attention.o_proj": "float16",
        "layers.1.attention.o_proj": "float32",
        "embed_tokens": "int8",
        "lm_head": "int4",
    }
    model = model_of(use_ternary=True, use_swiglu=True, tie_word_embeddings=False, bit_width_map=levels)
    file = from_model(model, pack_mode="ternary5", layout="exchange")
    found = {name.removeprefix("model.").removesuffix(".weight"): t.layout.label for name, t in file.tensors.items()}
    assert found["layers.0.mlp.gate_proj"] == found["layers.0.mlp.down_proj"] == found["embed_tokens"] == "int8"
    assert found["layers.1.mlp.up_proj"] == "binary"
    assert found["layers.1.mlp.down_proj"] == found["lm_head"] == "int4"
    assert found["layers.0.attention.o_proj"] == "float16"
    assert found["layers.1.attention.o_proj"] == "float32"
    assert found["layers.0.attention.q_proj"] == found["layers.1.mlp.gate_proj"] == "ternary5"
    for name, tensor in file.tensors.items():
        assert np.array_equal(tensor.values(), expected_values(model, name)), name
    assert file.tensors["lm_head.weight"].activation.name == "INT8"
    assert file.tensors["model.layers.0.mlp.up_proj.weight"].activation.name == "INT8"


@pytest.mark.parametrize("level", ["float32", "float16", "int8", "int4"])
def test_embedding_level(level: str) -> None:
    model = model_of(tie_word_embeddings=False)
    file = from_model(model, embedding_level=level)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weight = model.get_parameter(name).detach()
        expected = weight if level == "float32" else fake_quantize(weight, WeightQuantizer.for_level(level))  # type: ignore[arg-type]
        assert file.tensors[name].layout.label == level
        assert np.array_equal(file.tensors[name].values(), expected.numpy())


@pytest.mark.parametrize("tied", [True, False])
def test_embedding_and_head_are_int8_and_the_head_reads_int8_unless_asked_otherwise(tied: bool) -> None:
    model = model_of(tie_word_embeddings=tied)
    head = "model.embed_tokens.weight" if tied else "lm_head.weight"
    for level, asked, expected in (
        (None, None, ("int8", "int8")),
        (None, "none", ("int8", "none")),
        ("int4", None, ("int4", "int8")),
        ("float16", None, ("float16", "none")),
        ("float32", None, ("float32", "none")),
    ):
        tensors = from_model(model, embedding_level=level, head_activation=asked).tensors
        assert (tensors[head].layout.label, tensors[head].activation.name.lower()) == expected
        if not tied:  # a look-up has no inputs to round
            table = tensors["model.embed_tokens.weight"]
            assert (table.layout.label, table.activation.name.lower()) == (expected[0], "none")
    with pytest.raises(ConfigError, match="--head-activation is 'sign'"):
        from_model(model, head_activation="sign")


def test_tables_trained_as_codes_keep_them_and_the_head_its_float_inputs() -> None:
    levels = {"embed_tokens": "binary", "lm_head": "ternary"}
    model = model_of(bit_width_map=levels, tie_word_embeddings=False)
    tensors = from_model(model).tensors
    assert [tensors[f"{name}.weight"].level for name in ("model.embed_tokens", "lm_head")] == list(levels.values())
    assert tensors["lm_head.weight"].activation.name == "NONE"
    rounded = from_model(model, head_activation="int8").tensors["lm_head.weight"]
    assert rounded.activation.name == "INT8"
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert np.array_equal(tensors[name].values(), expected_values(model, name))


def test_activation_kinds_are_carried() -> None:
    for kind in ("int8", "sign", "none"):
        file = from_model(model_of(activation_quantizer=kind))
        assert file.tensors["model.layers.0.mlp.up_proj.weight"].activation.name.lower() == kind


def test_pack_modes_that_do_not_fit_are_refused() -> None:
    ternary, binary, floats = model_of(use_ternary=True), model_of(), model_of(quantizer="none")
    with pytest.raises(ConfigError, match=r"pack_mode is binary.*quantizer"):
        from_model(ternary, pack_mode="binary")
    for mode in ("ternary", "ternary5"):
        with pytest.raises(ConfigError, match=r"the model is binary.*quantizer"):
            from_model(binary, pack_mode=mode)
        with pytest.raises(ConfigError, match="neither ternary nor binary"):
            from_model(floats, pack_mode=mode)
    with pytest.raises(ConfigError, match=r"--pack-mode is 'ternari'.*did you mean 'ternary'"):
        from_model(ternary, pack_mode="ternari")
    with pytest.raises(ConfigError, match="--layout"):
        from_model(ternary, layout="tiles")
    assert from_model(binary, pack_mode="binary").tensors["model.layers.0.mlp.up_proj.weight"].level == "binary"
    assert from_model(floats).tensors["model.layers.0.mlp.up_proj.weight"].level == "float32"


def test_what_the_format_cannot_carry_is_named() -> None:
    with pytest.raises(ConfigError, match="eos_token_id"):
        from_model(model_of(eos_token_id=[1, 2]))
    trained = {"embed_tokens": "int8", "lm_head": "int8"}
    with pytest.raises(ConfigError, match="contradicts"):
        from_model(model_of(bit_width_map=trained), embedding_level="float16")
    adapted = model_of()
    adapted.model.layers[0].mlp.up_proj.lora_A = torch.nn.Parameter(torch.ones(2, 2))
    with pytest.raises(ConfigError, match="lora_A"):
        from_model(adapted)
    diverged = model_of()
    diverged.model.norm.weight.data[3] = float("nan")
    with pytest.raises(ValueError, match=r"model\.norm\.weight: 1 values are NaN"):
        from_model(diverged)


def test_tokenizer_larger_than_the_model_is_refused() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {f"t{i}": i for i in range(301)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="t0"))
    with pytest.raises(ConfigError, match="vocab_size is 300, but the tokenizer has 301"):
        from_model(model_of(), tokenizer)
    with pytest.raises(DataError, match="cannot be loaded"):
        from_model(model_of(), "{}")


def byte_level_tokenizer() -> Any:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["<|end|>"],
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(["def hello(world): return world"] * 20, trainer)
    return tokenizer


def checkpoint(folder: Path, **fields: Any) -> OneBitForCausalLM:
    model = model_of(eos_token_id=0, **fields)
    model.save_pretrained(folder)
    byte_level_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "training_manifest.json").write_text(json.dumps({"steps": 5}))
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    template += "{% if add_generation_prompt %}assistant: {% endif %}"
    (folder / "chat_template.jinja").write_text(template)
    return model


def test_checkpoint_folder_becomes_one_file(tmp_path: Path) -> None:
    model = checkpoint(tmp_path, **BITNET)
    file = from_checkpoint(tmp_path)
    direct = from_model(model)
    assert all(np.array_equal(file.tensors[name].data, tensor.data) for name, tensor in direct.tensors.items())
    assert file.manifest == {"steps": 5}
    assert file.tokenizer_binary is not None
    assert file.tokenizer_binary[:4] == b"TOKB"
    assert file.chat_strings is not None
    assert file.chat_strings.user_suffix == "<|end|>"
    assert file.chat_strings.generation_prefix == "assistant: "


def test_checkpoint_with_missing_weights_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    checkpoint(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match="missing keys"):
        from_checkpoint(tmp_path)
    with pytest.raises(DataError, match=r"config\.json"):
        from_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("model.safetensors", None, "cannot be loaded"),
        ("model.safetensors", b"\x10\0\0\0\0\0\0\0{}", "model.safetensors is damaged"),
        ("config.json", b"{", "cannot be loaded"),
        ("tokenizer.json", b"\xff", "not UTF-8"),
        ("tokenizer.json", b"{}", "tokenizer cannot be loaded"),
        ("training_manifest.json", b"{", "not valid JSON"),
        ("training_manifest.json", b"[]", "expected an object"),
    ],
)
def test_damaged_folders_are_one_line(
    name: str, content: bytes | None, what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    checkpoint(folder)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    assert command("export", "--model-dir", folder, "--output", tmp_path / "m.1bit", "--no-verify") == 2
    assert what in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_config_of_another_size_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    checkpoint(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": config["intermediate_size"] * 2}))
    capfd.readouterr()
    assert command("export", "--model-dir", tmp_path, "--output", tmp_path / "m.1bit") == 2
    captured = capfd.readouterr()
    assert "do not belong together: 4 mismatched keys" in captured.err
    assert "up_proj" in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def command(*arguments: str | Path) -> int:
    from onebit.cli.main import execute

    return execute([str(argument) for argument in arguments])


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    model = checkpoint(folder, **BITNET)
    out = tmp_path / "model.1bit"
    done = command(
        "export", "--model-dir", folder, "--output", out, "--pack_mode", "ternary5", "--no-verify", "--emit-c-header"
    )
    captured = capsys.readouterr()
    assert done == 0, captured.err
    assert "ternary5_t16" in captured.out
    assert "times smaller than float16" in captured.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "model.1bit", "model.h", "model_firmware"]
    assert np.array_equal(
        read(out).tensors["model.layers.1.mlp.down_proj.weight"].values(),
        expected_values(model, "model.layers.1.mlp.down_proj.weight"),
    )


def test_command_prints_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tmp_path / "checkpoint", tmp_path / "model.1bit"
    folder.mkdir()
    checkpoint(folder)
    capsys.readouterr()
    assert command("export", "--model-dir", folder, "--output", out, "--no-verify", "--emit-c-header", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["output"], record["file_bytes"]) == (str(out), out.stat().st_size)
    assert record["c_header"] == {
        "output": str(tmp_path / "model.h"),
        "file_bytes": (tmp_path / "model.h").stat().st_size,
    }
    assert record["totals"]["bits_per_weight"] > 0
    assert record["verified"] is None


def test_a_model_named_as_its_header_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint(tmp_path)
    capsys.readouterr()
    arguments = ("--model-dir", tmp_path, "--output", tmp_path / "model.h", "--no-verify", "--emit-c-header")
    assert command("export", *arguments) == 2
    assert "what the C header would be called" in capsys.readouterr().err
    assert not (tmp_path / "model.h").exists()


def test_command_refuses_in_one_line_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    checkpoint(folder)
    good, out = ["export", "--model-dir", folder], tmp_path / "model.1bit"
    for arguments, what in (
        ([*good, "--output", out, "--pack-mode", "ternary"], "the model is binary"),
        ([*good, "--output", out, "--pack-mode", "tern"], "--pack-mode is 'tern'"),
        ([*good, "--output", tmp_path / "no" / "model.1bit"], "does not exist"),
        ([*good, "--output", tmp_path], "is a folder"),
        (["export", "--model-dir", tmp_path, "--output", out], "config.json"),
    ):
        capsys.readouterr()
        assert command(*arguments) == 2
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        assert what in errors[0]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_export_is_verified_through_the_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    checkpoint(folder, **BITNET, granularity="per_group", group_size=64)
    for layout in ("run", "exchange"):
        assert command("export", "--model-dir", folder, "--output", tmp_path / "m.1bit", "--layout", layout) == 0
        assert "verified on" in capsys.readouterr().out


def test_a_file_that_computes_something_else_gets_no_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Verification comes before the rename: whatever was there stays."""
    from types import SimpleNamespace

    import onebit.eval.verify

    folder, out = tmp_path / "checkpoint", tmp_path / "model.1bit"
    folder.mkdir()
    checkpoint(folder)
    out.write_bytes(b"what was here")
    report = SimpleNamespace(
        passed=False, reasons=["the median difference is 0.5"], notes=[], tokens=8, max_relative=1.0
    )
    monkeypatch.setattr(onebit.eval.verify, "verify", lambda a, b: report)
    assert command("export", "--model-dir", folder, "--output", out) == 2
    assert "the median difference is 0.5" in capsys.readouterr().err
    assert out.read_bytes() == b"what was here"
    assert len(list(tmp_path.iterdir())) == 2


def test_without_an_engine_the_file_is_written_and_the_reader_warned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEBIT_ENGINE_LIBRARY", str(tmp_path / "nowhere.so"))
    folder, out = tmp_path / "checkpoint", tmp_path / "model.1bit"
    folder.mkdir()
    checkpoint(folder)
    assert command("export", "--model-dir", folder, "--output", out) == 0
    assert "model.1bit is not verified: the onebit engine is not built" in capsys.readouterr().err
    assert out.is_file()
