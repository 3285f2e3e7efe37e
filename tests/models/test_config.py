"""The configuration: the seed's table, presets, spellings, refusals, and what the bit-width map means."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from onebit.errors import ConfigError
from onebit.models import PRESETS, OneBitConfig
from onebit.quant import WeightQuantizer

MakeConfig = Callable[..., OneBitConfig]
CONFIGS = Path(__file__).parents[2] / "configs"

SEED_TABLE = {
    "vocab_size": 50257,
    "hidden_size": 512,
    "num_heads": 8,
    "num_layers": 6,
    "intermediate_size": 2048,
    "max_seq_len": 512,
    "use_ternary": False,
    "use_relu2": False,
    "use_swiglu": False,
    "use_subln": False,
    "use_rope": False,
    "use_qk_norm": True,
    "use_residual_scaling": True,
    "use_dynamic_threshold": True,
    "ste_scale_factor": 2.0,
    "latent_clamp_max": 1.5,
    "anneal_fraction": 0.3,
    "arenas_initial": None,
    "arenas_anneal_steps": 10000,
}


def test_defaults_are_the_seeds_table() -> None:
    for config in (OneBitConfig(), OneBitConfig.preset("seed"), OneBitConfig.from_json_file(CONFIGS / "config.json")):
        assert {name: getattr(config, name) for name in SEED_TABLE} == SEED_TABLE


def test_the_seeds_wikitext_configuration_loads() -> None:
    config = OneBitConfig.from_json_file(CONFIGS / "config_wikitext.json")
    assert (config.num_layers, config.intermediate_size, config.max_seq_len) == (8, 1536, 256)
    assert (config.use_subln, config.use_rope, config.resolved_quantizer) == (True, True, "binary")
    assert (config.ste_scale_factor, config.anneal_fraction, config.arenas_initial) == (1.0, 0.2, 0.1)


def test_presets() -> None:
    kinds = {name: OneBitConfig.preset(name).mlp_kind for name in PRESETS}
    assert kinds == {"seed": "gelu", "bitnet": "relu2_glu", "llama": "swiglu", "qwen3": "swiglu"}
    quantizers = {name: OneBitConfig.preset(name).resolved_quantizer for name in PRESETS}
    assert quantizers == {"seed": "binary", "bitnet": "absmean", "llama": "absmean", "qwen3": "absmean"}
    bitnet = OneBitConfig.preset("bitnet", hidden_size=256, num_hidden_layers=3)
    assert (bitnet.hidden_size, bitnet.num_layers, bitnet.use_sub_norm) == (256, 3, True)
    with pytest.raises(ConfigError, match="did you mean 'bitnet'"):
        OneBitConfig.preset("bitnt")


def test_hugging_face_spellings() -> None:
    config = OneBitConfig(num_attention_heads=4, num_hidden_layers=2, max_position_embeddings=64, rms_norm_eps=1e-6)
    assert (config.num_heads, config.num_layers, config.max_seq_len, config.norm_eps) == (4, 2, 64, 1e-6)
    assert (config.num_attention_heads, config.num_hidden_layers) == (4, 2)


def test_round_trip_through_a_folder(tmp_path: Path, make_config: MakeConfig) -> None:
    levels = {"layers.1.mlp.up_proj": "int8", "layers.*.mlp.up_proj": "binary"}
    config = make_config("qwen3", bit_width_map=levels, eos_token_id=[1, 2], pad_token_id=0)
    config.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["model_type"] == "onebit"
    again = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(again, OneBitConfig)
    # transformers notes where a configuration came from; everything else survives
    skipped = {"_name_or_path", "transformers_version"}
    assert {k: v for k, v in again.to_dict().items() if k not in skipped} == {
        k: v for k, v in config.to_dict().items() if k not in skipped
    }
    # Keys are sorted there, "*" before "1"; which pattern came first must not be lost.
    assert again.level("layers.1.mlp.up_proj") == "int8"
    assert again.level("layers.0.mlp.up_proj") == "binary"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"use_swigul": True}, "unknown key 'use_swigul'; did you mean 'use_swiglu'"),
        ({"n_heads": 4}, "unknown key 'n_heads'; did you mean 'num_heads'"),
        ({"colour": "red"}, "unknown key 'colour'"),
        ({"hidden_size": 100, "num_heads": 8}, "num_heads is 8, which does not divide hidden_size 100"),
        ({"num_key_value_heads": 3}, "num_key_value_heads is 3, which does not divide num_heads 8"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"num_hidden_layers": -1}, "num_layers is -1"),
        ({"hidden_size": "large"}, "hidden_size is 'large'"),
        ({"vocab_size": 10.5}, "vocab_size is 10.5"),
        ({"head_dim": 7, "use_rope": True}, "head_dim is 7, expected an even number"),
        ({"use_ternary": "yes"}, "use_ternary is 'yes', expected true or false"),
        ({"ste_scale_factor": 0}, "ste_scale_factor is 0"),
        ({"anneal_fraction": 1.5}, "anneal_fraction is 1.5"),
        ({"lambda_warmup_fraction": -0.1}, "lambda_warmup_fraction is -0.1"),
        ({"latent_clamp_max": 0}, "latent_clamp_max is 0"),
        ({"arenas_anneal_steps": 0}, "arenas_anneal_steps is 0"),
        ({"quantizer": "absmaen"}, "quantizer is 'absmaen'.*did you mean 'absmean'"),
        ({"activation_quantizer": "fp8"}, "activation_quantizer is 'fp8'"),
        ({"granularity": "per_group"}, "group_size is None"),
        ({"weight_sparsity_threshold": 0.1}, "needs quantizer 'sparsity'"),
        ({"use_ternary": True, "weight_sparsity_threshold": 1.0}, "expected a share"),
        ({"bit_width_map": {"lm_head": "int3"}}, r"bit_width_map\['lm_head'\] is 'int3'"),
        ({"bit_width_map": {"layers.9.mlp.up_proj": "int8"}}, "matches no module of this model"),
        ({"bit_width_map": {"lm_head": "int8"}}, "tie_word_embeddings makes them one tensor"),
        ({"bit_width_map": ["int8"]}, "bit_width_map is"),
        ({"eos_token_id": 50257}, "eos_token_id is 50257"),
    ],
)
def test_refusals_name_the_field(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OneBitConfig(**values)


def test_a_bad_file_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        OneBitConfig.from_json_file(path)
    for text, message in (
        ("{", "not valid JSON"),
        ("[1]", "expected an object"),
        ('{"use_swigul": true}', "use_swiglu"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            OneBitConfig.from_json_file(path)


def test_keys_of_transformers_pass() -> None:
    config = OneBitConfig(
        model_type="onebit", architectures=["OneBitForCausalLM"], dtype="bfloat16", transformers_version="5.0.0"
    )
    assert config.architectures == ["OneBitForCausalLM"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "binary"),
        ({"use_ternary": True}, "threshold"),
        ({"use_ternary": True, "use_dynamic_threshold": False}, "absmean"),
        ({"use_ternary": True, "weight_sparsity_threshold": 0.2}, "sparsity"),
        ({"use_ternary": True, "quantizer": "binary"}, "binary"),
        ({"quantizer": "none"}, "none"),
    ],
)
def test_quantizer_is_derived_from_the_seeds_fields(fields: dict[str, Any], expected: str) -> None:
    assert OneBitConfig(**fields).resolved_quantizer == expected


def test_bit_width_map_first_match_wins(make_config: MakeConfig) -> None:
    config = make_config(
        "bitnet",
        bit_width_map={"layers.0.mlp.up_proj": "int8", "layers.0.*": "binary", "*.v_proj": "float16"},
        granularity="per_row",
    )
    assert config.weight_quantizer("layers.0.mlp.up_proj") == WeightQuantizer.for_level("int8")
    assert config.weight_quantizer("layers.0.attention.v_proj") == WeightQuantizer("binary", "per_row")
    assert config.weight_quantizer("layers.1.attention.v_proj") == WeightQuantizer.for_level("float16")
    assert config.weight_quantizer("layers.1.mlp.up_proj") == WeightQuantizer("absmean", "per_row")
    assert config.weight_quantizer("embed_tokens") is None
    assert config.activation_quantizer_of("layers.1.mlp.up_proj") == "int8"
    assert config.activation_quantizer_of("layers.1.attention.v_proj") == "none"
    assert config.activation_quantizer_of("lm_head") == "none"


def test_ternary_level_in_a_binary_model() -> None:
    assert OneBitConfig(bit_width_map={"layers.0.*": "ternary"}).weight_quantizer(
        "layers.0.mlp.up_proj"
    ) == WeightQuantizer("threshold")


def test_module_names_are_the_models(make_model: Callable[..., Any]) -> None:
    for preset in ("seed", "bitnet"):
        model = make_model(preset)
        names = {name.removeprefix("model.") for name, m in model.named_modules() if hasattr(m, "weight_quantizer")}
        assert set(model.config.module_names()) == names
