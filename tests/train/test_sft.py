"""`onebit sft`: trains what it says on what it says, resumes to the same losses, saves what loads back the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from onebit.cli.main import execute
from onebit.errors import ConfigError, DataError
from onebit.formats.checkpoint import load_model
from onebit.models import OneBitConfig, OneBitForCausalLM
from onebit.models.converted import load_converted
from onebit.nn import BitLinear, bit_layers, replace_linear_with_bitlinear
from onebit.train import sft as recipe
from onebit.train.metrics_log import read_metrics
from onebit.train.sft import sft
from onebit.train.sft_settings import SftSettings
from onebit.train.sft_trainer import TernarySftTrainer

from .fine_tuning import TEXT, make_base, samples, small_run, write_rows

_SPEEDS = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", samples())


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "draw_loss_curve", lambda folder: [])


@pytest.fixture
def run(base: Path, rows: Path, tmp_path: Path) -> SftSettings:
    return SftSettings(**small_run(base, rows, tmp_path / "run"))


def losses(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in entry.items() if k not in _SPEEDS} for entry in read_metrics(folder)]


def watch(monkeypatch: pytest.MonkeyPatch, callback: TrainerCallback) -> None:
    class Watched(TernarySftTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.add_callback(callback)

    monkeypatch.setattr(recipe, "TernarySftTrainer", Watched)


class StopAt(TrainerCallback):
    def __init__(self, step: int, number: int) -> None:
        self.step, self.number = step, number

    def on_step_begin(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), self.number)


def test_a_saved_folder_is_latents_for_transformers_and_computes_the_same_when_loaded(run: SftSettings) -> None:
    result = sft(run)
    assert (result.complete, result.steps) == (True, 6)
    by_hand = AutoModelForCausalLM.from_pretrained(run.output_dir)
    stored = load_file(run.output_dir / "model.safetensors")
    assert stored.keys() == by_hand.state_dict().keys()
    replace_linear_with_bitlinear(by_hand, granularity="per_group", group_size=128)
    loaded = load_converted(run.output_dir).eval()
    assert sum(1 for _ in bit_layers(loaded)) == 14
    ids_BL = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        expected = by_hand.eval()(input_ids=ids_BL).logits
        assert torch.equal(loaded(input_ids=ids_BL).logits, expected)
        float_logits = AutoModelForCausalLM.from_pretrained(run.output_dir)(input_ids=ids_BL).logits
    assert not torch.allclose(float_logits, expected, atol=1e-2)
    told = json.loads((run.output_dir / "config.json").read_text())["onebit_conversion"]
    assert (told["quantizer"], told["granularity"], told["group_size"]) == ("absmean", "per_group", 128)


def test_the_logged_validation_loss_is_that_of_the_fully_quantised_model(run: SftSettings) -> None:
    result = sft(replace(run, trl={"eval_strategy": "steps", "eval_steps": 1}))
    records = [entry for entry in read_metrics(run.output_dir) if "eval_loss" in entry]
    assert len(records) == 6  # at lambda 0 too
    model = load_converted(run.output_dir).eval()
    tokenizer = AutoTokenizer.from_pretrained(run.output_dir)
    held_out = {row["prompt"][0]["content"] for row in samples()}
    total = torch.zeros((), dtype=torch.float64)
    count = 0
    from onebit.data.instructions import open_rows

    opened = open_rows(run.dataset_name, cache=run.cache, val_fraction=run.val_fraction, seed=run.seed)
    for row in opened.validation:
        assert row["prompt"][0]["content"] in held_out
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True)["input_ids"]
        ids = tokenizer.apply_chat_template(row["prompt"] + row["completion"])["input_ids"]
        with torch.no_grad():
            logits_LV = model(input_ids=torch.tensor([ids])).logits[0].double()
        for place in range(len(prompt), len(ids)):  # the completion alone
            total -= torch.log_softmax(logits_LV[place - 1], -1)[ids[place]]
            count += 1
    assert result.metrics["eval_loss"] == pytest.approx(float(total) / count, rel=1e-4)


def test_lambda_follows_its_formula_and_is_logged(run: SftSettings) -> None:
    sft(replace(run, max_steps=10, lambda_warmup_frac=0.4))
    logged = [entry["lambda"] for entry in read_metrics(run.output_dir) if "loss" in entry]
    assert logged == pytest.approx([0.0, 0.25, 0.5, 0.75, *[1.0] * 6])


def test_packed_documents_do_not_see_each_other(run: SftSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[str, Any] = {}

    class Keep(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
            kept["batch"] = next(iter(kw["train_dataloader"]))
            kept["model"] = kw["model"]

    watch(monkeypatch, Keep())
    sft(replace(run, packing=True, max_steps=1, learning_rate=0.0, save_strategy="no", activation_quantizer="none"))
    batch, model = kept["batch"], kept["model"].eval()
    starts = (batch["position_ids"][0] == 0).nonzero().flatten().tolist()
    assert len(starts) > 4
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad():
        packed_LV = model(**inputs, use_cache=False).logits[0]
        for begin, end in zip(starts, [*starts[1:], packed_LV.shape[0]], strict=True):
            alone_LV = model(input_ids=batch["input_ids"][:, begin:end]).logits[0]
            assert torch.allclose(packed_LV[begin:end], alone_LV, atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"logging_steps": 4},
        {"packing": True, "gradient_accumulation_steps": 2, "bf16": True, "gradient_checkpointing": True},
    ],
    ids=["between log lines", "packed and accumulated"],
)
def test_sigterm_saves_and_the_same_call_goes_on_bit_for_bit(
    run: SftSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, changes: dict[str, Any]
) -> None:
    whole = replace(run, output_dir=tmp_path / "whole", max_steps=8, **changes)
    sft(whole)
    broken = replace(whole, output_dir=tmp_path / "broken")
    with monkeypatch.context() as patch:
        watch(patch, StopAt(5, signal.SIGTERM))
        result = sft(broken)
    assert (result.signal, result.steps) == (signal.SIGTERM, 6)
    about = json.loads((broken.output_dir / "training_manifest.json").read_text())
    assert (about["status"], about["compression_ready"]) == ("interrupted", False)
    assert not (broken.output_dir / "model.safetensors").exists()
    assert sft(broken).complete
    assert losses(broken.output_dir) == losses(whole.output_dir)
    for name in ("model.safetensors", "config.json"):
        assert (broken.output_dir / name).read_bytes() == (whole.output_dir / name).read_bytes()


def test_sigkill_resumes_bit_for_bit(run: SftSettings, tmp_path: Path) -> None:
    whole = replace(run, output_dir=tmp_path / "whole", max_steps=18, save_steps=4)
    sft(whole)
    killed = replace(whole, output_dir=tmp_path / "killed")
    flags = [
        "--base_model",
        killed.model_name_or_path,
        "--dataset",
        killed.dataset_name,
        "--out_dir",
        tmp_path / "killed",
    ]
    flags += ["--steps", 18, "--save_steps", 4, "--logging_steps", 1, "--bsz", 4, "--max_length", 64, "--lr", 1e-3]
    process = subprocess.Popen(
        [sys.executable, "-m", "onebit.cli.main", "sft", *map(str, flags), "--device", "cpu", "--quiet"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    deadline = time.monotonic() + 120
    while not list(killed.output_dir.glob("checkpoint-*")) and time.monotonic() < deadline:
        assert process.poll() is None, "the run ended before its first checkpoint"
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert sft(killed).complete
    assert losses(killed.output_dir) == losses(whole.output_dir)
    assert (killed.output_dir / "model.safetensors").read_bytes() == (
        whole.output_dir / "model.safetensors"
    ).read_bytes()


def test_another_run_in_the_folder_is_refused(run: SftSettings) -> None:
    sft(run)
    with pytest.raises(ConfigError, match=r"learning_rate 0.001 there, 0.002 here"):
        sft(replace(run, learning_rate=2e-3))
    assert sft(run).steps == 6  # done already
    assert sft(replace(run, learning_rate=2e-3, resume=False, max_steps=2)).steps == 2


@pytest.mark.parametrize("kind", ["gpt2", "qwen2"])
def test_conv1d_and_tied_weights_are_saved_in_the_layout_of_their_class(
    run: SftSettings, tmp_path: Path, kind: str
) -> None:
    base = make_base(tmp_path / kind, kind)
    settings = replace(run, model_name_or_path=str(base), max_steps=4, save_steps=2)
    sft(settings)
    own = AutoModelForCausalLM.from_pretrained(base).state_dict()
    stored = load_file(run.output_dir / "model.safetensors")
    assert {name: value.shape for name, value in stored.items()} == {
        name: value.shape for name, value in load_file(base / "model.safetensors").items()
    }
    checkpoint = load_file(run.output_dir / "checkpoint-4" / "model.safetensors")
    assert all(torch.equal(checkpoint[name], stored[name]) for name in stored)
    assert stored.keys() <= own.keys()
    # The folder is a base again: converted as it was, its latents as they are.
    again = replace(settings, model_name_or_path=str(run.output_dir), output_dir=tmp_path / "again", max_steps=1)
    assert sft(replace(again, learning_rate=0.0)).complete
    for name, value in load_file(tmp_path / "again" / "model.safetensors").items():
        assert torch.equal(value, stored[name]), name


@pytest.mark.parametrize("changes", [{"rmsnorm_post_attn": True}, {"sub_norms": True, "hadamard_block": 16}])
def test_added_norms_and_rotations_come_back(run: SftSettings, changes: dict[str, Any]) -> None:
    seen: dict[str, Any] = {}
    original = recipe.prepare_model

    def keep(*args: Any) -> Any:
        seen["model"] = original(*args)
        return seen["model"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "prepare_model", keep)
        sft(replace(run, **changes))
    ids_BL = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        expected = seen["model"].eval()(input_ids=ids_BL).logits
        assert torch.equal(load_converted(run.output_dir).eval()(input_ids=ids_BL).logits, expected)


def test_a_calibrated_start_is_nearer_to_the_float_model(run: SftSettings, base: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    row = samples()[3]
    ids = tokenizer.apply_chat_template(row["prompt"] + row["completion"], return_tensors="pt")["input_ids"]
    folders = [tmp_path / "rounded", tmp_path / "calibrated"]
    for folder, rows in zip(folders, (0, 30), strict=True):
        sft(replace(run, max_steps=1, learning_rate=0.0, calibration_rows=rows, output_dir=folder))
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(base)(input_ids=ids).logits
        logits = [load_converted(folder).eval()(input_ids=ids).logits for folder in folders]
    errors = [float((each - expected).square().mean()) for each in logits]
    assert errors[1] < 0.9 * errors[0]


def test_a_quantised_head_is_trained_with_what_it_computes(run: SftSettings) -> None:
    # TRL multiplies by the head's stored weight, which here is a latent.
    result = sft(replace(run, exclude=("embed",), max_steps=2, lambda_warmup_frac=0.0, learning_rate=0.0))
    model = load_converted(run.output_dir)
    assert isinstance(model.lm_head, BitLinear)
    assert result.metrics["eval_loss"] == pytest.approx(result.metrics["loss"], rel=0.3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onebit.train.sft_trainer.BitLinear", type(None))  # TRL's way
        other = sft(
            replace(run, exclude=("embed",), max_steps=2, lambda_warmup_frac=0.0, learning_rate=0.0, resume=False)
        )
    assert abs(other.metrics["eval_loss"] - result.metrics["eval_loss"]) > 1e-3


def test_plain_text_is_cut_into_blocks_and_loses_nothing(run: SftSettings, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    sft(replace(run, dataset_name=str(tmp_path / "text.txt"), max_steps=None, trl={"num_train_epochs": 1.0}))
    about = json.loads((run.output_dir / "training_manifest.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(run.output_dir)
    expected = len(tokenizer(TEXT)["input_ids"]) * (1 - run.val_fraction)
    assert about["tokens_seen"] == pytest.approx(expected, rel=0.02)


def test_the_manifest_has_the_keys_of_the_gradual_recipe(run: SftSettings) -> None:
    sft(run)
    about = json.loads((run.output_dir / "training_manifest.json").read_text())
    assert {key: about[key] for key in ("base_model", "training_steps", "lambda_warmup_frac", "final_lambda")} == {
        "base_model": run.model_name_or_path,
        "training_steps": 6,
        "lambda_warmup_frac": 0.4,
        "final_lambda": 1.0,
    }
    assert (about["compression_ready"], about["model_type"]) == (True, "bitnet158")
    assert about["parameters"]["binary_or_ternary"] == 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48)


def test_a_model_of_onebit_train_is_fine_tuned_as_it_is(run: SftSettings, base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    config = OneBitConfig.preset(
        "bitnet", hidden_size=32, num_layers=2, num_heads=2, intermediate_size=48, vocab_size=300, max_seq_len=48
    )
    OneBitForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    settings = replace(run, model_name_or_path=str(folder), packing=True)  # blocks of 48, not of 64 tokens
    assert sft(settings).complete
    about = json.loads((run.output_dir / "training_manifest.json").read_text())
    assert (about["lambda_warmup_frac"], about["compression_ready"]) == (0.0, True)
    assert load_model(run.output_dir).config.vocab_size == 300
    with pytest.raises(ConfigError, match="leave the conversion flags out"):
        sft(replace(settings, group_size=64, output_dir=tmp_path / "other"))


def test_wrong_input_is_one_line_that_names_the_fix(
    base: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = write_rows(tmp_path / "columns.jsonl", [{"a": "b"}] * 3)
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "a"}\n{"text": \n')
    bare = make_base(tmp_path / "bare", with_template=False)
    packed = make_base(tmp_path / "packed")
    config = json.loads((packed / "config.json").read_text())
    (packed / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "bitnet"}}))
    cases = [
        ([base, columns], "has the columns a; expected 'text', 'messages', or 'prompt' and 'completion'"),
        ([base, broken], "cannot read"),
        ([base, tmp_path / "none.jsonl"], "no file"),
        ([base, "some-name/that-is-not-there"], "--allow-download"),
        (["some-name/that-is-not-there", rows], "--allow-download"),
        ([tmp_path, rows], "holds no config.json"),
        ([bare, rows], "--chat-template-path"),
        ([packed, rows], "packed by 'bitnet', which cannot be trained; give its revision"),
        ([base, rows, "--exclude", "lm_haed"], "did you mean 'lm_head'?"),
        ([base, rows, "--quantizer", "absmeen"], "did you mean 'absmean'?"),
        ([base, rows, "--warmup-stepz", "3"], "did you mean '--warmup-steps'?"),
        ([base, rows, "--granularity", "per_row", "--group-size", "64"], "--group-size is 64, but --granularity"),
        ([base, rows, "--assistant-only-loss"], "TRL refuses this"),
        ([base, rows, "--bf16", "--fp16"], "--bf16 and --fp16 contradict"),
    ]
    for (model, data, *flags), message in cases:
        out = tmp_path / "never"
        argv = ["sft", "--model_name_or_path", model, "--dataset_name", data, "--output_dir", out, *flags]
        code = execute([*map(str, argv), "--device", "cpu", "--max_steps", "1", "--quiet"])
        error = capsys.readouterr().err
        assert code == 2, (flags, error)
        assert message in error
        assert len([line for line in error.splitlines() if line.startswith("error")]) == 1
        assert not out.exists(), error


def test_a_folder_that_was_not_converted_is_not_loaded_as_if(base: Path) -> None:
    with pytest.raises(DataError, match="has no 'onebit_conversion'"):
        load_converted(base)
