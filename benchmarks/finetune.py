"""What does it take to turn a float model into a ternary one? Each ingredient beside the fine-tuned float twin.

    python benchmarks/finetune.py [--data-dir DIR] [--only lambda ste+distill ...] [--steps N] [--seeds 1 2 3] [--quick]

DIR holds `wikitext-2/{test,valid}.txt` and `tinyshakespeare/input.txt`. Without it the text is the standard library.

Protocol. A small Qwen3-shaped float base is trained on one text (--base-data) and on the first half of the training
text of another (--data), with its own byte-level BPE, and kept: a model of wider text that has met the domain. Every
arm starts from it and is fine-tuned on the second half for the same number of steps, with the same batches in the
same order for a seed, the same optimizer, clipping and shape of the schedule. The peak rate is the best of one grid
in shorter runs on a seed that is used for nothing else: from the twin's rate on, neighbours are tried until the best
lies between two worse ones; arms that differ in sub-norms, pure distillation or the start have their own, those that
differ in anything else share one. A run is judged at its best checkpoint, chosen on a part of the validation text:
its loss over all of that text in float32, and KL(float base || arm) and KL(float twin || arm) per token. There is no
third split: both choices see the validation text, for all arms alike. The twin is the float base fine-tuned for the
same steps; as a teacher or as a start it costs its own steps once more, which the seconds of a student do not hold.
The best recipe is the best trained arm; the best that does not start from the twin is told beside it. Seeds differ in
batches; the base is one.

An arm is a name with ingredients: base and float (no conversion), naive (the twin, converted and not trained), ste
(all at once) and lambda (warm-up over 40 % of the steps), then any of +subnorms +distill (KL to the twin alone)
+mixdistill (half labels, half KL to the twin) +twin (starts from it instead of the base) +rotation +calibrated +g64
+g256 (groups of 128 otherwise) +tables (embedding and head too). Each result is added to --work-dir/results.jsonl at
once: a benchmark that was killed loses the run in flight, and two of them, with --only or --seeds in another order,
share the work.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import hashlib
import json
import math
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "src")]

from finetune_figures import default_arms, effects, figures_of, ingredients_of, rate_arm, table  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor, nn

    from finetune_training import Ingredients, Plan

DATASETS = ("wikitext2", "tinyshakespeare", "stdlib")
LEARNING_RATES = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 16e-3)
SAMPLE_BATCH = 8  # windows of one batch of samples
TUNING_SEED = 0
SHAPE: dict[str, Any] = {
    "hidden_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 768,
    "max_position_embeddings": 256,
}
QUICK_SHAPE = SHAPE | {"hidden_size": 64, "num_hidden_layers": 2, "head_dim": 16, "intermediate_size": 256}
QUICK = {"steps": 40, "tune_steps": 20, "base_steps": 200, "vocab_size": 512, "calibration_windows": 32}


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


def main() -> None:
    arguments = parse_arguments()
    import torch

    torch.set_num_threads(1)
    runs = Runs(arguments, *prepare(arguments))
    arms = arguments.only
    tuned_arms = list(dict.fromkeys(rate_arm(arm) for arm in ["float", *arms] if ingredients_of(arm).trains))
    tunes = len(arguments.lrs) > 1
    finals = arguments.steps * len(arguments.seeds) * sum(ingredients_of(arm).trains for arm in arms)
    runs.total_steps = finals + tunes * len(tuned_arms) * 3 * arguments.tune_steps  # an arm takes 3 or more
    rates: dict[str, float] = {}
    for arm in tuned_arms:
        rates[arm] = tune(runs, arm, rates, arguments) if tunes else arguments.lrs[0]
    # Seed by seed, so that a benchmark that is cut short still holds complete comparisons.
    samples = [runs.result(job_of(runs, arm, rates, seed, arguments.steps)) for seed in arguments.seeds for arm in arms]
    figures, best = figures_of(samples)
    print(table(samples, figures), *effects(samples), sep="\n")
    if arguments.quick:
        print("quick: nothing is recorded")
        return
    record(arguments, rates, figures, best, samples, list(runs.results.values()))


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="folder with wikitext-2/ and tinyshakespeare/")
    parser.add_argument(
        "--base-data", choices=DATASETS, help="wider text of the base; wikitext2, stdlib without a folder"
    )
    parser.add_argument(
        "--data", choices=DATASETS, help="text of fine-tuning; tinyshakespeare, stdlib without a folder"
    )
    parser.add_argument("--only", nargs="+", metavar="ARM", help="arms instead of all; float and ste are always there")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--lrs", nargs="+", type=float, default=list(LEARNING_RATES), help="one rate: no tuning")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--tune-steps", type=int, default=120)
    parser.add_argument("--base-steps", type=int, default=1500)
    parser.add_argument("--base-lr", type=float, default=8e-3)
    parser.add_argument("--vocab-size", type=int, default=2048)
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="muon", help="of fine-tuning")
    parser.add_argument("--calibration-windows", type=int, default=256, help="of 128 tokens")
    parser.add_argument("--work-dir", type=Path, default=HERE.parent / "runs" / "finetune")
    parser.add_argument("--quick", action="store_true", help="a minute, to see that it works; numbers mean little")
    arguments = parser.parse_args(argv)
    has_folder = arguments.data_dir is not None
    arguments.base_data = arguments.base_data or ("wikitext2" if has_folder else "stdlib")
    arguments.data = arguments.data or ("tinyshakespeare" if has_folder else "stdlib")
    if not has_folder and {arguments.base_data, arguments.data} != {"stdlib"}:
        parser.error("--data-dir is needed for wikitext2 and tinyshakespeare")
    try:
        chosen = dict.fromkeys(arguments.only or default_arms())
        arguments.only = [arm for arm in dict.fromkeys(["base", "float", "ste", *chosen]) if ingredients_of(arm)]
    except ValueError as error:
        parser.error(f"--only: {error}")
    arguments.shape = QUICK_SHAPE if arguments.quick else SHAPE
    if arguments.quick:
        vars(arguments).update(QUICK, lrs=[2e-3], seeds=[1])
    return arguments


def prepare(arguments: argparse.Namespace) -> tuple[Any, Texts]:
    """The float base, trained when the work folder does not hold it yet, and the tokens of the fine-tuning text."""
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    from quality_texts import texts

    data_dir = None if arguments.data_dir is None else str(arguments.data_dir)
    whole, validation = texts(arguments.data, data_dir)
    met, text = whole[: len(whole) // 2], whole[len(whole) // 2 :]
    base_text = met if arguments.base_data == arguments.data else texts(arguments.base_data, data_dir)[0] + met
    folder = arguments.work_dir / f"base_{base_key(arguments)}"
    if not folder.is_dir():
        train_base(arguments, base_text, validation, folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model: Any = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    train_N, validation_N = (torch.tensor(tokenizer.encode(t).ids) for t in (text, validation))
    return model.eval(), Texts(train_N, validation_N, len(validation.encode()), len(validation.split()))


def base_key(arguments: argparse.Namespace) -> str:
    """What decides the base, as a short name."""
    names = ("base_data", "data", "base_steps", "base_lr", "vocab_size", "shape")
    told = {name: getattr(arguments, name) for name in names}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:8]


def train_base(arguments: argparse.Namespace, text: str, validation: str, folder: Path) -> None:
    """Train the float base with Muon and keep model and tokenizer; the folder appears when it is whole."""
    import torch

    from finetune_training import Plan, make_float_model, train
    from onebit.data import train_tokenizer

    made = train_tokenizer([text[i : i + 10_000] for i in range(0, len(text), 10_000)], arguments.vocab_size)
    train_N, validation_N = (torch.tensor(made.tokenizer.encode(t).ids) for t in (text, validation))
    torch.manual_seed(0)
    model: Any = make_float_model(arguments.shape, made.vocab_size)
    plan = Plan(learning_rate=arguments.base_lr, steps=arguments.base_steps, seed=0, weight_decay=0.1)
    train(model, train_N, validation_N, plan, say=lambda *told: say(f"base on {arguments.base_data}", *told))
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    made.tokenizer.save(str(partial / "tokenizer.json"))
    partial.rename(folder)


class Runs:
    """Runs jobs, keeps each result at once, and says how far it is."""

    def __init__(self, arguments: argparse.Namespace, base: Any, texts: Texts) -> None:
        self.arguments, self.base, self.texts = arguments, base, texts
        self.file = arguments.work_dir / "results.jsonl"
        self.results: dict[str, dict[str, Any]] = {}
        self.total_steps = self.done_steps = self.fresh_steps = 0
        self.began = time.monotonic()
        arguments.work_dir.mkdir(parents=True, exist_ok=True)
        self.kept = read_lines(self.file)
        self.starts: dict[str, tuple[Any, Any, float]] = {}
        names = ("data", "optimizer", "calibration_windows")
        told = {name: getattr(arguments, name) for name in names} | {"base": base_key(arguments)}
        self.context = json.dumps(told, sort_keys=True)

    def twin_path(self, name: str) -> Path:
        """Where the weights of a fine-tuned float run are."""
        return self.arguments.work_dir / "twins" / f"{name}.safetensors"

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


def read_lines(path: Path) -> dict[str, dict[str, Any]]:
    """Name -> result of the lines that are whole; a kill can leave the last one cut."""
    found: dict[str, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            result = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[result["name"]] = result
    return found


def add_line(path: Path, result: dict[str, Any]) -> None:
    """Append a result; a cut line before it is ended first."""
    is_cut = path.is_file() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write(("\n" if is_cut else "") + json.dumps(result) + "\n")
        file.flush()
        os.fsync(file.fileno())


def record(
    arguments: argparse.Namespace,
    rates: dict[str, float],
    figures: dict[str, float],
    best: str,
    samples: list[dict[str, Any]],
    runs: list[dict[str, Any]],
) -> None:
    from finetune_figures import draw
    from record import write_result

    hidden = {"data_dir", "work_dir", "quick", "only"}
    config = {
        "protocol": (__doc__ or "").split("Protocol. ")[1].replace("\n\n", "\n").replace("\n", " ").strip(),
        **{name: value for name, value in vars(arguments).items() if name not in hidden},
        "arms": arguments.only,
        "learning_rates": rates,
        "best_recipe": best,
    }
    finals = {sample["name"] for sample in samples}
    tuning = [run for run in runs if run["name"] not in finals]
    path = write_result("finetune", config, figures, {"samples": samples, "tuning": tuning, "notes": effects(samples)})
    draw(samples, path.with_suffix(".png"))
    print(f"written: {path.name} and its picture")


if __name__ == "__main__":
    main()
