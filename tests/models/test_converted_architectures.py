"""Conversion of the architectures people have: small models of transformers, against hooks on a float twin."""

from __future__ import annotations

import copy
import pickle
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

import torch
import torch._dynamo.testing
import transformers
from torch import nn

from onebit.errors import OnebitError
from onebit.models import OneBitConfig
from onebit.nn import BitLinear, Schedule, replace_linear_with_bitlinear, replace_linear_with_bitnet_linear
from onebit.train.schedule_callback import ScheduleCallback

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
SEPARATE = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# name -> (config class, what differs from DECODER, the projections of a layer)
ARCHITECTURES: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "llama": ("LlamaConfig", {}, SEPARATE),
    "llama, biases": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True}, SEPARATE),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}, SEPARATE),
    "qwen3": ("Qwen3Config", {"head_dim": 16, "tie_word_embeddings": True}, SEPARATE),
    "falcon3": ("LlamaConfig", {"head_dim": 32, "rope_theta": 1000042.0}, SEPARATE),
    "mistral": ("MistralConfig", {"sliding_window": 8}, SEPARATE),
    "bitnet": ("BitNetConfig", {"hidden_act": "relu2", "tie_word_embeddings": True}, SEPARATE),
    "phi3": ("Phi3Config", {}, ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")),
    "gpt2": (
        "GPT2Config",
        {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 64},
        ("c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"),
    ),
}
IDS = torch.randint(3, 120, (2, 12), generator=torch.Generator().manual_seed(0))


def make(name: str) -> Any:
    kind, changes, _ = ARCHITECTURES[name]
    common = {"vocab_size": 120} if kind == "GPT2Config" else DECODER
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, kind)(**{**common, **changes}))
    for parameter in model.parameters():  # biases and norms that do something
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1.0)
    return model.eval()


def quantise_by_hooks(model: Any, layers: set[str]) -> Any:
    """The published formulas on the float model: absmean weights, int8 inputs by absmax, in float64."""

    def round_input(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        x = inputs[0].double()
        scale = 127 / x.abs().amax(-1, keepdim=True).clamp_min(1e-5)
        return ((x * scale).round().clamp(-128, 127) / scale).to(inputs[0].dtype), *inputs[1:]

    for name in layers:
        layer = model.get_submodule(name)
        with torch.no_grad():
            w = layer.weight.double()
            scale = 1 / w.abs().mean().clamp_min(1e-5)
            layer.weight.copy_((w * scale).round().clamp(-1, 1) / scale)
        layer.register_forward_pre_hook(round_input)
    return model


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_projection_is_replaced_and_computes_the_published_formula(name: str) -> None:
    model = make(name)
    twin = copy.deepcopy(model)
    replace_linear_with_bitnet_linear(model)
    report, projections = model.conversion_report, ARCHITECTURES[name][2]
    assert len(report.replaced) == 2 * len(projections)
    assert all(layer.endswith(projections) for layer in report.replaced)
    assert set(report.kept) == {"lm_head"}
    assert type(model.lm_head) is nn.Linear
    assert (len(report.transposed) > 0) == (name == "gpt2")
    logits = model(IDS).logits
    # a float64 input may round to the other int8 code once in a while
    error = (logits - quantise_by_hooks(twin, set(report.replaced))(IDS).logits).abs()
    assert error.max() <= 2e-3 * logits.abs().max()
    assert error.mean() <= 1e-4 * logits.abs().max()


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")  # its new name came late in 5.x
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_trains_and_generates(name: str) -> None:
    model = replace_linear_with_bitlinear(make(name), schedule=Schedule(uses_lambda=True)).train()
    model.gradient_checkpointing_enable()
    model(IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    text = model.eval().generate(IDS[:, :4], max_new_tokens=5, do_sample=False, pad_token_id=0)
    with torch.no_grad():
        again = IDS[:, :4]
        for _ in range(text.shape[1] - 4):  # without the cache
            again = torch.cat([again, model(again).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(text[0], again[0][: text.shape[1]]) or 2 in text[0]


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "gpt2"])
def test_a_checkpoint_loads_back_into_its_own_class(name: str, tmp_path: Path) -> None:
    """Latents under their old names: what others call a prequantized checkpoint."""
    model = replace_linear_with_bitlinear(make(name), schedule=Schedule(uses_lambda=True))
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not any(isinstance(module, BitLinear) for module in loaded.modules())
    assert torch.equal(replace_linear_with_bitlinear(loaded).eval()(IDS).logits, model(IDS).logits)


def bitnet(folder: Path, mode: str) -> Any:
    """A checkpoint in the layout of microsoft's 2B-4T: float latents ("online") or codes with a scale ("offline")."""
    settings = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": mode}
    model = make("bitnet")
    model.config.quantization_config = settings
    model.save_pretrained(folder)
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def test_microsofts_trainable_layers_are_replaced(tmp_path: Path) -> None:
    model = bitnet(tmp_path, "online")
    assert type(model.model.layers[0].mlp.up_proj).__name__ == "AutoBitLinear"
    with torch.compiler.set_stance("force_eager"):  # they compile themselves, which takes seconds
        before = model(IDS).logits
    replace_linear_with_bitlinear(model)
    assert len(model.conversion_report.replaced) == 14
    error = (model(IDS).logits - before).abs()
    assert error.mean() <= 1e-4 * before.abs().max()  # its layers round w / scale, ours multiply codes exactly


def test_layers_of_codes_are_left_alone(tmp_path: Path) -> None:
    with pytest.raises(
        OnebitError, match=r"none .* linear layers can be replaced \(.*a subclass of nn.Linear \(AutoBitL"
    ):
        replace_linear_with_bitlinear(bitnet(tmp_path, "offline"), exclude_patterns=["norm"])


def test_all_options_together_make_one_graph_and_can_be_copied() -> None:
    model = replace_linear_with_bitlinear(
        make("qwen3"),
        granularity="per_group",
        group_size=64,
        hadamard_block=16,
        sub_norms=True,
        rmsnorm_post_attn=True,
        schedule=Schedule(uses_lambda=True),
    )
    counter = torch._dynamo.testing.CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=counter)(IDS, labels=IDS)
    plain = model(IDS, labels=IDS)
    torch.testing.assert_close(compiled.logits, plain.logits)
    compiled.loss.backward()
    assert counter.frame_count == 1
    assert all(p.grad is not None for p in model.parameters())
    for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(clone(IDS).logits, plain.logits)


def test_the_code_of_the_page_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make("llama").save_pretrained(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "convert-a-model.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block.replace("path/to/model", str(tmp_path)), "convert-a-model.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "14 linear layers replaced, 1 kept" in printed
    assert "model.layers.1.mlp.down_proj 0." in printed


def test_the_training_callback_finds_the_schedule() -> None:
    model = replace_linear_with_bitlinear(make("llama"), schedule=Schedule(uses_lambda=True))
    callback = ScheduleCallback(OneBitConfig(lambda_warmup_fraction=0.5), "linear")
    arguments, control = transformers.TrainingArguments(output_dir="unused"), transformers.TrainerControl()
    state = transformers.TrainerState(global_step=25, max_steps=100)
    callback.on_step_begin(arguments, state, control, model=model, optimizer=torch.optim.SGD(model.parameters()))
    assert model.schedule.lambda_.item() == 0.5
    callback.on_train_end(arguments, state, control, model=model)
    assert model.schedule.lambda_.item() == 1.0
