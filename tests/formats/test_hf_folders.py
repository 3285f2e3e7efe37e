"""Folders of transformers: stock transformers computes what the engine does, and codes and scales come back exactly."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("transformers")

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.integrations.bitnet import pack_weights

from onebit.engine import Model
from onebit.errors import ConfigError, DataError, FormatError, OnebitError
from onebit.formats.convert import differences
from onebit.formats.exact_scales import NAME
from onebit.formats.hf_export import write_hf
from onebit.formats.hf_import import from_hf
from onebit.formats.layout import Activation, Granularity, Layout
from onebit.formats.onebit_file import OneBitFile, write
from onebit.formats.random_model import random_description, random_file
from onebit.quant import WeightQuantizer, quantize

SIZES = {
    "hidden_size": 64,
    "num_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 128,
    "vocab_size": 40,
}
SUB_NORMS = {"sub_norm": True, "mlp": "relu2_glu"}


def model(seed: int = 0, **choices: Any) -> OneBitFile:
    return random_file(random_description(**SIZES | choices.pop("description", {})), seed=seed, **choices)


def load(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits(folder: Path, ids: np.ndarray) -> np.ndarray:
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        return np.asarray(load(folder)(torch.from_numpy(ids)[None]).logits[0])


@pytest.mark.parametrize(
    ("description", "choices", "options", "kind", "linear_class"),
    [
        ({}, {}, {}, "LlamaForCausalLM", "bitlinear"),
        ({}, {"biases": True}, {}, "LlamaForCausalLM", "bitlinear"),
        ({"tied_head": False}, {}, {"linear_class": "autobitlinear"}, "LlamaForCausalLM", "autobitlinear"),
        ({}, {"layout": "binary_t16"}, {}, "LlamaForCausalLM", "bitlinear"),
        ({"mlp": "relu2_glu"}, {}, {}, "LlamaForCausalLM", "bitlinear"),
        ({"qk_norm": True}, {}, {}, "Qwen3ForCausalLM", "bitlinear"),
        (SUB_NORMS, {}, {}, "BitNetForCausalLM", "autobitlinear"),
        ({**SUB_NORMS, "tied_head": False}, {}, {"linear_class": "bitlinear"}, "BitNetForCausalLM", "bitlinear"),
        ({"sub_norm": True}, {}, {}, "BitNetForCausalLM", "autobitlinear"),
        ({}, {"granularity": "per_group", "activation": "none"}, {"packed": False}, "LlamaForCausalLM", None),
        ({}, {"granularity": "per_row", "activation": "none"}, {"packed": False}, "LlamaForCausalLM", None),
    ],
    ids=str,
)
def test_stock_transformers_computes_what_the_engine_does(
    description: dict[str, Any],
    choices: dict[str, Any],
    options: dict[str, Any],
    kind: str,
    linear_class: str | None,
    tmp_path: Path,
) -> None:
    file = model(description=description, **choices)
    write(tmp_path / "m.1bit", file)
    config = write_hf(tmp_path / "hf", file, **options)
    assert config["architectures"] == [kind]
    assert config.get("quantization_config", {}).get("linear_class") == linear_class
    ids = np.random.default_rng(0).integers(0, 40, 24)
    expected = Model(tmp_path / "m.1bit", threads=1).logits(ids, kv="float32")
    found = logits(tmp_path / "hf", ids)
    # An int8 code of an input falls the other way now and then, by the last bit of a sum: 1 / 127 of one input.
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()
    assert np.median(np.abs(found - expected)) < 1e-3 * np.abs(expected).max()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["ternary_t16", "binary", "ternary5"]),
    st.sampled_from(["per_tensor", "per_row", "per_group"]),
    st.sampled_from(["int8", "int4", "float16", "float32", "ternary"]),
    st.sampled_from([{}, {"qk_norm": True}, {"sub_norm": True}, SUB_NORMS, {"tied_head": False}]),
    st.sampled_from([None, "bitlinear", "autobitlinear"]),
    st.integers(0, 2**31),
)
def test_every_model_comes_back_bit_for_bit(
    tmp_path: Path,
    layout: str,
    granularity: str,
    table: str,
    description: dict[str, Any],
    linear_class: str | None,
    seed: int,
) -> None:
    packed = granularity == "per_tensor" and seed % 3 > 0
    file = model(
        seed,
        layout=layout,
        granularity=granularity,
        embedding_layout=table,
        description=description,
        head_activation="int8" if seed % 2 else "none",
    )
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    write_hf(folder, file, packed=packed, linear_class=linear_class if packed else None)
    found = from_hf(folder, layout="exchange")
    assert differences(file, found) == []
    for name, tensor in file.tensors.items():
        assert found.tensors[name].activation == tensor.activation, name


def test_floats_of_two_bytes_keep_the_codes(tmp_path: Path) -> None:
    """bfloat16 rounds codes times scale; with the scales beside, the codes are known and the scales exact."""
    file = model(granularity="per_row")
    write_hf(tmp_path / "hf", file, packed=False, dtype="bfloat16")
    found = from_hf(tmp_path / "hf")
    name = "model.layers.1.mlp.up_proj.weight"
    assert np.array_equal(found.tensors[name].codes(), file.tensors[name].codes())
    assert np.array_equal(found.tensors[name].scales(), file.tensors[name].scales())
    stored = load_file(tmp_path / "hf" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}


# The folders of others, made with transformers' own packing as their authors made them.
def foreign(folder: Path, kind: str, linear_class: str | None, dtype: torch.dtype, **changes: Any) -> dict[str, Any]:
    """A packed folder; returns the codes and the exact scale of each matrix."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 40,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "pad_token_id": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = getattr(transformers, f"{kind}Config")(**sizes, **changes)
    latent = transformers.AutoModelForCausalLM.from_config(config)
    latent.to(dtype).save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    known = {}
    for name in [name for name in state if "_proj.weight" in name]:
        quantized = quantize(state[name].float(), WeightQuantizer())
        is_inverse = linear_class != "autobitlinear"
        scale = (1 / quantized.scale if is_inverse else quantized.scale).view(1).to(dtype)
        state[name], state[f"{name}_scale"] = pack_weights(quantized.codes_OI.clone()), scale
        known[name] = (quantized.codes_OI.numpy(), (1 / scale.float() if is_inverse else scale.float()).numpy()[0])
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    told: dict[str, Any] = {"quant_method": "bitnet", "modules_to_not_convert": None}
    if linear_class is not None:
        told |= {"linear_class": linear_class, "quantization_mode": "offline"}
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**described, "quantization_config": told}))
    return known


FOREIGN = {
    "falcon-e": ("Llama", None, torch.bfloat16, {"tie_word_embeddings": True}),
    "falcon3-1.58bit": ("Llama", "bitlinear", torch.bfloat16, {"tie_word_embeddings": False}),
    "hf1bitllm": ("Llama", None, torch.float16, {"tie_word_embeddings": False}),
    "bitnet-b1.58-2b-4t": ("BitNet", "autobitlinear", torch.bfloat16, {"tie_word_embeddings": True}),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_packed_folders_of_others_are_read_exactly(name: str, tmp_path: Path) -> None:
    kind, linear_class, dtype, changes = FOREIGN[name]
    known = foreign(tmp_path / "hf", kind, linear_class, dtype, **changes)
    file = from_hf(tmp_path / "hf", layout="exchange")
    assert file.description.mlp == ("relu2_glu" if kind == "BitNet" else "swiglu")
    assert file.description.sub_norm == (kind == "BitNet")
    names = {plan.name for plan in file.description.plan() if "_proj.weight" in plan.name}
    assert len(names) == len(known) == 14
    for theirs, (codes, scale) in known.items():
        ours = theirs.replace("self_attn", "attention")
        tensor = file.tensors[ours]
        assert tensor.layout is Layout.TERNARY
        assert tensor.activation is Activation.INT8
        assert np.array_equal(tensor.codes(), codes)
        assert tensor.scales() == scale
    if dtype == torch.bfloat16 and linear_class == "autobitlinear":
        return  # transformers does not load these in float32
    write(tmp_path / "m.1bit", file.for_running())
    ids = np.random.default_rng(0).integers(0, 40, 16)
    expected = logits(tmp_path / "hf", ids)
    found = Model(tmp_path / "m.1bit", threads=1).logits(ids, kv="float32")
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


@pytest.mark.parametrize(("name", "other"), [("falcon-e", "autobitlinear"), ("bitnet-b1.58-2b-4t", "bitlinear")])
def test_the_wrong_meaning_of_the_scale_is_proved_wrong(name: str, other: str, tmp_path: Path) -> None:
    kind, linear_class, dtype, changes = FOREIGN[name]
    foreign(tmp_path / "hf", kind, linear_class, dtype, **changes)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    config["quantization_config"]["linear_class"] = other
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    with pytest.raises(FormatError, match=r"cannot be .*, as linear_class says in config\.json"):
        from_hf(tmp_path / "hf")


def test_online_latents_are_quantised_as_their_model_does(tmp_path: Path) -> None:
    foreign(tmp_path / "packed", "BitNet", "autobitlinear", torch.bfloat16)
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(tmp_path / "packed")
    told = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}
    del config.quantization_config
    latent = transformers.AutoModelForCausalLM.from_config(config).bfloat16()
    latent.save_pretrained(tmp_path / "latent")
    described = json.loads((tmp_path / "latent" / "config.json").read_text())
    (tmp_path / "latent" / "config.json").write_text(json.dumps({**described, "quantization_config": told}))
    file = from_hf(tmp_path / "latent")
    name = "model.layers.0.mlp.down_proj.weight"
    expected = quantize(latent.state_dict()[name].float(), WeightQuantizer())
    assert np.array_equal(file.tensors[name].codes(), expected.codes_OI.numpy())
    assert file.tensors[name].scales() == expected.scale.numpy()


@pytest.mark.parametrize("granularity", ["per_tensor", "per_row", "per_group"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_floats_on_a_grid_become_codes(granularity: str, dtype: str, tmp_path: Path) -> None:
    """What others leave of a ternary model: codes times scale as floats, and nothing that says so."""
    wide = {"hidden_size": 128, "head_dim": 32}
    file = model(granularity=granularity, activation="none", description=wide)
    write_hf(tmp_path / "hf", file, packed=False, dtype=dtype)
    (tmp_path / "hf" / NAME).unlink()
    found = from_hf(tmp_path / "hf", layout="exchange")
    for name, tensor in file.tensors.items():
        if "_proj.weight" not in name:
            continue
        other = found.tensors[name]
        values = torch.from_numpy(tensor.values()).to(getattr(torch, dtype)).float().numpy()
        assert np.array_equal(other.values(), values)
        if granularity != "per_group" or dtype == "float16":
            assert other.level == "ternary"
            assert np.array_equal(other.codes(), tensor.codes())
            assert other.geometry.granularity is Granularity[granularity.upper()]


def test_a_float_model_stays_float(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4
    )
    latent = transformers.AutoModelForCausalLM.from_config(config).bfloat16()
    latent.save_pretrained(tmp_path / "hf")
    file = from_hf(tmp_path / "hf")
    assert {tensor.level for tensor in file.tensors.values()} <= {"float32", "float16"}
    name = "model.layers.0.mlp.down_proj.weight"
    assert np.array_equal(file.tensors[name].values(), latent.state_dict()[name].float().numpy())
    tables = from_hf(tmp_path / "hf", table_level="int8").tensors
    assert tables["model.embed_tokens.weight"].level == "int8"


@pytest.mark.parametrize(
    ("description", "choices", "options", "message"),
    [
        ({}, {"granularity": "per_row"}, {}, "has scales per_row; the packed layout of transformers has one scale"),
        ({}, {"activation": "none"}, {}, "has inputs rounded to none"),
        ({}, {"hadamard_block": 16}, {}, "has rotated inputs"),
        ({}, {"layout": "int8"}, {}, "no projection of the model is ternary or binary"),
        ({"norm": "layernorm"}, {}, {}, "norm 'layernorm' .use_subln., which no LlamaForCausalLM"),
        ({"residual_scale": 0.5}, {}, {}, "residuals times 0.5"),
        ({"attention_scale": 0.3}, {}, {}, "not the configuration that they come from .rope_parameters."),
        ({"qk_norm": True}, {"biases": True}, {}, "biases in the MLP"),
        ({}, {"biases": True}, {"linear_class": "autobitlinear"}, "it multiplies biases by the scale too"),
        ({}, {}, {"linear_class": "bitlinera"}, "expected bitlinear or autobitlinear"),
        ({}, {}, {"dtype": "int8"}, "expected one of float32, float16, bfloat16"),
    ],
)
def test_what_a_folder_cannot_hold_is_refused(
    description: dict[str, Any], choices: dict[str, Any], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        write_hf(tmp_path / "hf", model(description=description, **choices), **options)
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is there already"):
        write_hf(tmp_path / "hf", model())
    assert [path.name for path in (tmp_path / "hf").iterdir()] == ["mine.txt"]


def damaged(folder: Path, change: Any) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop(f"{Q}_scale"), "is missing"),
        (lambda s: s.pop(Q), r"no tensor 'model\.layers\.0"),
        (lambda s: s.update({f"{Q}_scale": torch.tensor([float("nan")])}), "is not one positive number"),
        (lambda s: s.update({f"{Q}_scale": torch.tensor([1.0, 2.0])}), "is not one positive number"),
        (lambda s: s.update({Q: torch.full_like(s[Q], 255)}), "have the bits 11"),
        (lambda s: s.update({Q: s[Q][:4].clone()}), r"shape \(16, 64\), expected \(64, 64\)"),
        (lambda s: s.update({"model.norm.weight": torch.ones(3)}), r"shape \(3,\), expected"),
        (lambda s: s.update({"model.norm.weight": torch.full((64,), float("inf"))}), "NaN or infinite"),
        (lambda s: s.update({"model.norm.weight": torch.ones(64, dtype=torch.int32)}), "int32, expected floats"),
        (lambda s: s.update({"model.extra.weight": torch.ones(3)}), "no place for .model.extra.weight"),
    ],
)
@pytest.mark.parametrize("with_scales", [True, False])
def test_damaged_weights_are_refused(change: Any, message: str, with_scales: bool, tmp_path: Path) -> None:
    write_hf(tmp_path / "hf", model())
    if not with_scales:
        (tmp_path / "hf" / NAME).unlink()
    damaged(tmp_path / "hf", change)
    with pytest.raises(OnebitError, match=message):
        from_hf(tmp_path / "hf")


def test_scales_that_do_not_belong_to_the_weights_are_refused(tmp_path: Path) -> None:
    write_hf(tmp_path / "hf", model(embedding_layout="int8"))
    damaged(tmp_path / "hf", lambda s: s.update({"model.embed_tokens.weight": s["model.embed_tokens.weight"] * 1.5}))
    with pytest.raises(FormatError, match="codes times scales are not the weights of"):
        from_hf(tmp_path / "hf")
    (tmp_path / "hf" / NAME).write_bytes(b"\xff" * 64)
    with pytest.raises(FormatError, match="not what onebit writes, or damaged"):
        from_hf(tmp_path / "hf")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "unheard-of"}, "describes no model of transformers"),
        ({"model_type": "gemma"}, "model_type is 'gemma'"),
        ({"hidden_size": 0}, "describes no model|cannot carry"),
        ({"hidden_size": "much"}, "describes no model"),
        ({"num_hidden_layers": 10**9}, "says num_hidden_layers 1000000000, but there are"),
        ({"num_hidden_layers": 3}, "no tensor"),
        ({"num_attention_heads": 0}, "describes no model|cannot carry"),
        ({"quantization_config": {"quant_method": "awq"}}, "packed by 'awq'; onebit reads quant_method bitnet"),
        ({"quantization_config": {"quant_method": "bitnet", "use_rms_norm": True}}, "use_rms_norm"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "describes no model|rope_type is"),
    ],
)
def test_configurations_that_lie_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_hf(tmp_path / "hf", model())
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(OnebitError, match=message):
        from_hf(tmp_path / "hf")


def test_hostile_folders(tmp_path: Path) -> None:
    write_hf(tmp_path / "hf", model())
    folder = tmp_path / "hf"
    index = folder / "model.safetensors.index.json"
    for text, message in (
        (json.dumps({"weight_map": {"a": "../hf/model.safetensors"}}), "outside the folder"),
        (json.dumps({"weight_map": {"a": 3}}), "outside the folder|cannot be read"),
        (json.dumps({"weight_map": {"a": "absent.safetensors"}}), r"no absent\.safetensors in it"),
        ("[" * 100_000, "cannot be read"),
    ):
        index.write_text(text)
        with pytest.raises(OnebitError, match=message):
            from_hf(folder)
    index.unlink()
    for text in ("[1]", "{", "[" * 100_000, "\udcff"):
        (folder / "config.json").write_text(text, errors="surrogateescape")
        with pytest.raises(DataError):
            from_hf(folder)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["config.json", "model.safetensors", NAME]), st.integers(0, 2**31), st.integers(1, 5))
def test_random_damage_ends_well_or_in_an_error_of_ours(tmp_path: Path, name: str, seed: int, count: int) -> None:
    if not (tmp_path / "hf").exists():
        write_hf(tmp_path / "hf", model(embedding_layout="int8", description={"num_layers": 1}))
    path = tmp_path / "hf" / name
    honest = path.read_bytes()
    rng = np.random.default_rng(seed)
    changed = bytearray(honest)
    for at in rng.integers(0, min(len(honest), 3000), count):
        changed[int(at)] = int(rng.integers(0, 256))
    path.write_bytes(changed[: int(rng.integers(1, len(changed)))] if seed % 10 == 0 else changed)
    try:
        with contextlib.suppress(OnebitError):
            from_hf(tmp_path / "hf")
    finally:
        path.write_bytes(honest)


def test_words_beside_the_weights(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    tokenizer = Tokenizer(models.BPE({"a": 0, "<s>": 1, "</s>": 2}, [])).to_str()
    file = replace(model(), tokenizer_json=tokenizer, chat_template="{{ messages }}", manifest={"steps": 3})
    write_hf(tmp_path / "hf", file)
    found = from_hf(tmp_path / "hf")
    assert (found.tokenizer_json, found.chat_template, found.manifest) == (tokenizer, "{{ messages }}", {"steps": 3})
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert (loaded.bos_token, loaded.eos_token, loaded.chat_template) == ("<s>", "</s>", "{{ messages }}")
    generation = json.loads((tmp_path / "hf" / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": 2}
