"""The gradual-lambda recipe as its document has it: its formula, commands and flags, its manifest, its tracker.

=====================  ========================================================================================
section                here
=====================  ========================================================================================
Gradual lambda         test_effective_weights_are_the_documents_mix runs the line
Quick Start            not run: a PowerShell script with a path on its author's disk; what it does, the whole pipeline,
                       is examples/ternary.yaml here, which test_the_pipeline_is_a_recipe runs
Manual Steps           run in turn with other names; with fewer, shorter samples and fewer steps but in the slow test
Environment Setup      not run: paths on its author's disk; WANDB_DIR and WANDB_MODE mean here what they say there
Training Manifest      every key and value, by the run of the manual steps
Testing                not run: a test file on its author's disk; what it covers is covered here and in tests/data
=====================  ========================================================================================
"""

from __future__ import annotations

import json
import os
import runpy
import string
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from onebit.cli.main import execute
from onebit.data import selfgen
from onebit.errors import ConfigError
from onebit.formats.compress import compress
from onebit.models.converted import load_converted
from onebit.nn import BitLinear, RMSNorm, Schedule, bit_layers
from onebit.optim import lambda_mix
from onebit.quant import WeightQuantizer, fake_quantize
from onebit.train import sft as recipe
from onebit.train.metrics_log import read_metrics
from onebit.train.sft_inputs import open_tokenizer, open_training_rows
from onebit.train.sft_settings import SftSettings

from .documents import EXAMPLES, blocks_of, commands_of

MIX, _, MANUAL_STEPS, _, MANIFEST, _ = blocks_of("003_training")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model in the place of the document's: its answers are of words, a random choice among 150."""
    folder = tmp_path_factory.mktemp("Qwen2.5-1.5B-Instruct")
    letters = string.ascii_lowercase
    names = ["<pad>", "<end>", "<unk>", "user", *(first + second for first in letters[:6] for second in letters[:25])]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", unk_token="<unk>")
    fast.chat_template = "{% for m in messages %} {{ m.role }} {{ m.content }} <end>{% endfor %}"
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=len(names),
        max_position_embeddings=1024,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows as generate.py writes them."""
    path = tmp_path_factory.mktemp("data") / "training_data.jsonl"
    row = {
        "prompt": [{"role": "user", "content": "aa ab"}],
        "completion": [{"role": "assistant", "content": "ba bb bc"}],
        "source": "selfgen",
    }
    path.write_text((json.dumps(row) + "\n") * 40)
    return path


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "draw_loss_curve", lambda folder: [])


def manual_steps(base: Path, folder: Path, changes: dict[str, str]) -> list[tuple[str, list[str]]]:
    """(script, arguments) of each command, with names on this machine; changes: flag -> another value."""
    places = {r"D:\AIVillage\models\Qwen2.5-1.5B-Instruct": str(base)}
    steps = []
    for python, script, *words in commands_of(MANUAL_STEPS):
        assert python == "python"
        for at, word in enumerate(words):
            words[at] = places.get(word, word.replace("D:\\AIVillage\\artifacts\\bitnet158\\", f"{folder}/"))
            words[at] = changes.get(words[at - 1], words[at])
        assert not any("AIVillage" in word for word in words)
        steps.append((script, words))
    assert [script for script, _ in steps] == ["selfgen/generate.py", "train_bitnet.py"]
    return steps


def run_script(script: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", [script, *words])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    assert left.value.code == 0


def check_the_result(base: Path, folder: Path, steps: int) -> None:
    """What the document promises of the trained folder."""
    out = folder / "trained_model"
    expected = json.loads(MANIFEST.text) | {"base_model": str(base), "training_steps": steps}
    about = json.loads((out / "training_manifest.json").read_text())
    assert {key: about[key] for key in expected} == expected
    model = load_converted(out)
    assert sum(1 for _ in bit_layers(model)) == 14
    norms = [name for name, module in model.named_modules() if isinstance(module, RMSNorm)]
    assert norms == [f"model.layers.{i}.self_attn.post_attn_norm" for i in range(2)]
    packed = compress(model)  # "compatible with compress(): four ternaries a byte"
    assert packed["model.layers.0.mlp.up_proj.codes"].shape == (48, 32 // 4)


def test_the_manual_steps_lead_to_the_documents_manifest(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (generate, asked), (train, told) = manual_steps(base, tmp_path, {"--num": "4", "--steps": "10"})
    run_script(generate, [*asked, "--max_new_tokens", "48"], monkeypatch)
    answers = [json.loads(line)["completion"] for line in (tmp_path / "training_data.jsonl").read_text().splitlines()]
    assert len(answers) == 4
    assert all(32 <= len(answer[0]["content"]) <= 2048 for answer in answers)
    run_script(train, [*told, "--logging_steps", "1", "--device", "cpu"], monkeypatch)
    check_the_result(base, tmp_path, 10)
    records = [entry for entry in read_metrics(tmp_path / "trained_model") if "loss" in entry]
    assert [entry["lambda"] for entry in records] == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1])
    assert all("grad_norm" in entry for entry in records)
    rates = [entry["learning_rate"] for entry in records]
    assert rates[0] == pytest.approx(5e-5)
    assert rates[5] == pytest.approx(2.5e-5)  # the middle of a cosine


def test_the_pipeline_is_a_recipe(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (EXAMPLES / "ternary.yaml").read_text(encoding="utf-8")
    changes = {"models/base": str(base), "num: 2000": "num: 4\n      max_new_tokens: 48", "steps: 1000": "steps: 2"}
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    Path("small.yaml").write_text(text, encoding="utf-8")
    assert execute(["recipe", "run", "small.yaml"]) == 0
    model, packed = (Path("runs/ternary") / name for name in ("model", "model.safetensors"))
    assert sum(1 for _ in bit_layers(load_converted(model))) == 14
    assert packed.stat().st_size < (model / "model.safetensors").stat().st_size


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_manual_steps_as_they_stand(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for script, words in manual_steps(base, tmp_path, {}):
        run_script(script, words, monkeypatch)
    assert len((tmp_path / "training_data.jsonl").read_text().splitlines()) == 500
    check_the_result(base, tmp_path, 1000)


def command_of(script: str, *argv: Any) -> list[str]:
    """The `onebit` command line that a script of examples/ turns its own into."""
    line: list[str] = runpy.run_path(str(EXAMPLES / script))["command"]([str(part) for part in argv])
    return line


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


def test_the_defaults_of_generation_are_the_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def keep(settings: Any, progress: Any) -> Any:
        seen.append(settings)
        raise ConfigError("seen")

    monkeypatch.setattr(selfgen, "selfgen", keep)
    monkeypatch.setattr("sys.argv", ["generate.py", "--model_path", "m", "--out", "o.jsonl"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(EXAMPLES / "selfgen/generate.py"), run_name="__main__")
    (settings,) = seen
    assert (settings.num, settings.max_new_tokens, settings.seed) == (100, 512, 42)


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
    # What the line calls quantize gives floats on the grid; here that is fake_quantize.
    scene = {"λ": lambda_, "weight_fp": layer.weight, "quantize": lambda w: fake_quantize(w, WeightQuantizer())}
    exec(MIX.text, scene)
    assert torch.allclose(scene["effective_weights"].double(), effective, atol=1e-6)
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
    rows = open_training_rows(settings, open_tokenizer(settings))
    recipe._prepare_wandb(settings, rows.source)
    assert (os.environ["WANDB_PROJECT"], os.environ["WANDB_MODE"]) == ("AIVillage-BitNet158", "offline")
    assert os.environ["WANDB_TAGS"].split(",") == ["stage:bitnet158", "source:selfgen", f"model:{base.name}"]
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "wandb"))  # as the document's environment: they stay as they are
    monkeypatch.setenv("WANDB_MODE", "online")
    recipe._prepare_wandb(settings, rows.source)
    assert (os.environ["WANDB_DIR"], os.environ["WANDB_MODE"]) == (str(tmp_path / "wandb"), "online")
    for name in names:
        monkeypatch.delenv(name)
