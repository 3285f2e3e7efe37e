"""`onebit sft --pure`: trains without latents, resumes to the same bits, and leaves what everything else reads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from onebit.cli.main import execute
from onebit.errors import ConfigError
from onebit.models.converted import load_converted
from onebit.nn import BitLinear, Pure1BitLinear, bit_layers
from onebit.train import sft as recipe
from onebit.train.metrics_log import read_metrics
from onebit.train.sft import sft
from onebit.train.sft_settings import SftSettings

from .fine_tuning import make_base, samples, small_run, write_rows


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"), "gpt2")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", samples())


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "draw_loss_curve", lambda folder: [])


@pytest.fixture
def run(base: Path, rows: Path, tmp_path: Path) -> SftSettings:
    return SftSettings(
        **small_run(base, rows, tmp_path / "run") | {"max_steps": 8, "learning_rate": 5e-3}, pure=True, pure_eta=0.3
    )


def losses(folder: Path) -> list[float]:
    return [entry["loss"] for entry in read_metrics(folder) if "loss" in entry]


def test_it_trains_resumes_and_leaves_latents(run: SftSettings, tmp_path: Path) -> None:
    result = sft(run)
    whole = losses(run.output_dir)
    assert sum(whole[-3:]) < sum(whole[:3])
    entry = next(entry for entry in reversed(read_metrics(run.output_dir)) if "loss" in entry)
    assert {"zeros", "flip_rate", "fill", "saturated"} <= set(entry)
    state = load_file(run.output_dir / "checkpoint-4" / "model.safetensors")
    assert {value.dtype for name, value in state.items() if name.endswith(".counters")} == {torch.int8}

    model = load_converted(run.output_dir)
    assert not any(isinstance(module, Pure1BitLinear) for module in model.modules())
    codes = {name: layer.quantized().codes_OI for name, layer in bit_layers(model)}
    trained = load_file(run.output_dir / "checkpoint-8" / "model.safetensors")
    assert len(codes) == 8
    for name, codes_OI in codes.items():
        packed = trained[f"{name}.weight.codes"]
        shifts = torch.arange(0, 8, 2, dtype=torch.uint8)
        pairs = (packed.unsqueeze(-1) >> shifts & 3).flatten(1)[:, : codes_OI.shape[1]]
        assert torch.equal(torch.tensor([0, 1, 9, -1])[pairs.long()], codes_OI.long())
    manifest = json.loads((run.output_dir / "training_manifest.json").read_text())
    assert manifest["parameters"]["binary_or_ternary"] == sum(c.numel() for c in codes.values())
    assert manifest["settings"]["pure"] is True
    assert result.metrics["eval_loss"] > 0

    # As if killed after the first checkpoint: the same losses, the same latents.
    broken = replace(run, output_dir=tmp_path / "broken")
    sft(replace(broken, save_steps=4))
    for path in (broken.output_dir / "checkpoint-8").iterdir():
        path.unlink()
    sft(broken)
    assert losses(broken.output_dir) == whole
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (run.output_dir, broken.output_dir))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_model_of_latents_is_trained_on_from_its_residual(run: SftSettings, tmp_path: Path) -> None:
    first = replace(run, pure=False, pure_eta=None, output_dir=tmp_path / "hybrid", lambda_warmup_frac=0.0, max_steps=2)
    sft(first)
    second = replace(run, model_name_or_path=str(first.output_dir), max_steps=2, pure_counter="int4")
    sft(second)
    assert isinstance(next(layer for _, layer in bit_layers(load_converted(second.output_dir))), BitLinear)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fp16": True}, "--fp16 scales losses and skips steps"),
        ({"use_peft": True}, "--use-peft trains adapters over frozen codes; drop it or --pure"),
        ({"tables": True}, "--tables quantises embeddings"),
        ({"pure_counter": "int2"}, "--pure-counter is 'int2'"),
        ({"pure_accumulation": "float"}, "--pure-accumulation is 'float'"),
        ({"pure_eta": 0.0}, "--pure-eta is 0.0"),
        ({"pure_flip_budget": 0.5}, "--pure-flip-budget computes what --pure-eta sets"),
        ({"pure_eta": None, "pure_flip_budget": -1.0}, "--pure-flip-budget is -1.0"),
        ({"learning_rate": 0.0}, "--learning-rate is 0.0"),
    ],
)
def test_what_does_not_go_together(run: SftSettings, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(run, **changes)


def test_a_flip_budget_gives_eta(run: SftSettings, capsys: pytest.CaptureFixture[str]) -> None:
    """Constant rate over two steps: eta^2 * 2 = budget; so high a one moves too many codes, which is said once."""
    sft(
        replace(
            run,
            pure_eta=None,
            pure_flip_budget=18.0,
            max_steps=12,
            trl={"lr_scheduler_type": "constant"},
            logging_steps=1,
            save_steps=12,
            quiet=False,
        )
    )
    told = capsys.readouterr().out
    assert "flip budget 18 over 12 steps: eta 1.22" in told
    assert told.count("of the codes moved in one step") == 1


def test_the_command_says_its_rates(run: SftSettings, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--base-model", run.model_name_or_path, "--dataset", run.dataset_name, "--out-dir", str(run.output_dir)]
    more = [
        "--max-steps",
        "1",
        "--max-length",
        "64",
        "--device",
        "cpu",
        "--lr",
        "1e-6",
        "--pure",
        "--pure-counter",
        "int4",
        "--pure-accumulation",
        "bfloat16",
        "--grad-accum",
        "2",
    ]
    assert execute(["sft", *flags, *more]) == 0
    said = capsys.readouterr().out
    assert "pure training of 8 matrices with int4 counters: learning rate 1e-06 for what is float, eta " in said
    assert "; 2 batches a step, summed in bfloat16" in said
    assert "warning: eta is small for int4 counters" in said
