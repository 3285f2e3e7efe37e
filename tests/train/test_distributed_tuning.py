"""sft and distill with several processes (gloo, CPU): the losses of one process with the same rows a step, and whole
checkpoints that go on with another number of processes, with FSDP2 or without."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from onebit.errors import ConfigError
from onebit.models.converted import load_converted
from onebit.train import processes, sharding
from onebit.train import sft as recipe
from onebit.train.metrics_log import read_metrics
from onebit.train.sft import sft
from onebit.train.sft_settings import SftSettings

from .fine_tuning import make_base, samples, small_run, write_rows

# The first loss comes before any update: only the order of float32 sums differs. Later a sum that differs in the last
# bit can flip a ternary code, which is a real jump of the loss.
FIRST, LATER = 1e-6, 2e-3
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
ACCELERATE_FSDP = (
    *("-m", "accelerate.commands.launch", "--use_fsdp", "--fsdp_version", "2", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no", "--num_processes"),
)
# The command whose first process dies at a step, as one that the machine kills, and that tells what each process holds.
DRIVER = """
import json, os, signal
from transformers import TrainerCallback
from onebit.cli.main import run
from onebit.nn import bit_layers, pure_weights
from onebit.train.sft_trainer import TernarySftTrainer

class Watch(TrainerCallback):
    def on_train_begin(self, args, state, control, **kw):
        for weight in pure_weights(kw["model"]).values():
            whole, part = weight.shape.numel(), weight.counters.numel()
        for _, layer in bit_layers(kw["model"]):
            whole, weight = layer.weight.numel(), layer.weight
            part = (weight.to_local() if hasattr(weight, "to_local") else weight).numel()
        with open(f"{os.environ['TOLD']}/{args.process_index}.json", "w") as file:
            json.dump({"whole": whole, "part": part}, file)

    def on_step_begin(self, args, state, control, **kw):
        if state.global_step == int(os.environ["DIES_AT"]) and state.is_world_process_zero:
            os.kill(os.getpid(), signal.SIGKILL)

made = TernarySftTrainer.__init__
def watched(self, *args, **kwargs):
    made(self, *args, **kwargs)
    self.add_callback(Watch())
TernarySftTrainer.__init__ = watched
run()
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "draw_loss_curve", lambda folder: [])


@pytest.fixture
def run(base: Path, tmp_path: Path) -> SftSettings:
    return SftSettings(
        **small_run(base, write_rows(tmp_path / "rows.jsonl", samples()), tmp_path / "run"),
        cache_dir=tmp_path / "cache",
        calibration_rows=8,
        val_fraction=0.1,
        threads=1,
    )


def launch(
    run: SftSettings,
    count: int,
    *more: str,
    command: str = "sft",
    dies_at: int = -1,
    launcher: tuple[str, ...] = TORCHRUN,
) -> subprocess.CompletedProcess[str]:
    """The command under a launcher, or alone where one process is enough; it tells in told/ what each process holds."""
    folder = run.output_dir.parent
    driver, told = folder / "driver.py", folder / "told"
    driver.write_text(DRIVER)
    told.mkdir(exist_ok=True)
    flags: list[Any] = [
        "--dataset-name",
        run.dataset_name,
        "--output-dir",
        run.output_dir,
        "--cache-dir",
        run.cache_dir,
    ]
    if command == "sft":
        flags += ["--model-name-or-path", run.model_name_or_path]
    for name in ("calibration_rows", "val_fraction", "max_steps", "logging_steps", "save_steps", "max_length"):
        flags += [f"--{name.replace('_', '-')}", getattr(run, name)]
    for name in ("per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate", "device", "threads"):
        flags += [f"--{name.replace('_', '-')}", getattr(run, name)]
    launched = [*launcher, count] if count > 1 else []
    return subprocess.run(
        [sys.executable, *map(str, [*launched, driver, command, *flags, *more])],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TOLD": str(told), "DIES_AT": str(dies_at)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def curve(folder: Path, key: str) -> list[float]:
    return [entry[key] for entry in read_metrics(folder) if key in entry]


def manifest(folder: Path) -> dict[str, Any]:
    about: dict[str, Any] = json.loads((folder / "training_manifest.json").read_text())
    return about


def told(run: SftSettings) -> list[dict[str, int]]:
    return [json.loads(path.read_text()) for path in sorted((run.output_dir.parent / "told").iterdir())]


def test_two_processes_equal_one_with_twice_the_batch(run: SftSettings, tmp_path: Path) -> None:
    one = replace(run, output_dir=tmp_path / "one")
    sft(one)
    two = replace(run, output_dir=tmp_path / "two", per_device_train_batch_size=2)
    done = launch(two, 2)
    assert done.returncode == 0, done.stderr[-2000:]
    losses = [curve(folder, "loss") for folder in (one.output_dir, two.output_dir)]
    assert losses[1][0] == pytest.approx(losses[0][0], rel=FIRST)
    assert losses[1] == pytest.approx(losses[0], rel=LATER)
    # Rows are of different lengths: the same sums mean the same rows.
    assert curve(two.output_dir, "num_tokens") == curve(one.output_dir, "num_tokens")
    assert curve(two.output_dir, "zeros")[0] == curve(one.output_dir, "zeros")[0]  # calibrated to the same codes
    for line in ("linear layers replaced", "step 1/6", "validation loss", "the model is in"):
        assert done.stdout.count(line) == 1, done.stdout
    about = [manifest(folder) for folder in (one.output_dir, two.output_dir)]
    assert [each["processes"] for each in about] == [1, 2]
    for key in ("status", "training_steps", "tokens_seen", "parameters", "conversion", "data"):
        assert about[1][key] == about[0][key], key
    names = [{path.name for path in folder.iterdir()} for folder in (one.output_dir, two.output_dir)]
    assert names[1] - {"loss.png", "loss.svg"} == names[0]
    weights = [load_file(folder / "model.safetensors") for folder in (one.output_dir, two.output_dir)]
    for name, value in weights[0].items():
        assert torch.allclose(weights[1][name], value, atol=1e-4), name


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_killed_run_goes_on_with_another_number_of_processes(
    run: SftSettings, tmp_path: Path, before: int, after: int
) -> None:
    whole = replace(run, output_dir=tmp_path / "whole", max_steps=9, logging_steps=3)
    sft(whole)
    killed = replace(whole, output_dir=tmp_path / "killed", per_device_train_batch_size=4 // before)
    first = launch(killed, before, dies_at=6)
    assert first.returncode != 0
    assert sorted(path.name for path in killed.output_dir.glob("checkpoint-*")) == ["checkpoint-4"]
    done = launch(killed, after)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"{after} processes instead of {before}: a step still reads 4 rows" in done.stdout
    assert "resuming from" in done.stdout
    assert curve(killed.output_dir, "step") == curve(whole.output_dir, "step")
    assert curve(killed.output_dir, "num_tokens") == curve(whole.output_dir, "num_tokens")
    assert curve(killed.output_dir, "loss") == pytest.approx(curve(whole.output_dir, "loss"), rel=LATER)
    about = manifest(killed.output_dir)
    assert (about["status"], about["training_steps"], about["processes"]) == ("complete", 9, after)


@pytest.mark.parametrize(
    ("rows", "began_with", "given", "expected"),
    [
        (8, 2, (1, 4, 1), (4, 2)),  # the same command on one process
        (4, 1, (2, 4, 1), (2, 1)),
        (12, 1, (4, 2, 6), (1, 3)),  # the largest batch that the given one has room for
        (8, 2, (1, 8, 1), (8, 1)),  # reckoned by hand already
        (8, 2, (2, 8, 1), (8, 1)),  # as many processes as before: another run, which is refused elsewhere
    ],
)
def test_another_number_of_processes_reads_the_same_rows_in_a_step(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    rows: int,
    began_with: int,
    given: tuple[int, int, int],
    expected: tuple[int, int],
) -> None:
    monkeypatch.setattr(processes, "last_checkpoint", lambda folder: folder)
    (tmp_path / "run.json").write_text(json.dumps({"rows_per_step": rows, "processes": began_with}))
    world, batch, times = given
    arguments = SimpleNamespace(world_size=world, per_device_train_batch_size=batch, gradient_accumulation_steps=times)
    changed = processes.keep_rows_per_step(arguments, tmp_path)
    assert (arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps) == expected
    assert (changed is None) == (expected == (batch, times))


def test_rows_that_the_processes_cannot_share_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(processes, "last_checkpoint", lambda folder: folder)
    (tmp_path / "run.json").write_text(json.dumps({"rows_per_step": 8, "processes": 2}))
    arguments = SimpleNamespace(world_size=3, per_device_train_batch_size=4, gradient_accumulation_steps=1)
    with pytest.raises(ConfigError, match="a run of 8 rows a step, which 3 processes cannot share evenly"):
        processes.keep_rows_per_step(arguments, tmp_path)


@pytest.mark.slow
def test_distillation_with_two_processes_equals_one(run: SftSettings, base: Path, tmp_path: Path) -> None:
    more = ["--teacher", str(base), "--hard-label-weight", "0.3", "--token-scaled", "--relation-weight", "0.5"]
    folders = []
    for count in (1, 2):
        settings = replace(run, output_dir=tmp_path / str(count), per_device_train_batch_size=4 // count, max_steps=4)
        done = launch(settings, count, *more, command="distill")
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count("asking the teacher") == (1 if count == 1 else 0)  # its answers are on disk
        folders.append(settings.output_dir)
    for key in ("loss", "kl", "hard_loss", "relation_loss"):
        one, two = (curve(folder, key) for folder in folders)
        assert len(two) == 4
        assert two == pytest.approx(one, rel=LATER), key


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])  # a tied head, and layers that are stored turned
def test_fsdp_trains_as_one_process_and_its_checkpoint_is_one_process_s(
    run: SftSettings, tmp_path: Path, kind: str
) -> None:
    base = make_base(tmp_path / kind, kind)
    whole = replace(run, model_name_or_path=str(base), output_dir=tmp_path / "whole", max_steps=8)
    sft(whole)
    sharded = replace(whole, output_dir=tmp_path / "sharded", per_device_train_batch_size=2)
    first = launch(sharded, 2, "--fsdp", dies_at=6)
    assert first.returncode != 0
    assert [each["part"] * 2 for each in told(sharded)] == [each["whole"] for each in told(sharded)]
    assert len(told(sharded)) == 2
    assert curve(sharded.output_dir, "loss")[:5] == pytest.approx(curve(whole.output_dir, "loss")[:5], rel=LATER)
    done = launch(sharded, 1)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "resuming from" in done.stdout
    assert curve(sharded.output_dir, "loss") == pytest.approx(curve(whole.output_dir, "loss"), rel=LATER)
    stored = load_file(sharded.output_dir / "model.safetensors")
    assert {name: value.shape for name, value in stored.items()} == {
        name: value.shape for name, value in load_file(whole.output_dir / "model.safetensors").items()
    }


@pytest.mark.slow
def test_fsdp_goes_on_from_one_process_and_saves_a_model_that_loads(run: SftSettings, tmp_path: Path) -> None:
    whole = replace(run, output_dir=tmp_path / "whole", max_steps=8)
    sft(whole)
    sharded = replace(whole, output_dir=tmp_path / "sharded")
    assert launch(sharded, 1, dies_at=6).returncode == -signal.SIGKILL
    done = launch(sharded, 2, launcher=ACCELERATE_FSDP)  # the Trainer's own flag: in the tests above
    assert done.returncode == 0, done.stderr[-2000:]
    assert [each["part"] * 2 for each in told(sharded)] == [each["whole"] for each in told(sharded)]
    assert curve(sharded.output_dir, "loss") == pytest.approx(curve(whole.output_dir, "loss"), rel=LATER)
    assert curve(sharded.output_dir, "eval_loss") == pytest.approx(curve(whole.output_dir, "eval_loss"), rel=LATER)
    ids_BL = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        logits = [load_converted(each.output_dir).eval()(input_ids=ids_BL).logits for each in (whole, sharded)]
    assert float((logits[1] - logits[0]).abs().max()) < 0.02 * float(logits[0].abs().max())
    about = manifest(sharded.output_dir)
    assert about["config"]["architectures"] == ["LlamaForCausalLM"]
    assert about["parameters"] == manifest(whole.output_dir)["parameters"]


@pytest.mark.slow
def test_fsdp_cuts_codes_and_counters_of_pure_training(run: SftSettings, tmp_path: Path) -> None:
    pure = ("--pure", "--pure-eta", "0.3")
    whole = replace(run, output_dir=tmp_path / "whole", per_device_train_batch_size=2, max_steps=8)
    assert launch(whole, 2, *pure).returncode == 0
    assert [each["part"] for each in told(whole)] == [each["whole"] for each in told(whole)]
    sharded = replace(whole, output_dir=tmp_path / "sharded")
    first = launch(sharded, 2, *pure, "--fsdp", dies_at=6)
    assert first.returncode != 0
    assert len(told(sharded)) == 2
    assert [each["part"] * 2 for each in told(sharded)] == [each["whole"] for each in told(sharded)]
    # Gradients of two processes have the same sum in any order.
    assert curve(sharded.output_dir, "loss")[:5] == curve(whole.output_dir, "loss")[:5]
    assert curve(sharded.output_dir, "fill")[:5] == curve(whole.output_dir, "fill")[:5]
    files = [each.output_dir / "checkpoint-4" / "model.safetensors" for each in (whole, sharded)]
    assert files[0].read_bytes() == files[1].read_bytes()
    done = launch(sharded, 1, *pure)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "resuming from" in done.stdout
    # One process adds the rows of a batch in another order, and deposits are rounded at random.
    assert curve(sharded.output_dir, "loss") == pytest.approx(curve(whole.output_dir, "loss"), rel=2e-2)


def test_taking_over_sharding_leaves_none_to_the_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    arguments = SimpleNamespace(fsdp=True, fsdp_plugin_args={"fsdp_version": 2})
    assert sharding.take_over_sharding(arguments)
    assert arguments == SimpleNamespace(fsdp=None, fsdp_plugin_args=None)
    assert not sharding.asks_for_fsdp(arguments)
    assert not sharding.take_over_sharding(arguments)


def test_the_first_fsdp_is_refused() -> None:
    state = SimpleNamespace(fsdp_plugin=SimpleNamespace(fsdp_version=1))
    trainer = SimpleNamespace(args=SimpleNamespace(fsdp=True), accelerator=SimpleNamespace(state=state))
    with pytest.raises(ConfigError, match="FSDP 1 is not supported; give accelerate --fsdp_version 2"):
        sharding.shard_on_cpu(trainer)
