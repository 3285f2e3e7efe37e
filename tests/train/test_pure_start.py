"""What pure training begins from: the codes of packed models, and only the layers that the conversion turned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from onebit.errors import ConfigError, DataError
from onebit.formats.bitnet_folder import quantize_to_1bit
from onebit.models import OneBitConfig, OneBitForCausalLM
from onebit.models.converted import load_converted
from onebit.nn import bit_layers, replace_linear_with_bitnet_linear
from onebit.train import sft as recipe
from onebit.train.sft import sft
from onebit.train.sft_settings import SftSettings

from .fine_tuning import make_base, samples, small_run, write_rows


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "draw_loss_curve", lambda folder: [])


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", samples())


def test_a_packed_model_is_trained_on_from_its_codes(rows: Path, tmp_path: Path) -> None:
    latents = make_base(tmp_path / "base", "llama")
    quantize_to_1bit(latents, tmp_path / "packed")
    layer = "model.layers.1.mlp.down_proj"
    packed = load_file(tmp_path / "packed" / "model.safetensors")[f"{layer}.weight_scale"]
    run = SftSettings(
        **small_run(tmp_path / "packed", rows, tmp_path / "run") | {"max_steps": 1, "learning_rate": 1e-6}, pure=True
    )
    with pytest.raises(DataError, match="or train its codes themselves with onebit sft --pure"):
        sft(replace(run, pure=False))
    sft(run)
    # A step at this rate moves next to nothing: they are the packed codes, with their scale.
    trained = dict(bit_layers(load_converted(run.output_dir)))[layer].quantized()
    expected = dict(bit_layers(replace_linear_with_bitnet_linear(AutoModelForCausalLM.from_pretrained(latents))))[layer]
    assert (trained.codes_OI != expected.quantized().codes_OI).double().mean() < 0.005
    torch.testing.assert_close(trained.scale.view(1), 1.0 / packed.float(), rtol=1e-5, atol=0)
    assert not hasattr(load_converted(run.output_dir).config, "quantization_config")


def test_excluded_layers_stay_float(rows: Path, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "gpt2")
    given = small_run(base, rows, tmp_path / "run") | {"max_steps": 2}
    run = SftSettings(**given, pure=True, exclude=("mlp", "lm_head"))
    sft(run)
    model = load_converted(run.output_dir)
    assert {name.rpartition(".")[0].rpartition(".")[2] for name, _ in bit_layers(model)} == {"attn"}
    before, after = (load_file(folder / "model.safetensors") for folder in (base, run.output_dir))
    name = next(name for name in before if name.endswith("h.0.mlp.c_fc.weight"))
    assert 0 < (after[name] - before[name]).abs().max() < 0.1  # as AdamW moves a float weight


def test_a_fixed_share_of_zeros_is_refused(rows: Path, tmp_path: Path) -> None:
    """What is trained would not be what the model's own quantiser reads from the output folder."""
    base = make_base(tmp_path / "base", "gpt2")  # for its tokenizer
    own = {"num_layers": 1, "num_heads": 2, "max_seq_len": 64, "intermediate_size": 48, "use_ternary": True}
    config = OneBitConfig(vocab_size=300, hidden_size=32, quantizer="sparsity", weight_sparsity_threshold=0.3, **own)
    OneBitForCausalLM(config).save_pretrained(base)
    with pytest.raises(ConfigError, match="fixes its share of zeros"):
        sft(SftSettings(**small_run(base, rows, tmp_path / "run"), pure=True))
    assert not (tmp_path / "run").exists()
