"""`onebit train --pure`: a new model without latents; that it resumes to the same bits is in test_resume."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from onebit.cli.main import execute
from onebit.errors import ConfigError
from onebit.formats.checkpoint import load_model
from onebit.nn import Pure1BitLinear, bit_layers
from onebit.train import TrainSettings, budget, train
from onebit.train.metrics_log import read_metrics

MakeSettings = Callable[..., TrainSettings]


@pytest.fixture
def run(settings: MakeSettings) -> TrainSettings:
    return settings(pure=True, lr=5e-3, save_every=4, max_steps=12)


def codes(folder: Path) -> dict[str, torch.Tensor]:
    return {name: layer.quantized().codes_OI for name, layer in bit_layers(load_model(folder))}


def test_it_trains_and_leaves_latents_of_the_codes(run: TrainSettings) -> None:
    result = train(run)
    entries = [entry for entry in read_metrics(run.output_dir) if "loss" in entry]
    losses = [entry["loss"] for entry in entries]
    assert sum(losses[-3:]) < sum(losses[:3]) - 1.0
    assert {"zeros", "flip_rate", "fill", "saturated"} <= set(entries[-1])
    assert result.metrics["eval_loss"] > 0

    checkpoint = run.output_dir / "checkpoint-12"
    state = load_file(checkpoint / "model.safetensors")
    assert {value.dtype for name, value in state.items() if name.endswith(".counters")} == {torch.int8}
    assert not any(value.is_floating_point() for name, value in state.items() if name.endswith(".codes"))
    model = load_model(run.output_dir)
    assert not any(isinstance(module, Pure1BitLinear) for module in model.modules())
    ours, kept = codes(run.output_dir), codes(checkpoint)
    assert len(ours) == 14
    assert all(torch.equal(value, kept[name]) for name, value in ours.items())
    manifest = json.loads((run.output_dir / "training_manifest.json").read_text())
    assert manifest["parameters"]["binary_or_ternary"] == sum(value.numel() for value in ours.values())
    assert manifest["settings"]["pure"] is True


def test_codes_move_away_from_the_first_ones(run: TrainSettings, tmp_path: Path) -> None:
    train(run)
    still = replace(run, output_dir=tmp_path / "still", max_steps=1, pure_eta=1e-9)
    train(still)
    moved, first = codes(run.output_dir), codes(still.output_dir)
    assert all(bool((value != first[name]).any()) for name, value in moved.items())


def test_the_best_model_is_handed_on(run: TrainSettings, tmp_path: Path) -> None:
    """At a rate that spoils it, an early evaluation is the best."""
    best = replace(run, pure_eta=5.0, lr=0.1, min_lr=0.1, lr_decay="constant", eval_every=2, keep_best=True)
    result = train(best)
    assert result.metrics["best_step"] < 12
    kept, handed_on = codes(best.output_dir / "best"), codes(best.output_dir)
    last = codes(best.output_dir / "checkpoint-12")
    assert all(torch.equal(value, kept[name]) for name, value in handed_on.items())
    assert any(not torch.equal(value, last[name]) for name, value in handed_on.items())


def test_it_goes_on_from_a_hybrid_model_at_the_rate_of_its_latents(
    settings: MakeSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hybrid = settings(output_dir=tmp_path / "hybrid", max_steps=2)
    train(hybrid)
    more = settings(output_dir=tmp_path / "more", max_steps=2, tokenizer=None, pure=True, lr=1e-4, quiet=False)
    train(replace(more, init_from=hybrid.output_dir, overrides={}))
    told = capsys.readouterr().out
    mean = torch.cat([layer.weight.flatten() for _, layer in bit_layers(load_model(hybrid.output_dir))]).abs().mean()
    (line,) = [line for line in told.splitlines() if "for codes" in line]
    low, high = (float(line.split(" eta ")[1].split()[at]) for at in (0, 2))
    assert low <= 2e-4 / mean.item() <= high
    assert high < 2 * low


def test_the_command_says_its_rates_and_what_it_leaves_out(
    run: TrainSettings, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = {**run.overrides, "anneal_fraction": 0.3, "latent_clamp_max": 1.5}
    flags = ["--data", run.data, "--tokenizer", str(corpus / "tokenizer.json"), "--output-dir", str(run.output_dir)]
    flags += [part for name, value in shape.items() for part in ("--set", f"{name}={json.dumps(value)}")]
    more = ["--pure", "--pure-counter", "int4", "--max-steps", "1", "--accumulation-steps", "2", "--device", "cpu"]
    assert execute(["train", *flags, *more]) == 0
    told = capsys.readouterr().out
    assert "pure training has no latents: anneal_fraction, latent_clamp_max of the configuration left out" in told
    assert "pure training of 14 matrices with int4 counters: learning rate 0.0015 for what is float, eta 0.1" in told
    assert "2 batches a step, summed in int8" in told
    config = json.loads((run.output_dir / "config.json").read_text())
    assert (config["anneal_fraction"], config["latent_clamp_max"]) == (0.0, None)


def test_minutes_are_measured_with_its_own_steps(run: TrainSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "_SECONDS", 0.2)
    result = train(replace(run, max_minutes=0.01, save_every=0, val_fraction=0.0))
    assert result.steps >= 1


def test_a_flip_budget_follows_the_schedule(run: TrainSettings, capsys: pytest.CaptureFixture[str]) -> None:
    train(replace(run, pure_flip_budget=0.5, lr_decay="constant", lr_warmup_steps=0, quiet=False))
    assert "flip budget 0.5 over 12 steps: eta 0.204 for all codes" in capsys.readouterr().out  # sqrt(0.5 / 12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "muon"}, "--optimizer muon moves latents"),
        ({"bit_width_map": {"layers.0.attention.q_proj": "int8"}}, "--bit-width-map gives levels to latents"),
        ({"pure_counter": "int2"}, "--pure-counter is 'int2'"),
        ({"pure_eta": 0.1, "pure_flip_budget": 0.5}, "--pure-flip-budget computes what --pure-eta sets"),
        ({"lr": 0.0}, "--lr is 0.0; it must be a positive number with --pure"),
    ],
)
def test_what_does_not_go_together(run: TrainSettings, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(run, **changes)


def test_a_float_model_has_nothing_to_train(run: TrainSettings) -> None:
    with pytest.raises(ConfigError, match="--pure trains ternary and binary codes, and this configuration has none"):
        train(replace(run, overrides={**run.overrides, "quantizer": "none"}))
    assert not run.output_dir.exists()
