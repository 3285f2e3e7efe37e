"""The runs of benchmarks/finetune.py: each is a job with a name, run once and kept at once in the work folder.

A job's name is a hash of all that decides its result, so that results.jsonl serves a benchmark that was killed, one
with other arms, and two at the same time.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import hashlib
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_figures import ingredients_of, rate_arm
from journal import add_line, read_lines

if TYPE_CHECKING:
    from torch import Tensor, nn

    from finetune_training import Ingredients, Plan

SAMPLE_BATCH = 8  # windows of one batch of samples
TUNING_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of an arm; `context` says what else decides its result."""

    arm: str
    learning_rate: float
    seed: int
    steps: int
    context: str
    twin: str | None = None  # the float run that it starts from or learns from

    @property
    def name(self) -> str:
        key = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(key.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Texts:
    """Tokens of the fine-tuning text, int64 [N], and of the text that judges, with its size."""

    train_N: Tensor
    validation_N: Tensor
    bytes: int
    words: int


class Runs:
    """Runs jobs, keeps each result at once, and says how far it is."""

    def __init__(self, arguments: argparse.Namespace, base: Any, texts: Texts, base_key: str) -> None:
        self.arguments, self.base, self.texts = arguments, base, texts
        self.file = arguments.work_dir / "results.jsonl"
        self.results: dict[str, dict[str, Any]] = {}
        self.total_steps = self.done_steps = self.fresh_steps = 0
        self.began = time.monotonic()
        arguments.work_dir.mkdir(parents=True, exist_ok=True)
        self.kept = read_lines(self.file)
        self.starts: dict[str, tuple[Any, Any, float]] = {}
        names = ("data", "optimizer", "calibration_windows")
        told = {name: getattr(arguments, name) for name in names} | {"base": base_key}
        self.context = json.dumps(told, sort_keys=True)

    def twin_path(self, name: str) -> Path:
        """Where the weights of a fine-tuned float run are."""
        return self.arguments.work_dir / "twins" / f"{name}.safetensors"

    def has(self, job: Job) -> bool:
        """Whether the file holds the result."""
        return job.name in self.kept

    def result(self, job: Job) -> dict[str, Any]:
        """The result of a job, from the file when it is there."""
        if job.name in self.results:
            return self.results[job.name]
        steps = job.steps if ingredients_of(job.arm).trains else 0
        self.done_steps += steps
        if job.name not in self.kept:
            self.kept = read_lines(self.file)
        found = self.kept.get(job.name)
        if found is None or (job.arm == "float" and not self.twin_path(job.name).is_file()):
            found = run_job(self, job)
            add_line(self.file, found)
            self.fresh_steps += steps
            pace = (time.monotonic() - self.began) / max(self.fresh_steps, 1)
            left = max(0.0, (self.total_steps - self.done_steps) * pace / 60)
            print(
                f"{job.arm} lr {job.learning_rate:g} seed {job.seed} {steps} steps: loss {found['loss']:.4f}, "
                f"KL to the base {found['kl_base']:.4f}, {found['seconds']:.0f} s; about {left:.0f} min left",
                flush=True,
            )
        self.results[job.name] = found
        return found


def job_of(runs: Runs, arm: str, rates: dict[str, float], seed: int, steps: int, lr: float | None = None) -> Job:
    """The job of an arm at its own rate, with the float run that it needs, which is run before."""
    rate = lr if lr is not None else rates.get(rate_arm(arm), 0.0)
    twin = None
    if arm not in ("base", "float"):
        twin_job = job_of(runs, "float", rates, seed, steps)
        runs.result(twin_job)
        twin = twin_job.name
    return Job(arm=arm, learning_rate=rate, seed=seed, steps=steps, context=runs.context, twin=twin)


def tune(runs: Runs, arm: str, rates: dict[str, float], arguments: argparse.Namespace) -> float:
    """The rate with the lowest validation loss, found downhill from the float twin's, or the middle."""
    grid = sorted(arguments.lrs)
    losses: dict[int, float] = {}

    def loss(i: int) -> float:
        if not 0 <= i < len(grid):
            return math.inf
        if i not in losses:
            job = job_of(runs, arm, rates, TUNING_SEED, arguments.tune_steps, grid[i])
            losses[i] = float(runs.result(job)["selection_loss"])
        return losses[i]

    best = grid.index(rates["float"]) if "float" in rates else len(grid) // 2
    while (step := min((0, -1, 1), key=lambda step: loss(best + step))) != 0:
        best += step
    print(f"{arm}: learning rate {grid[best]:g}", flush=True)
    return grid[best]


def run_job(runs: Runs, job: Job) -> dict[str, Any]:
    """Convert, train and judge one model."""
    from safetensors.torch import load_file, save_file

    from finetune_training import Plan, judge, make_student, processor_seconds
    from onebit.eval.perplexity import summarize
    from onebit.eval.record import commit

    what = ingredients_of(job.arm)
    plan = Plan(learning_rate=job.learning_rate, steps=job.steps, seed=job.seed, optimizer=runs.arguments.optimizer)
    validation_N = runs.texts.validation_N
    references = {"base": runs.base}
    if job.twin is not None:
        references["twin"], _ = make_student(runs.base, ingredients_of("float"), [])
        references["twin"].load_state_dict(load_file(runs.twin_path(job.twin)))
    model, schedule, seconds = start_of(runs, job, what, plan, references)
    start_loss = judge(model, validation_N[: 16 * plan.context + 1], plan.context, {})[0] / (16 * plan.context)
    began = processor_seconds()
    curve = _train(model, runs, job, what, plan, schedule, references) if what.trains else {}
    seconds += processor_seconds() - began
    if job.arm == "float":
        path = runs.twin_path(job.name)
        path.parent.mkdir(exist_ok=True)
        save_file(model.state_dict(), path.with_suffix(".partial"))
        path.with_suffix(".partial").replace(path)
    nats, kl = judge(model, validation_N, plan.context, references)
    quality = dataclasses.asdict(summarize(nats, len(validation_N) - 1, runs.texts.bytes, runs.texts.words))
    return {
        "name": job.name,
        **{k: v for k, v in dataclasses.asdict(job).items() if k != "context"},
        **quality,
        **{f"kl_{name}": value for name, value in kl.items()},
        "seconds": round(seconds, 2),
        "start_loss": start_loss,
        **curve,
        "parameters": sum(p.numel() for p in model.parameters()),
        "commit": commit(),
    }


def start_of(runs: Runs, job: Job, what: Ingredients, plan: Plan, references: dict[str, Any]) -> tuple[Any, Any, float]:
    """(student before its first step, its schedule, seconds of conversion). Rates of one arm share the conversion."""
    import torch

    from finetune_training import make_student, processor_seconds

    is_twins = what.from_twin or (what.ternary and not what.trains)
    shared = {"learning_rate": 0.0, "twin": job.twin if is_twins else None}
    key = dataclasses.replace(job, **shared).name
    if key not in runs.starts:
        text_N, generator = runs.texts.train_N, torch.Generator().manual_seed(job.seed)
        starts_N = torch.randint(len(text_N) - plan.context, (runs.arguments.calibration_windows,), generator=generator)
        windows = torch.stack([text_N[start : start + plan.context] for start in starts_N.tolist()])
        began = processor_seconds()
        model, schedule = make_student(
            references["twin" if is_twins else "base"], what, list(windows.split(SAMPLE_BATCH))
        )
        runs.starts = {key: (model, schedule, processor_seconds() - began)}  # of the last arm alone
    return copy.deepcopy(runs.starts[key])


def _train(
    model: nn.Module, runs: Runs, job: Job, what: Ingredients, plan: Plan, schedule: Any, references: dict[str, Any]
) -> dict[str, Any]:
    from finetune_training import train

    trained = train(
        model,
        runs.texts.train_N,
        runs.texts.validation_N,
        plan,
        teacher=references["twin"] if what.distills else None,
        hard_label_weight=what.hard_label_weight,
        schedule=schedule,
        lambda_fraction=what.lambda_fraction,
        say=lambda *told: say(f"{job.arm} lr {job.learning_rate:g} seed {job.seed}", *told),
    )
    return {
        "selection_loss": min(trained.selection_losses),
        "best_step": trained.best_step,
        "curve_steps": trained.steps,
        "curve_train": [round(x, 4) for x in trained.train_losses],
        "curve_validation": [round(x, 4) for x in trained.selection_losses],
    }


def say(what: str, step: int, train_loss: float, validation_loss: float) -> None:
    print(f"  {what} step {step} train {train_loss:.3f} validation {validation_loss:.3f}", flush=True)
