"""How much quality do 1.58 and 1 bit cost? Ternary and binary models beside a float twin, trained from scratch.

    python benchmarks/quality.py --data-dir DIR [--dataset wikitext2 tinyshakespeare stdlib] [--quick]

DIR holds `wikitext-2/{test,valid}.txt` and `tinyshakespeare/input.txt`. Only `stdlib` needs no folder.

Protocol. WikiText-2: train on test.txt, evaluate on valid.txt (no train split is at hand). tinyshakespeare: the first
90 % and the last 10 %. A byte-level BPE is trained on the training text. All methods share the shape, the initial
weights of a seed, the batches and their order, the optimizer, weight decay, clipping, the shape of the schedule and
the number of steps. Each method has its own peak learning rate for each text: the best of one grid, the same grid for
all, on a seed that is used for nothing else, in shorter runs. Every run is judged at its best checkpoint, chosen on a
fixed part of the validation text; its loss is then taken over the whole validation text in float32. There is no third
split: both choices see the validation text, for every method alike, which flatters all losses a little.

Finished runs are kept in --runs-dir, so a benchmark that was killed goes on where it stopped and loses at most the runs
in flight.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import multiprocessing
import os
import statistics
import sys
import time
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "src")]

METHODS = {"float": "none", "ternary": "absmean", "binary": "binary"}  # method -> OneBitConfig.quantizer
# Muon's usual rates. With AdamW every method ends higher, the float twin most of all (LOG.md).
LEARNING_RATES = (2e-3, 4e-3, 8e-3, 1.6e-2)
OPTIMIZERS = ("muon", "adamw")
TUNING_SEED = 0
# BitNet's decoder without its sub-norms: at this length of training every method is worse with them (LOG.md).
SHAPE: dict[str, Any] = {
    "hidden_size": 256,
    "num_layers": 3,
    "num_heads": 4,
    "intermediate_size": 1024,
    "use_swiglu": False,
    "use_sub_norm": False,
    "max_seq_len": 128,
}
# Best published numbers of the framework whose feature list onebit follows: WikiText-2, 50,000 steps, per token.
PUBLISHED_WIKITEXT2 = {"published_ppl_per_token_binary": 8.4e10, "published_ppl_per_token_ternary": 5288.0}


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training run, plain enough to be sent to another process and to name a file."""

    dataset: str
    method: str
    learning_rate: float
    seed: int
    steps: int
    vocab_size: int
    optimizer: str
    data_dir: str | None
    judge: bool  # also measure the whole validation text; tuning needs only the loss that selects

    @property
    def name(self) -> str:
        key = json.dumps([dataclasses.asdict(self) | {"data_dir": None}, SHAPE], sort_keys=True)
        short = hashlib.sha256(key.encode()).hexdigest()[:6]
        return f"{self.dataset}_{self.method}_lr{self.learning_rate:g}_{self.steps}_seed{self.seed}_{short}"


def main() -> None:
    arguments = parse_arguments()
    runs = Runner(arguments.runs_dir, arguments.workers)
    lrs = arguments.lrs
    tuning = {
        (d, m): [make_job(arguments, d, m, lr, TUNING_SEED, arguments.tune_steps, judge=False) for lr in lrs]
        for d in arguments.dataset
        for m in arguments.methods
    }
    finals = len(tuning) * len(arguments.seeds) * arguments.steps
    runs.announce(sum(job.steps for jobs in tuning.values() for job in jobs if len(lrs) > 1) + finals)
    if len(lrs) > 1:
        runs.run([job for jobs in tuning.values() for job in jobs])
    best_lr = {key: lrs[0] if len(lrs) == 1 else tuned(jobs, runs) for key, jobs in tuning.items()}
    # Seed by seed, so that a benchmark that is cut short still holds complete pairs.
    final_jobs = [
        make_job(arguments, d, m, lr, seed, arguments.steps, judge=True)
        for seed in arguments.seeds
        for (d, m), lr in best_lr.items()
    ]
    runs.run(final_jobs)
    samples = [runs.results[job.name] for job in final_jobs]
    figures = summarize(samples, arguments)
    print(table(samples, figures, arguments))
    if arguments.quick:
        print("quick: nothing is recorded")
        return
    tuning_samples = [runs.results[job.name] for jobs in tuning.values() for job in jobs if job.name in runs.results]
    record(arguments, best_lr, figures, samples, tuning_samples)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="folder with wikitext-2/ and tinyshakespeare/")
    parser.add_argument("--dataset", "--data", nargs="+", choices=("wikitext2", "tinyshakespeare", "stdlib"))
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--lrs", nargs="+", type=float, default=list(LEARNING_RATES), help="one rate: no tuning")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--tune-steps", type=int, default=150)
    parser.add_argument("--vocab-size", type=int, default=2048)
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="muon")
    parser.add_argument("--runs-dir", type=Path, default=HERE.parent / "runs" / "quality")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes of one thread each")
    parser.add_argument("--quick", action="store_true", help="a minute, to see that it works; numbers mean nothing")
    arguments = parser.parse_args()
    if arguments.dataset is None:
        arguments.dataset = ["stdlib"] if arguments.data_dir is None else ["wikitext2", "tinyshakespeare"]
    if arguments.data_dir is None and arguments.dataset != ["stdlib"]:
        parser.error("--data-dir is needed for wikitext2 and tinyshakespeare")
    if arguments.quick:
        arguments.steps, arguments.lrs, arguments.seeds = 40, [2e-3], [1]
    return arguments


def make_job(
    arguments: argparse.Namespace, dataset: str, method: str, lr: float, seed: int, steps: int, *, judge: bool
) -> Job:
    data_dir = None if arguments.data_dir is None else str(arguments.data_dir)
    return Job(
        dataset=dataset,
        method=method,
        learning_rate=lr,
        seed=seed,
        steps=steps,
        vocab_size=arguments.vocab_size,
        optimizer=arguments.optimizer,
        data_dir=data_dir,
        judge=judge,
    )


class Runner:
    """Runs jobs side by side, keeps their results, and says how far it is."""

    def __init__(self, folder: Path, workers: int) -> None:
        self.folder, self.workers = folder, workers
        self.results: dict[str, dict[str, Any]] = {}
        self.total_steps = self.done_steps = self.fresh_steps = 0
        self.began = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)

    def announce(self, steps: int) -> None:
        self.total_steps = steps

    def run(self, jobs: list[Job]) -> None:
        waiting = []
        for job in jobs:
            path = self.folder / f"{job.name}.json"
            if path.is_file():
                self.results[job.name] = json.loads(path.read_text(encoding="utf-8"))
                self.done_steps += job.steps
            else:
                waiting.append(job)
        # Processes rather than threads inside torch: matrices this small do not share well over cores.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self.workers, mp_context=context) as pool:
            futures: dict[Future[dict[str, Any]], Job] = {pool.submit(run_job, job): job for job in waiting}
            for future in as_completed(futures):
                job, result = futures[future], future.result()
                partial = self.folder / f"{job.name}.partial"
                partial.write_text(json.dumps(result), encoding="utf-8")
                partial.replace(self.folder / f"{job.name}.json")
                self.results[job.name] = result
                self.report(job, result)

    def report(self, job: Job, result: dict[str, Any]) -> None:
        self.done_steps += job.steps
        self.fresh_steps += job.steps
        pace = (time.monotonic() - self.began) / self.fresh_steps
        left = max(0.0, (self.total_steps - self.done_steps) * pace / 60)
        loss = result.get("loss", result["selection_loss"])
        print(
            f"{job.dataset} {job.method} lr {job.learning_rate:g} seed {job.seed} {job.steps} steps: "
            f"loss {loss:.4f} at step {result['best_step']}, {result['tokens_per_s']:.0f} tokens/s; "
            f"about {left:.0f} min left",
            flush=True,
        )


def run_job(job: Job) -> dict[str, Any]:
    """Train and judge one model; runs in a process of its own."""
    import torch

    from bare_training import Run, total_loss, train
    from onebit.eval.perplexity import summarize
    from onebit.models import OneBitConfig
    from quality_texts import texts, tokens

    torch.set_num_threads(1)
    train_text, validation_text = texts(job.dataset, job.data_dir)
    train_ids, validation_ids, vocab_size = tokens(train_text, validation_text, job.vocab_size)
    config = OneBitConfig.preset("bitnet", vocab_size=vocab_size, quantizer=METHODS[job.method], **SHAPE)
    config._attn_implementation = "eager"  # written out, it is twice as fast on a CPU for windows this short
    run = Run(
        config=config,
        learning_rate=job.learning_rate,
        steps=job.steps,
        seed=job.seed,
        optimizer=job.optimizer,
    )

    def say(step: int, train_loss: float, validation_loss: float) -> None:
        print(
            f"  {job.dataset} {job.method} lr {job.learning_rate:g} seed {job.seed} step {step}/{job.steps} "
            f"train {train_loss:.3f} validation {validation_loss:.3f}",
            flush=True,
        )

    trained = train(run, train_ids, validation_ids, say)
    quality: dict[str, Any] = {}
    if job.judge:
        nats = total_loss(trained.model, validation_ids, run.context)
        bytes_, words = len(validation_text.encode()), len(validation_text.split())
        quality = dataclasses.asdict(summarize(nats, len(validation_ids) - 1, bytes_, words))
    return {
        **{k: v for k, v in dataclasses.asdict(job).items() if k not in ("data_dir", "judge")},
        **quality,
        "selection_loss": min(trained.selection_losses),
        "best_step": trained.best_step,
        "curve_steps": trained.steps,
        "curve_train": [round(x, 4) for x in trained.train_losses],
        "curve_validation": [round(x, 4) for x in trained.selection_losses],
        "tokens_per_s": round(trained.tokens_per_s),
        "train_tokens": len(train_ids),
        "layer_weights": sum(p.numel() for n, p in trained.model.model.layers.named_parameters() if p.ndim == 2),
        "parameters": trained.model.num_parameters(),
    }


def tuned(jobs: list[Job], runs: Runner) -> float:
    """The learning rate of the run with the lowest validation loss."""
    best = min(jobs, key=lambda job: runs.results[job.name]["selection_loss"])
    print(f"{best.dataset} {best.method}: learning rate {best.learning_rate:g}", flush=True)
    return best.learning_rate


def summarize(samples: list[dict[str, Any]], arguments: argparse.Namespace) -> dict[str, float]:
    """Ratios of mean losses, and for each pair of text and method the mean over seeds."""
    figures: dict[str, float] = {}
    for dataset in arguments.dataset:
        by_method = {m: [s for s in samples if (s["dataset"], s["method"]) == (dataset, m)] for m in arguments.methods}
        losses = {m: [s["loss"] for s in runs] for m, runs in by_method.items()}
        for method in arguments.methods:
            if method != "float" and "float" in losses:
                pairs = [a / b for a, b in zip(losses[method], losses["float"], strict=True)]
                ratio = statistics.fmean(losses[method]) / statistics.fmean(losses["float"])
                figures[f"{method}_over_float_{dataset}"] = round(ratio, 5)
                figures[f"{method}_over_float_{dataset}_worst_seed"] = round(max(pairs), 5)
        for method, runs in by_method.items():
            name = f"{method}_{dataset}"
            figures[f"{name}_loss"] = round(statistics.fmean(losses[method]), 5)
            figures[f"{name}_loss_spread"] = round(max(losses[method]) - min(losses[method]), 5)
            figures[f"{name}_bits_per_byte"] = round(statistics.fmean(s["bits_per_byte"] for s in runs), 5)
            figures[f"{name}_ppl_per_word"] = round(
                statistics.geometric_mean(s["perplexity_per_word"] for s in runs), 1
            )
    if "wikitext2" in arguments.dataset:
        figures |= PUBLISHED_WIKITEXT2
    return figures


def table(samples: list[dict[str, Any]], figures: dict[str, float], arguments: argparse.Namespace) -> str:
    lines = [f"{'text':16} {'method':8} {'loss':>8} {'+-':>7} {'bits/byte':>9} {'ppl/word':>9} {'over float':>10}"]
    for dataset in arguments.dataset:
        for method in arguments.methods:
            name = f"{method}_{dataset}"
            ratio = figures.get(f"{method}_over_float_{dataset}")
            lines.append(
                f"{dataset:16} {method:8} {figures[name + '_loss']:8.4f} {figures[name + '_loss_spread']:7.4f} "
                f"{figures[name + '_bits_per_byte']:9.4f} {figures[name + '_ppl_per_word']:9.1f} "
                + (f"{ratio:10.4f}" if ratio is not None else "")
            )
    lines.append(f"{samples[0]['layer_weights']} weights in the layers, {len(arguments.seeds)} seeds")
    return "\n".join(lines)


def record(
    arguments: argparse.Namespace,
    best_lr: dict[tuple[str, str], float],
    figures: dict[str, float],
    samples: list[dict[str, Any]],
    tuning: list[dict[str, Any]],
) -> None:
    import torch  # noqa: F401  (the machine's description names a GPU only when torch is loaded)

    from bare_training import Run
    from quality_picture import draw_curves
    from record import write_result

    defaults = {f.name: f.default for f in dataclasses.fields(Run) if f.default is not dataclasses.MISSING}
    config = {
        "protocol": __doc__.split("Protocol. ")[1].split("\n\n")[0].replace("\n", " "),
        "preset": "bitnet",
        "shape": SHAPE,
        "vocab_size": arguments.vocab_size,
        "steps": arguments.steps,
        "tune_steps": arguments.tune_steps,
        "seeds": arguments.seeds,
        "learning_rate_grid": arguments.lrs,
        "learning_rates": {f"{d}_{m}": lr for (d, m), lr in best_lr.items()},
        "decay": "linear",
        "training": defaults | {"optimizer": arguments.optimizer},
        "layer_weights": samples[0]["layer_weights"],
    }
    path = write_result("quality", config, figures, {"samples": samples, "tuning": tuning})
    draw_curves(samples, path.with_suffix(".png"))
    print(f"written: {path.name} and its picture")


if __name__ == "__main__":
    main()
