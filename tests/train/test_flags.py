"""Each setting does what its name says; each of these tests fails when the setting is ignored."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from onebit.errors import ConfigError, DataError
from onebit.models import OneBitConfig, OneBitForCausalLM
from onebit.train import TrainSettings, arguments, budget, recipe, train
from onebit.train.metrics_log import read_metrics

MakeSettings = Callable[..., TrainSettings]


def train_losses(run: TrainSettings) -> list[float]:
    train(run)
    return [entry["loss"] for entry in read_metrics(run.output_dir) if "loss" in entry]


def logged(run: TrainSettings, key: str) -> list[float]:
    train(run)
    return [entry[key] for entry in read_metrics(run.output_dir) if key in entry]


def test_the_folder_is_a_model_that_transformers_opens_and_a_picture(settings: MakeSettings, corpus: Path) -> None:
    run = settings()
    result = train(run)
    model = AutoModelForCausalLM.from_pretrained(run.output_dir)
    assert isinstance(model, OneBitForCausalLM)
    tokenizer = AutoTokenizer.from_pretrained(run.output_dir)
    assert model.config.eos_token_id == tokenizer.eos_token_id == 0
    assert {"loss.png", "loss.svg", "metrics.jsonl", "training_manifest.json"} <= {
        p.name for p in run.output_dir.iterdir()
    }
    assert (run.output_dir / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert result.metrics["eval_loss"] < math.log(300)


def test_manifest_says_what_was_trained(settings: MakeSettings, corpus: Path) -> None:
    run = settings(shape={"lambda_warmup_fraction": 0.4})
    train(run)
    manifest = json.loads((run.output_dir / "training_manifest.json").read_text())
    seed_keys = {"base_model": None, "training_steps": 12, "lambda_warmup_frac": 0.4, "final_lambda": 1.0}
    seed_keys |= {"compression_ready": True, "model_type": "onebit"}
    assert {key: manifest[key] for key in seed_keys} == seed_keys
    assert manifest["status"] == "complete"
    assert manifest["tokens_seen"] == 12 * 4 * 32
    assert manifest["data"]["train"]["bytes"] + manifest["data"]["validation"]["bytes"] == len(
        (corpus / "text.txt").read_bytes()
    )
    assert manifest["config"]["hidden_size"] == 32
    assert manifest["settings"]["lr"] == run.lr
    assert manifest["seeds"] == {"model": 42, "data_order": 42}
    assert manifest["versions"]["torch"] == torch.__version__
    assert manifest["final_metrics"]["eval_bits_per_byte"] > 0
    assert str(Path.cwd()) not in json.dumps(manifest["versions"])


def test_a_run_that_ends_soft_is_not_ready_for_compression(settings: MakeSettings) -> None:
    run = settings(shape={"arenas_initial": 0.1, "arenas_anneal_steps": 100})
    train(run)
    manifest = json.loads((run.output_dir / "training_manifest.json").read_text())
    assert manifest["compression_ready"] is False
    assert manifest["final_arenas"] == pytest.approx(0.1 * 0.89)


def test_metrics_are_consistent(settings: MakeSettings) -> None:
    run = settings(eval_every=6)
    train(run)
    manifest = json.loads((run.output_dir / "training_manifest.json").read_text())
    for entry in read_metrics(run.output_dir):
        prefix, counts = ("", "train") if "loss" in entry else ("eval_", "validation")
        ratio = manifest["data"][counts]["tokens"] / manifest["data"][counts]["bytes"]
        loss = entry[f"{prefix}loss"]
        assert entry[f"{prefix}perplexity"] == pytest.approx(math.exp(loss))
        assert entry[f"{prefix}bits_per_byte"] == pytest.approx(loss / math.log(2) * ratio)
        if "loss" in entry:
            assert 0.05 < entry["zeros"] < 0.7
            assert 0.0 <= entry["flip_rate"] < 0.2


def test_evaluation_counts_every_token_once(settings: MakeSettings, corpus: Path) -> None:
    run = settings()
    reported = train(run).metrics["eval_loss"]
    model = AutoModelForCausalLM.from_pretrained(run.output_dir).eval()
    text = (corpus / "text.txt").read_text()
    held_out = text[text.rfind("\n", 0, int(len(text) * 0.95)) + 1 :]
    tokenizer = AutoTokenizer.from_pretrained(run.output_dir)
    ids = tokenizer(held_out)["input_ids"] + [0]
    total, count = 0.0, 0
    for start in range(0, len(ids), 32):
        block = torch.tensor([ids[start : start + 32]])
        logits = model(input_ids=block).logits.double().log_softmax(-1)
        for position in range(block.shape[1] - 1):
            total -= logits[0, position, block[0, position + 1]].item()
            count += 1
    assert reported == pytest.approx(total / count, rel=1e-5)  # float32 sums against float64


def test_learning_rate_flags(settings: MakeSettings) -> None:
    run = settings(lr=1e-2, min_lr=1e-3, lr_warmup_steps=4, lr_decay="cosine")
    rates = logged(run, "learning_rate")
    expected = [1e-2 * (s + 1) / 4 for s in range(4)]
    expected += [1e-3 + 9e-3 * (1 + math.cos(math.pi * (s - 4) / 8)) / 2 for s in range(4, 12)]
    assert rates == pytest.approx(expected)


def test_accumulation_is_a_larger_batch(settings: MakeSettings, tmp_path: Path) -> None:
    large = train_losses(settings(output_dir=tmp_path / "large", batch_size=8))
    small = train_losses(settings(output_dir=tmp_path / "small", batch_size=4, accumulation_steps=2))
    assert small == pytest.approx(large, rel=2e-3)  # the sums differ in order; ternary codes turn that into flips
    assert small[0] == pytest.approx(large[0], rel=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"label_smoothing": 0.1},
        {"grad_clip_max_norm": 0.01, "weight_decay": 0.0},
        {"weight_decay": 50.0},
        {"adam_beta1": 0.5},
        {"optimizer": "muon"},
        {"adam_beta2": 0.5},
        {"bf16": True},
        {"batch_size": 2},
        {"shape": {"latent_clamp_max": 0.01}},
        {"shape": {"lambda_warmup_fraction": 0.9}},
        {"shape": {"anneal_fraction": 0.9}},
        {"shape": {"arenas_initial": 0.5, "arenas_anneal_steps": 50}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_changes_the_losses(settings: MakeSettings, tmp_path: Path, changes: dict[str, Any]) -> None:
    plain = train_losses(settings(output_dir=tmp_path / "plain", max_steps=4, save_every=0))
    other = train_losses(settings(output_dir=tmp_path / "other", max_steps=4, save_every=0, **changes))
    assert plain != other
    assert all(math.isfinite(loss) for loss in other)


def test_gradient_checkpointing_changes_no_number(settings: MakeSettings, tmp_path: Path) -> None:
    plain = train_losses(settings(output_dir=tmp_path / "plain", max_steps=3))
    other = train_losses(settings(output_dir=tmp_path / "other", max_steps=3, gradient_checkpointing=True))
    assert plain == other


def test_label_smoothing_is_not_in_the_evaluation(settings: MakeSettings, tmp_path: Path) -> None:
    runs = [settings(output_dir=tmp_path / str(s), label_smoothing=s, lr=0.0, max_steps=1) for s in (0.0, 0.2)]
    results = [train(run).metrics for run in runs]
    assert results[0]["eval_loss"] == results[1]["eval_loss"]
    assert results[0]["loss"] != results[1]["loss"]


def test_latents_stay_clamped(settings: MakeSettings) -> None:
    run = settings(lr=0.05, shape={"latent_clamp_max": 0.03})
    train(run)
    model = OneBitForCausalLM.from_pretrained(run.output_dir)
    assert model.model.layers[0].mlp.up_proj.weight.abs().max().item() == pytest.approx(0.03)
    assert model.model.embed_tokens.weight.abs().max().item() > 0.03


def test_keep_best_hands_on_the_best(settings: MakeSettings, tmp_path: Path) -> None:
    # A rate that destroys the model after a good start: the best is not the last.
    run = settings(lr=0.02, lr_decay="constant", lr_warmup_steps=60, max_steps=60, eval_every=5, keep_best=True)
    result = train(run)
    evaluations = [entry for entry in read_metrics(run.output_dir) if "eval_loss" in entry]
    best = min(evaluations, key=lambda entry: entry["eval_loss"])
    assert result.metrics["best_eval_loss"] == best["eval_loss"]
    assert result.metrics["best_step"] == best["step"]
    again = settings(
        output_dir=tmp_path / "again", init_from=run.output_dir, overrides={}, tokenizer=None, lr=0.0, max_steps=1
    )
    assert train(again).metrics["eval_loss"] == best["eval_loss"]
    assert json.loads((again.output_dir / "training_manifest.json").read_text())["base_model"] == str(run.output_dir)


def test_val_data_is_used_whole(settings: MakeSettings, tmp_path: Path, corpus: Path) -> None:
    (tmp_path / "val.txt").write_text("def g(x, y):\n    return y\n" * 40)
    run = settings(val_data=str(tmp_path / "val.txt"))
    train(run)
    data = json.loads((run.output_dir / "training_manifest.json").read_text())["data"]
    assert data["validation"]["bytes"] == (tmp_path / "val.txt").stat().st_size
    assert data["train"]["bytes"] == (corpus / "text.txt").stat().st_size


def test_a_tokenizer_is_trained_when_none_is_given(settings: MakeSettings) -> None:
    run = settings(tokenizer=None, vocab_size=280)
    train(run)
    config = json.loads((run.output_dir / "config.json").read_text())
    assert config["vocab_size"] == 280
    assert len(AutoTokenizer.from_pretrained(run.output_dir)) == 280


def test_config_file_of_the_seed_is_trained(settings: MakeSettings, tmp_path: Path) -> None:
    seed = {"vocab_size": 300, "hidden_size": 32, "num_heads": 2, "num_layers": 1, "intermediate_size": 64}
    seed |= {"max_seq_len": 16, "use_ternary": False, "use_rope": True, "anneal_fraction": 0.2}
    (tmp_path / "config.json").write_text(json.dumps(seed))
    run = settings(config=tmp_path / "config.json", overrides={"use_subln": True})
    train(run)
    config = OneBitConfig.from_json_file(run.output_dir / "config.json")
    assert (config.num_layers, config.use_subln, config.resolved_quantizer) == (1, True, "binary")


def test_preset_decides_the_shape(settings: MakeSettings) -> None:
    run = settings(preset="qwen3", max_steps=1)
    train(run)
    assert OneBitConfig.from_json_file(run.output_dir / "config.json").use_qk_norm


def test_max_minutes_fixes_the_steps_before_the_start(settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "seconds_per_step", lambda *args, **kw: 1.0)
    run = settings(max_minutes=0.25)
    result = train(run)
    assert result.max_steps == result.steps == 14  # 15 s less 5 % for what is not a step
    monkeypatch.setattr(recipe, "seconds_per_step", lambda *args, **kw: pytest.fail("measured again"))
    assert train(run).steps == 14


def test_max_minutes_is_kept(settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "_SECONDS", 1.0)  # of measuring
    result = train(settings(max_minutes=0.05, save_every=0, log_every=1000, val_fraction=0.0))
    assert result.steps > 12
    assert result.seconds < 12  # 3 s of steps, the measurement, and a busy machine


def test_tensorboard_only_when_asked(settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR")
    run = settings(report_to="tensorboard", max_steps=2)
    train(run)
    assert list((run.output_dir / "tensorboard").rglob("events.out*"))


def test_wandb_is_offline_by_default_and_named_when_missing(
    settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util
    import os

    for name in ("WANDB_MODE", "WANDB_DIR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="--report-to wandb: it is not installed; pip install wandb"):
        arguments.prepare_tracker("wandb", settings().output_dir)
    assert os.environ["WANDB_MODE"] == "offline"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "--batch-size is 0; it must be at least 1"),
        ({"lr": -1.0}, "--lr is -1.0"),
        ({"lr": math.nan}, "--lr is nan"),
        ({"min_lr": 1.0}, "--min-lr is 1.0; it must be at most --lr"),
        ({"lr_decay": "cosin"}, "did you mean 'cosine'"),
        ({"label_smoothing": 1.0}, "--label-smoothing is 1.0"),
        ({"val_fraction": 0.9}, "--val-fraction is 0.9"),
        ({"device": "gpu"}, "--device is 'gpu'"),
        ({"report_to": "mlflow"}, "--report-to is 'mlflow'"),
        ({"threads": 0}, "--threads is 0"),
        ({"vocab_size": 300}, "--vocab-size trains a tokenizer"),
        ({"seed": 2**32}, "--seed is 4294967296"),
        ({"max_minutes": math.inf}, "--max-minutes is inf"),
        ({"preset": "llama", "config": Path("config.json")}, "--config and --preset each describe a whole model"),
        ({"preset": "llama", "init_from": Path("there")}, "--init-from brings its own configuration"),
    ],
)
def test_bad_settings_are_refused_by_their_flag(settings: MakeSettings, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(**changes)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"shape": {"vocab_size": 200}}, ConfigError, "the tokenizer has 300 tokens"),
        ({"shape": {"max_seq_len": 1}}, ConfigError, "max_seq_len is 1"),
        ({"shape": {"vocab_size": 50257}}, ConfigError, "vocab_size is 50257; they must match"),
        ({"shape": {"hiden_size": 3}}, ConfigError, "did you mean 'hidden_size'"),
        ({"data": "./nowhere"}, DataError, "no file or folder './nowhere'"),
        ({"tokenizer": Path("nowhere.json")}, DataError, "no tokenizer at 'nowhere.json'"),
        ({"config": Path("nowhere.json")}, ConfigError, "nowhere.json"),
        ({"eval_every": 2, "val_fraction": 0.0}, ConfigError, "--eval-every needs validation text"),
        ({"preset": "bitnett"}, ConfigError, "did you mean 'bitnet'"),
        ({"device": "mps"}, ConfigError, "--device mps"),
        ({"tokenizer": None, "vocab_size": 10}, ConfigError, "--vocab-size is 10"),
    ],
)
def test_bad_input_leaves_nothing_behind(
    settings: MakeSettings, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    if changes.get("device") == "mps" and torch.backends.mps.is_available():
        pytest.skip("this machine has one")
    run = settings(**changes)
    with pytest.raises(error) as caught:
        train(run)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not run.output_dir.exists()


@pytest.mark.parametrize("changes", [{}, {"streaming": True}, {"tokenizer": None, "vocab_size": 300}])
def test_empty_text_is_refused(settings: MakeSettings, tmp_path: Path, changes: dict[str, Any]) -> None:
    (tmp_path / "empty.txt").write_text("")
    run = settings(data=str(tmp_path / "empty.txt"), cache_dir=None, **changes)
    with pytest.raises(DataError, match=r"empty|holds no text"):
        train(run)
    assert not run.output_dir.exists()


def test_a_folder_that_was_there_stays(settings: MakeSettings, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    run = settings(data=str(tmp_path / "empty.txt"), cache_dir=None)
    run.output_dir.mkdir()
    (run.output_dir / "notes.txt").write_text("mine")
    with pytest.raises(DataError):
        train(run)
    assert (run.output_dir / "notes.txt").read_text() == "mine"


def test_a_loss_that_explodes_is_one_clear_line(settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    from onebit.errors import OnebitError
    from onebit.train import trainer

    monkeypatch.setattr(trainer, "next_token_loss", lambda logits, *a, **k: logits.sum() * math.nan)
    with pytest.raises(OnebitError, match="the loss became nan before step 1; lower --lr"):
        train(settings())


def test_a_run_that_exploded_between_log_lines_leaves_no_model(
    settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onebit.errors import OnebitError
    from onebit.train import trainer

    monkeypatch.setattr(trainer, "next_token_loss", lambda logits, *a, **k: logits.sum() * math.nan)
    run = settings(max_steps=2, log_every=100, save_every=0)
    with pytest.raises(OnebitError, match="the validation loss became nan before step 2; lower --lr"):
        train(run)
    assert not (run.output_dir / "model.safetensors").exists()


@pytest.mark.slow
def test_compile_trains_to_nearly_the_same_losses(settings: MakeSettings, tmp_path: Path) -> None:
    plain = train_losses(settings(output_dir=tmp_path / "plain", max_steps=4))
    compiled = train_losses(settings(output_dir=tmp_path / "compiled", max_steps=4, compile=True))
    assert compiled == pytest.approx(plain, rel=2e-3)  # fused sums round otherwise, and a code may flip
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "compiled")
