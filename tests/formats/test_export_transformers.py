"""Converted models of transformers as `.1bit` files: the engine's logits are torch's, and what cannot be carried is
named."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from onebit.engine import library_path  # noqa: E402
from onebit.errors import ConfigError, EngineError  # noqa: E402
from onebit.formats.export import from_model  # noqa: E402
from onebit.formats.onebit_file import read, write  # noqa: E402
from onebit.models.converted import Conversion, convert_model  # noqa: E402
from onebit.nn.hadamard import rotation_signs  # noqa: E402

# As tests/parity: with float activations only the order of sums differs; an int8 input may fall on the other side of
# a half, which moves a few logits by a step.
FLOAT_MAX, INT8_MEDIAN, INT8_MAX = 1e-4, 1e-4, 2e-2

DECODER = {
    "vocab_size": 120,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {
    "vocab_size": 120,
    "n_embd": 48,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ROPE: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
        "rope_theta": 500000.0,
    },
    "yarn": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "attention_factor": 1.0,
        "rope_theta": 10000.0,
    },
}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "llama, biases": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True}),
    "falcon3": ("LlamaConfig", {"head_dim": 32, "rope_theta": 1000042.0}),
    "mistral": ("MistralConfig", {"sliding_window": 64}),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {"head_dim": 16, "tie_word_embeddings": True}),
    "bitnet": ("BitNetConfig", {"hidden_act": "relu2", "tie_word_embeddings": True}),
    "phi3": ("Phi3Config", {"sliding_window": None}),
    "gpt2": ("GPT2Config", {}),
    **{f"rope {name}": ("LlamaConfig", {"rope_parameters": rope}) for name, rope in ROPE.items()},
}
IDS = np.random.default_rng(0).integers(3, 120, 48)


def make(name: str, **changes: Any) -> Any:
    kind, differs = ARCHITECTURES[name]
    common = GPT2 if kind == "GPT2Config" else DECODER
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**{**common, **differs, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.ndim == 1:  # biases and norms that do something
            torch.nn.init.uniform_(parameter, 0.5, 1.0)
        else:  # at 0.02 the attention would be even, whatever the angles
            torch.nn.init.normal_(parameter, std=0.15)
    return model.eval()


def converted(name: str, conversion: dict[str, Any] | None = None, **changes: Any) -> Any:
    return convert_model(make(name, **changes), Conversion(**(conversion or {})))


def logits_of(model: Any) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.as_tensor(IDS)[None], use_cache=False).logits[0].numpy()


def engine_logits(path: Path) -> np.ndarray:
    try:
        library_path()
    except EngineError as problem:
        pytest.skip(str(problem))
    from onebit.engine import Model

    return Model(path).logits(IDS, kv="float32")


def difference(model: Any, path: Path, **options: Any) -> np.ndarray:
    """Of torch's logits and the engine's, as shares of the largest; the tables are stored as they are."""
    write(path, from_model(model, **{"embedding_level": "float32", **options}))
    expected = logits_of(model)
    return np.abs(engine_logits(path) - expected) / np.abs(expected).max()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_engine_computes_what_torch_computes(name: str, tmp_path: Path) -> None:
    exact = converted(name, {"activation_quantizer": "none", "group_size": 64})
    assert difference(exact, tmp_path / "none.1bit").max() <= FLOAT_MAX
    rounded = difference(converted(name, {"group_size": 64}), tmp_path / "int8.1bit")
    assert np.median(rounded) <= INT8_MEDIAN
    assert rounded.max() <= INT8_MAX


@pytest.mark.parametrize("granularity", ["per_tensor", "per_row"])
@pytest.mark.parametrize("name", ["phi3", "gpt2"])
def test_fused_projections_are_cut_without_a_change(name: str, granularity: str, tmp_path: Path) -> None:
    settings = {"granularity": granularity, "group_size": None, "activation_quantizer": "none"}
    assert difference(converted(name, settings), tmp_path / "m.1bit", pack_mode="ternary5").max() <= FLOAT_MAX


@pytest.mark.parametrize("tables", [False, True])
@pytest.mark.parametrize("name", ["llama", "qwen3", "phi3", "gpt2"])
def test_turned_inputs_are_turned_in_the_engine_too(name: str, tables: bool, tmp_path: Path) -> None:
    """hidden_size 48 allows blocks of 16, q's 48 or 64 of 16 or 64, the MLP's 80 or 192 of 16 or 64."""
    settings = {"hadamard_block": 64, "tables": tables}
    options = {"embedding_level": None if tables else "float32"}
    exact = converted(name, {**settings, "activation_quantizer": "none"})
    assert difference(exact, tmp_path / "m.1bit", **options).max() <= FLOAT_MAX
    stored = read(tmp_path / "m.1bit")
    assert stored.rotations["hidden"].block == 16
    assert stored.tensors["model.embed_tokens.weight"].turned == tables
    signs = stored.rotations["mlp"].signs(stored.description.intermediate_size)
    assert np.array_equal(signs, rotation_signs(stored.description.intermediate_size).numpy())
    rounded = difference(converted(name, settings), tmp_path / "m.1bit", layout="exchange", **options)
    assert np.median(rounded) <= INT8_MEDIAN
    assert rounded.max() <= INT8_MAX
    assert "HADAMARD" in (tmp_path / "m.1bit").read_bytes()[:512].decode("latin1")


def test_turned_and_float_layers_stand_side_by_side(tmp_path: Path) -> None:
    settings = {"hadamard_block": 16, "activation_quantizer": "none", "exclude": ("lm_head", "layers.0", "k_proj")}
    assert difference(converted("llama", settings), tmp_path / "m.1bit").max() <= FLOAT_MAX
    tensors = read(tmp_path / "m.1bit").tensors
    assert not tensors["model.layers.1.attention.k_proj.weight"].turned
    assert tensors["model.layers.1.attention.q_proj.weight"].turned


@pytest.mark.parametrize("name", ["qwen3", "phi3"])
def test_added_sub_norms_and_float_layers_are_carried(name: str, tmp_path: Path) -> None:
    settings = {"sub_norms": True, "activation_quantizer": "none", "exclude": ("lm_head", "layers.0")}
    model = converted(name, settings)
    for norm, parameter in model.named_parameters():
        if norm.endswith("sub_norm.weight"):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    assert difference(model, tmp_path / "m.1bit").max() <= FLOAT_MAX
    tensors = read(tmp_path / "m.1bit").tensors
    assert tensors["model.layers.0.mlp.up_proj.weight"].level == "float32"
    assert tensors["model.layers.1.mlp.up_proj.weight"].level == "ternary"


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])  # a head of its own, and two tied ones
@pytest.mark.parametrize("granularity", ["per_tensor", "per_row", "per_group"])
def test_converted_tables_are_stored_as_they_were_trained(name: str, granularity: str, tmp_path: Path) -> None:
    size = 64 if granularity == "per_group" else None
    settings = {"tables": True, "granularity": granularity, "group_size": size}
    for layout, pack_mode in (("run", "ternary5"), ("exchange", "ternary")):
        options = {"embedding_level": None, "layout": layout, "pack_mode": pack_mode}
        exact = converted(name, {**settings, "activation_quantizer": "none"})
        assert difference(exact, tmp_path / "m.1bit", **options).max() <= FLOAT_MAX
        rounded = difference(converted(name, settings), tmp_path / "m.1bit", **options)
        assert np.median(rounded) <= INT8_MEDIAN
        assert rounded.max() <= INT8_MAX
    tensors = read(tmp_path / "m.1bit").tensors
    head = tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"])
    assert (head.level, head.activation.name) == ("ternary", "INT8")
    with pytest.raises(
        ConfigError, match=r"was trained with the quantizer absmean.*--embedding-level int8 contradicts"
    ):
        from_model(converted(name, settings), embedding_level="int8")


def test_float_conv1d_layers_are_turned(tmp_path: Path) -> None:
    model = converted("gpt2", {"activation_quantizer": "none", "exclude": ("lm_head", "h.0")})
    assert difference(model, tmp_path / "m.1bit").max() <= FLOAT_MAX


def test_scaled_frequencies_are_those_of_transformers_and_tell(tmp_path: Path) -> None:
    for name in ROPE:
        model = converted(f"rope {name}", {"activation_quantizer": "none"})
        assert difference(model, tmp_path / "m.1bit").max() <= FLOAT_MAX
        stored = read(tmp_path / "m.1bit")
        found = stored.tensors["model.rope.inv_freq"].values()[0]
        assert np.array_equal(found, model.model.rotary_emb.inv_freq.numpy())
        tensors = {key: tensor for key, tensor in stored.tensors.items() if key != "model.rope.inv_freq"}
        write(tmp_path / "plain.1bit", type(stored)(description=stored.description, tensors=tensors))
        assert np.abs(engine_logits(tmp_path / "plain.1bit") - logits_of(model)).max() > 0.01
    assert "model.rope.inv_freq" not in from_model(converted("llama")).tensors


@pytest.mark.parametrize(
    ("name", "changes", "conversion", "what"),
    [
        ("mistral", {"sliding_window": 8}, {}, r"sliding_window is 8.*max_position_embeddings"),
        ("phi3", {"sliding_window": 8}, {}, "sliding_window is 8"),
        ("llama", {"hidden_act": "gelu"}, {}, "hidden_act is 'gelu'"),
        ("llama", {"eos_token_id": [2, 3]}, {}, "eos_token_id"),
        ("llama", {"rope_parameters": {**ROPE["linear"], "rope_type": "dynamic"}}, {}, "rope_type is 'dynamic'"),
        ("phi3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}, {},
         "partial_rotary_factor is 0.5"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, {}, "scale_attn_by_inverse_layer_idx"),
        ("llama", {}, {"rmsnorm_post_attn": True}, "rmsnorm_post_attn"),
    ],
)  # fmt: skip
def test_what_a_file_cannot_carry_is_named(
    name: str, changes: dict[str, Any], conversion: dict[str, Any], what: str
) -> None:
    with pytest.raises(ConfigError, match=what):
        from_model(converted(name, conversion, **changes))


def test_other_families_and_adapters_are_refused() -> None:
    torch.manual_seed(0)
    gemma = transformers.GemmaConfig(**DECODER, head_dim=12)
    model = convert_model(transformers.AutoModelForCausalLM.from_config(gemma), Conversion())
    with pytest.raises(ConfigError, match="model_type is 'gemma'"):
        from_model(model)
    adapted = converted("llama")
    adapted.model.layers[0].mlp.up_proj.lora_A = torch.nn.Parameter(torch.ones(2, 2))
    with pytest.raises(ConfigError, match="lora_A"):
        from_model(adapted)


@pytest.mark.parametrize("value", [0.0, -1.0, 1.5, float("inf"), float("nan")])
def test_frequencies_that_are_none_are_refused_by_both_readers(value: float, tmp_path: Path) -> None:
    from onebit.errors import FormatError
    from onebit.formats.crc32c import crc32c

    file = from_model(converted("rope linear"))
    write(tmp_path / "m.1bit", file)
    raw = bytearray((tmp_path / "m.1bit").read_bytes())
    record = raw.index(b"model.rope.inv_freq")
    at = int.from_bytes(raw[record + 88 : record + 96], "little")
    raw[at : at + 4] = np.float32(value).tobytes()
    raw[record + 84 : record + 88] = crc32c(bytes(raw[at : at + 64])).to_bytes(4, "little")
    meta = int.from_bytes(raw[24:32], "little")
    raw[12:16] = crc32c(bytes(raw[:12]) + bytes(4) + bytes(raw[16:meta])).to_bytes(4, "little")
    (tmp_path / "m.1bit").write_bytes(raw)
    with pytest.raises(FormatError, match="frequency"):
        read(tmp_path / "m.1bit")
    with pytest.raises(FormatError, match="frequency 0"):
        engine_logits(tmp_path / "m.1bit")


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_yarns_factor_on_attention_scales_the_scores(name: str, tmp_path: Path) -> None:
    for factor, expected in ((1.3, 1.3), (None, 0.1 * math.log(4.0) + 1.0)):
        rope = {key: value for key, value in ROPE["yarn"].items() if key != "attention_factor"}
        rope |= {} if factor is None else {"attention_factor": factor}
        model = converted(name, {"activation_quantizer": "none"}, rope_parameters=rope)
        assert difference(model, tmp_path / "m.1bit").max() <= FLOAT_MAX
        stored = read(tmp_path / "m.1bit")
        head_dim = stored.description.head_dim
        assert stored.description.attention_scale == pytest.approx(expected**2 / head_dim**0.5, rel=1e-6)
        plain = dataclasses.replace(stored.description, attention_scale=None)
        write(tmp_path / "plain.1bit", dataclasses.replace(stored, description=plain))
        assert np.abs(engine_logits(tmp_path / "plain.1bit") - logits_of(model)).max() > 0.01


def test_gpt2_without_a_scale_of_its_scores(tmp_path: Path) -> None:
    model = converted("gpt2", {"activation_quantizer": "none"}, scale_attn_weights=False)
    assert difference(model, tmp_path / "m.1bit").max() <= FLOAT_MAX
    assert read(tmp_path / "m.1bit").description.attention_scale == 1.0


@pytest.mark.parametrize("conversion", [{}, {"tables": True}, {"tables": True, "hadamard_block": 16}])
def test_a_converted_folder_becomes_a_verified_file(
    conversion: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from onebit.cli.main import execute

    converted("qwen3", conversion).save_pretrained(tmp_path / "folder")
    out = tmp_path / "m.1bit"
    done = execute(["export", "--model-dir", str(tmp_path / "folder"), "--output", str(out)])
    captured = capsys.readouterr()
    assert done == 0, captured.err
    assert "verified on" in captured.out
    assert execute(["verify", str(tmp_path / "folder"), str(out)]) == 0
    assert execute(["info", str(out)]) == 0
