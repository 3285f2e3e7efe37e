"""What a converted model's folder says of itself, and which conversion a model gets that says nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BitNetConfig, LlamaConfig, LlamaForCausalLM

from onebit.errors import ConfigError, DataError
from onebit.models.converted import CONVERSION_FIELD, Conversion, convert_model, load_converted
from onebit.models.pretrained import describe_model, load_causal_lm
from onebit.nn import BitLinear, Schedule, bit_layers

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}
IDS = torch.arange(24).reshape(2, 12)


def llama(**changes: Any) -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE, **changes))


def test_float_models_get_groups_of_128_and_bitnet_latents_one_scale() -> None:
    assert (Conversion.of(LlamaConfig()).granularity, Conversion.of(LlamaConfig()).group_size) == ("per_group", 128)
    assert Conversion.of(LlamaConfig(is_bitnet_config=True)).granularity == "per_tensor"
    assert Conversion.of(BitNetConfig()).group_size is None
    assert Conversion.of(BitNetConfig(), group_size=64).granularity == "per_group"
    assert Conversion.of(LlamaConfig(), granularity="per_row").group_size is None


def test_what_a_config_records_holds_and_contradictions_are_refused() -> None:
    config = LlamaConfig(**{CONVERSION_FIELD: {"quantizer": "binary", "granularity": "per_row", "group_size": None}})
    assert Conversion.of(config).quantizer == "binary"
    assert Conversion.of(config, quantizer="binary").granularity == "per_row"
    with pytest.raises(ConfigError, match="--quantizer is absmean, but the model was converted with binary"):
        Conversion.of(config, quantizer="absmean")
    unknown = LlamaConfig(**{CONVERSION_FIELD: {"quantiser": "binary"}})
    with pytest.raises(ConfigError, match="unknown key 'quantiser'; did you mean 'quantizer'"):
        Conversion.of(unknown)


def test_latents_of_a_model_that_quantises_itself_become_plain_layers_and_then_ours(tmp_path: Path) -> None:
    # The layout of BitNet 2B-4T's bf16 repository: latents, read by transformers' own trainable layer.
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(BitNetConfig(**SHAPE)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    online = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": online}))
    told = describe_model(str(tmp_path))
    conversion = Conversion.of(told)
    assert conversion.granularity == "per_tensor"
    model = load_causal_lm(str(tmp_path), told)
    assert type(model.model.layers[0].self_attn.q_proj) is torch.nn.Linear
    convert_model(model, conversion).save_pretrained(tmp_path / "converted")
    again = load_converted(tmp_path / "converted").eval()
    assert sum(1 for _ in bit_layers(again)) == 14
    with torch.no_grad():
        assert torch.equal(again(input_ids=IDS).logits, model.eval()(input_ids=IDS).logits)
    offline = {**online, "quantization_mode": "offline"}
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": offline}))
    with pytest.raises(DataError, match="packed by 'bitnet', which cannot be trained"):
        describe_model(str(tmp_path))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("hadamard_block", [None, 16])
def test_quantised_tables_come_back_as_they_were_saved(tied: bool, hadamard_block: int | None, tmp_path: Path) -> None:
    conversion = Conversion(tables=True, hadamard_block=hadamard_block)
    model = convert_model(llama(tie_word_embeddings=tied), conversion)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())[CONVERSION_FIELD]["tables"] is True
    again = load_converted(tmp_path, schedule=Schedule(uses_lambda=True)).eval()
    assert (again.lm_head.weight is again.model.embed_tokens.weight) == tied
    assert again.conversion_report == model.conversion_report
    assert "model.embed_tokens" in again.conversion_report.tables
    with torch.no_grad():
        assert torch.equal(again(input_ids=IDS).logits, model.eval()(input_ids=IDS).logits)
    with pytest.raises(ConfigError, match="--granularity is per_row, but the model was converted with per_group"):
        Conversion.of(model.config, granularity="per_row")
    assert not Conversion.of(LlamaConfig(**{CONVERSION_FIELD: {"quantizer": "binary"}})).tables  # recorded before


def test_the_dials_are_no_part_of_the_folder_and_come_with_the_schedule(tmp_path: Path) -> None:
    schedule = Schedule(uses_lambda=True)
    model = convert_model(llama(), Conversion(), schedule=schedule)
    schedule.set(lambda_=0.25)
    assert not any("schedule" in name for name in model.state_dict())
    model.load_state_dict(model.state_dict(), strict=True)
    assert float(schedule.lambda_) == 0.25
    model.save_pretrained(tmp_path)
    fresh = Schedule(uses_lambda=True)
    again = load_converted(tmp_path, schedule=fresh)
    assert again.schedule is fresh
    layer = again.model.layers[0].mlp.up_proj
    assert isinstance(layer, BitLinear)
    assert layer.__dict__["schedule"] is fresh


def test_missing_weights_are_an_error_and_not_random_numbers(tmp_path: Path) -> None:
    model = llama()
    state = {name: value for name, value in model.state_dict().items() if "layers.1.mlp" not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(DataError, match="3 missing keys"):
        load_causal_lm(str(tmp_path), describe_model(str(tmp_path)))
    with pytest.raises(ConfigError, match="--dtype is 'float23'"):
        load_causal_lm(str(tmp_path), describe_model(str(tmp_path)), dtype="float23")
