"""Adapters over a frozen ternary model: what is trained, and what the merge back into ternary does to the loss."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback

from onebit.errors import ConfigError
from onebit.models.converted import Conversion, convert_model, load_converted
from onebit.nn import bit_layers
from onebit.quant import dequantize
from onebit.train import sft as recipe
from onebit.train.lora import add_adapters, merge_adapters
from onebit.train.metrics_log import read_metrics
from onebit.train.sft import sft
from onebit.train.sft_settings import SftSettings
from onebit.train.sft_trainer import TernarySftTrainer

from .fine_tuning import make_base, samples, write_rows

IDS = torch.arange(40).reshape(2, 20)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "draw_loss_curve", lambda folder: [])


@pytest.fixture
def run(base: Path, tmp_path: Path) -> SftSettings:
    return SftSettings(
        model_name_or_path=str(base),
        dataset_name=str(write_rows(tmp_path / "rows.jsonl", samples())),
        output_dir=tmp_path / "run",
        max_steps=12,
        logging_steps=1,
        save_steps=5,
        per_device_train_batch_size=4,
        max_length=64,
        learning_rate=1e-2,
        device="cpu",
        quiet=True,
        use_peft=True,
        lora_r=4,
    )


def converted(base: Path, **changes: Any) -> Any:
    return convert_model(AutoModelForCausalLM.from_pretrained(base), Conversion(**changes))


def trained(model: Any, seed: int = 0) -> Any:
    """The same with adapters that are not zero any more."""
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.2)
    return model.eval()


@pytest.mark.parametrize("changes", [{}, {"hadamard_block": 16, "sub_norms": True}, {"activation_quantizer": "none"}])
def test_inside_the_merge_changes_nothing_that_is_computed(base: Path, changes: dict[str, Any]) -> None:
    plain = converted(base, **changes).eval()
    with torch.no_grad():
        before = plain(input_ids=IDS).logits
        model = trained(add_adapters(plain, rank=4))
        adapted = model(input_ids=IDS).logits
        assert merge_adapters(model) > 0.01
        merged = model.unload().eval()(input_ids=IDS).logits
    assert not torch.allclose(adapted, before, atol=1e-2)
    assert torch.equal(merged, adapted)


@pytest.mark.parametrize("changes", [{}, {"hadamard_block": 16}])
def test_beside_it_is_the_sum_and_the_merge_rounds_it(base: Path, changes: dict[str, Any]) -> None:
    model = trained(add_adapters(converted(base, activation_quantizer="none", **changes), rank=4, form="beside"))
    layer = model.base_model.model.model.layers[0].mlp.up_proj
    bit_linear = layer.get_base_layer()
    latent = bit_linear.weight.detach().clone()
    x = torch.randn(3, 32)
    turn = (lambda y: y) if bit_linear.rotation is None else bit_linear.rotation
    product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * layer.scaling["default"]
    with torch.no_grad():
        expected = turn(x) @ dequantize(bit_linear.quantized()).T + x @ product.T
        assert torch.allclose(layer(x), expected, atol=1e-4)
        merge_adapters(model)
        assert torch.allclose(bit_linear.weight, latent + turn(product), atol=1e-5)
        assert torch.allclose(layer(x), turn(x) @ dequantize(bit_linear.quantized()).T, atol=1e-4)


def test_gradients_reach_the_adapters_through_the_quantiser_and_nothing_else(base: Path) -> None:
    model = add_adapters(converted(base), rank=4).train()
    model(input_ids=IDS, labels=IDS).loss.backward()
    grown = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert len(grown) == 2 * 14
    assert all("lora_" in name for name in grown)
    assert all(
        float(p.grad.abs().max()) > 0 for n, p in model.named_parameters() if "lora_B" in n and p.grad is not None
    )


@pytest.mark.parametrize("form", ["inside", "beside"])
def test_a_run_reports_the_loss_around_the_merge_and_saves_a_ternary_model(run: SftSettings, form: str) -> None:
    result = sft(replace(run, lora_form=form))
    told = json.loads((run.output_dir / "training_manifest.json").read_text())["final_metrics"]
    assert told["loss_before_merge"] == pytest.approx(told["eval_loss"], rel=1e-5)
    assert told["loss_before_merge"] < told["loss_of_base"]
    assert told["codes_changed"] > 0
    if form == "inside":
        assert told["loss_after_merge"] == told["loss_before_merge"]
    assert result.complete
    model = load_converted(run.output_dir).eval()
    assert sum(1 for _ in bit_layers(model)) == 14
    stored = load_file(run.output_dir / "model.safetensors")
    assert not any("lora" in name for name in stored)
    assert (run.output_dir / "adapter" / "adapter_model.safetensors").is_file()
    latents = (run.output_dir / "model.safetensors").read_bytes()
    assert sft(replace(run, lora_form=form)).steps == 12  # done already
    assert (run.output_dir / "model.safetensors").read_bytes() == latents


def test_sigterm_saves_and_the_same_call_goes_on_bit_for_bit(
    run: SftSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
            if state.global_step == 6:
                os.kill(os.getpid(), signal.SIGTERM)

    class Stopped(TernarySftTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.add_callback(Stop())

    whole, broken = replace(run, output_dir=tmp_path / "whole"), replace(run, output_dir=tmp_path / "broken")
    sft(whole)
    with monkeypatch.context() as patch:
        patch.setattr(recipe, "TernarySftTrainer", Stopped)
        assert sft(broken).signal == signal.SIGTERM
    assert sft(broken).complete
    losses = [[entry["loss"] for entry in read_metrics(s.output_dir) if "loss" in entry] for s in (whole, broken)]
    assert losses[0] == losses[1]
    latents = [settings.output_dir / "model.safetensors" for settings in (whole, broken)]
    assert latents[0].read_bytes() == latents[1].read_bytes()


def test_wrong_adapters_are_refused_by_name(base: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'q_proj'"):
        add_adapters(converted(base), target_modules=("q_porj",))
    with pytest.raises(ConfigError, match="no input can be dropped"):
        add_adapters(converted(base), dropout=0.1)
    with pytest.raises(ConfigError, match="use inside"):
        add_adapters(converted(base, sub_norms=True), form="beside")
