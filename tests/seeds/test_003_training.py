"""The gradual-lambda recipe as its document has it: its commands and flags, its schedule, its manifest, its tracker.

Only the model's name and the number of steps are other than in the document.
"""

from __future__ import annotations

import json
import os
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from onebit.cli.main import execute
from onebit.data import END_OF_TEXT, train_tokenizer
from onebit.models.converted import load_converted
from onebit.nn import BitLinear, RMSNorm, Schedule, bit_layers
from onebit.optim import lambda_mix
from onebit.train import sft as recipe
from onebit.train.metrics_log import read_metrics
from onebit.train.sft_settings import SftSettings

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TEXT = "".join(f"Tell me about {i}.\nIt is {i} and no more than {i}.\n" for i in range(300))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of the kind that the document trains."""
    folder = tmp_path_factory.mktemp("Qwen2.5-1.5B-Instruct")
    train_tokenizer([TEXT], 300).save(folder)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), eos_token=END_OF_TEXT)
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}\n{% endfor %}"
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, vocab_size=300
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What generate.py writes."""
    path = tmp_path_factory.mktemp("data") / "training_data.jsonl"
    path.write_text(
        "".join(
            json.dumps(
                {
                    "prompt": [{"role": "user", "content": f"Tell me about {i}."}],
                    "completion": [{"role": "assistant", "content": f"It is {i} and no more than {i}."}],
                    "source": "selfgen",
                }
            )
            + "\n"
            for i in range(40)
        )
    )
    return path


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "draw_loss_curve", lambda folder: [])


def command_of(script: str, *argv: Any) -> list[str]:
    """The `onebit` command line that a script of examples/ turns its own into."""
    line: list[str] = runpy.run_path(str(EXAMPLES / script))["command"]([str(part) for part in argv])
    return line


def test_train_bitnet_runs_with_its_flags_and_leaves_its_manifest(base: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "trained_model"
    flags = ("--base_model", base, "--dataset", data, "--out_dir", out, "--steps", 10, "--lambda_warmup_frac", 0.4)
    assert execute([*command_of("train_bitnet.py", *flags), "--logging_steps", "1", "--device", "cpu", "--quiet"]) == 0
    about = json.loads((out / "training_manifest.json").read_text())
    expected = {
        "base_model": str(base),
        "training_steps": 10,
        "lambda_warmup_frac": 0.4,
        "final_lambda": 1.0,
        "compression_ready": True,
        "model_type": "bitnet158",
    }
    assert {key: about[key] for key in expected} == expected
    records = [entry for entry in read_metrics(out) if "loss" in entry]
    assert [entry["lambda"] for entry in records] == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1])
    assert all("grad_norm" in entry for entry in records)
    rates = [entry["learning_rate"] for entry in records]
    assert rates[0] == pytest.approx(5e-5)
    assert rates[5] == pytest.approx(2.5e-5)  # the middle of a cosine
    model = load_converted(out)
    assert sum(1 for _ in bit_layers(model)) == 14
    norms = [name for name, module in model.named_modules() if isinstance(module, RMSNorm)]
    assert norms == [f"model.layers.{i}.self_attn.post_attn_norm" for i in range(2)]


def test_the_defaults_are_the_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[SftSettings] = []

    def keep(settings: SftSettings) -> Any:
        seen.append(settings)
        return type("Result", (), {"signal": None})

    monkeypatch.setattr(recipe, "sft", keep)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    flags = ("--base_model", "b", "--dataset", "d", "--out_dir", "o")
    assert execute(command_of("train_bitnet.py", *flags)) == 0
    changed = ("--bsz", 3, "--grad_accum", 4, "--lr", 1e-3, "--steps", 7, "--rmsnorm_post_attn", 0)
    assert execute(command_of("train_bitnet.py", *flags, *changed)) == 0
    first, second = seen
    assert (first.max_steps, first.lambda_warmup_frac, first.rmsnorm_post_attn) == (1000, 0.4, True)
    assert (first.per_device_train_batch_size, first.gradient_accumulation_steps, first.learning_rate) == (2, 8, 5e-5)
    assert (first.fp16, first.gradient_checkpointing) == (True, True)
    assert (second.per_device_train_batch_size, second.gradient_accumulation_steps) == (3, 4)
    assert (second.learning_rate, second.max_steps, second.rmsnorm_post_attn) == (1e-3, 7, False)


def test_the_command_of_the_finetuning_guide_parses_as_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    # seeds/000 with its hybrid script; nothing is fetched without --allow-download.
    seen: list[SftSettings] = []

    def keep(settings: SftSettings) -> Any:
        seen.append(settings)
        return type("Result", (), {"signal": None})

    monkeypatch.setattr(recipe, "sft", keep)
    line = """
        --model_name_or_path tiiuae/Falcon-E-1B-Base --model_revision prequantized --torch_dtype bfloat16
        --learning_rate 0.0001 --dataset_name trl-lib/Capybara --per_device_train_batch_size 1
        --output_dir Falcon-E-Capybara --logging_steps 1 --save_strategy steps --save_steps 100 --packing
        --gradient_accumulation_steps 16
    """
    monkeypatch.setattr("sys.argv", ["sft.py", *line.split()])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(EXAMPLES / "sft.py"), run_name="__main__")
    assert left.value.code == 0
    (settings,) = seen
    assert (settings.model_name_or_path, settings.model_revision) == ("tiiuae/Falcon-E-1B-Base", "prequantized")
    assert (settings.dtype, settings.learning_rate, settings.packing) == ("bfloat16", 1e-4, True)
    assert (settings.save_strategy, settings.save_steps, settings.logging_steps) == ("steps", 100, 1)
    assert (settings.per_device_train_batch_size, settings.gradient_accumulation_steps) == (1, 16)
    assert settings.allow_download is False


@pytest.mark.parametrize("step", [0, 100, 200, 400, 999])
def test_effective_weights_are_the_documents_mix(step: int) -> None:
    """effective_weights = (1 - lambda) * weight_fp + lambda * quantize(weight_fp), lambda over 40 % of 1000 steps."""
    torch.manual_seed(0)
    schedule = Schedule(uses_lambda=True)
    layer = BitLinear(16, 8, bias=False, activation_quantizer="none", schedule=schedule).train()
    lambda_ = lambda_mix(step, 1000, 0.4)
    assert lambda_ == min(step / 400, 1.0)
    schedule.set(lambda_=lambda_)
    weight = layer.weight.detach().double()
    beta = weight.abs().mean()
    quantized = (weight / beta).round().clamp(-1, 1) * beta
    effective = (1 - lambda_) * weight + lambda_ * quantized
    x = torch.randn(4, 16)
    assert torch.allclose(layer(x).double(), x.double() @ effective.T, atol=1e-5)
    layer.eval()
    assert torch.allclose(layer(x).double(), x.double() @ quantized.T, atol=1e-5)  # evaluation: always lambda 1


def test_weights_and_biases_runs_offline_under_the_documents_project_and_tags(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT", "WANDB_TAGS")
    for name in names:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    settings = SftSettings(
        model_name_or_path=str(base), dataset_name=str(data), output_dir=tmp_path / "run", report_to="wandb"
    )
    monkeypatch.setattr("onebit.train.arguments._need", lambda tracker: None)
    rows = recipe._rows(settings, recipe._tokenizer(settings))
    recipe._prepare_wandb(settings, rows.source)
    assert (os.environ["WANDB_PROJECT"], os.environ["WANDB_MODE"]) == ("AIVillage-BitNet158", "offline")
    assert os.environ["WANDB_TAGS"].split(",") == ["stage:bitnet158", "source:selfgen", f"model:{base.name}"]
    for name in names:
        monkeypatch.delenv(name)
