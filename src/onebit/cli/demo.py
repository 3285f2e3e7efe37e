"""`onebit demo`: the whole product in a few minutes: train, export, verify, evaluate, write, report.

Each step leaves its result in the output folder and is skipped when it is there already, so a demo that was stopped
goes on where it was: training resumes from its checkpoint by itself, all later steps take seconds.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onebit.errors import OnebitError

if TYPE_CHECKING:
    from onebit.engine import Model
    from onebit.eval.evaluate import Evaluation
    from onebit.eval.verify import VerifyReport
    from onebit.formats.onebit_file import OneBitFile

__all__ = ["demo"]

# The shape: as large as two cores can teach something in four minutes. In so few steps relu squared without gates and
# without sub-norms learns fastest of those tried, and Muon faster than AdamW (benchmarks/LOG.md).
SHAPE: dict[str, Any] = {
    "hidden_size": 256,
    "num_layers": 4,
    "num_heads": 4,
    "intermediate_size": 1024,
    "use_swiglu": False,
    "use_sub_norm": False,
    "max_seq_len": 256,
}
VOCABULARY = 2048
PROMPTS = ("def read_lines(path):\n", "class Parser:\n", "import os\nimport sys\n\n", "    def __init__(self, ")
VALIDATION_SHARE = 0.02
EVAL_TOKENS = 16_384


def demo(
    output_dir: Annotated[Path, typer.Option("--output-dir", help="Where everything is written.")] = Path("demo"),
    minutes: Annotated[float, typer.Option("--minutes", min=0.05, help="How long to train.")] = 4.0,
    max_steps: Annotated[
        int | None, typer.Option("--max-steps", min=1, help="Train so many steps instead of --minutes.")
    ] = None,
    data: Annotated[
        str, typer.Option("--data", help="Text to train on: stdlib, a file, a folder or a data set's name.")
    ] = "stdlib",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of training and of the sampled text.")] = 42,
) -> None:
    """Train a small ternary model, export it, run it, and write a report with pictures.

    Needs the extra 'train'. Can be stopped and run again: it goes on where it was.
    """
    run = _Run(output_dir, minutes, max_steps, data, seed, time.monotonic())
    _quieten()
    _train(run)
    file = _export(run)
    report = _verify(run)
    result = _evaluate(run)
    model = _open(run)
    samples = _write_page(run, model)
    page = _report(run, file, model, report, result, samples)
    _say_what_next(run, page, samples, result)


@dataclass(frozen=True)
class _Run:
    folder: Path
    minutes: float
    max_steps: int | None
    data: str
    seed: int
    started: float

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    @property
    def file(self) -> Path:
        return self.folder / "model.1bit"

    def say(self, line: str) -> None:
        passed = round(time.monotonic() - self.started)
        typer.echo(f"[{passed // 60}:{passed % 60:02d}] {line}")


def _quieten() -> None:
    """The libraries' own progress bars flash by and say nothing; ours say what is happening."""
    from onebit.errors import MissingExtraError

    try:
        from transformers.utils import logging
    except ModuleNotFoundError as missing:
        raise MissingExtraError("train", "onebit demo") from missing
    logging.disable_progress_bar()


def _train(run: _Run) -> None:
    """Train, resume, or find that it is done."""
    if _manifest(run) is not None:
        run.say(f"already trained: {run.checkpoint} (remove the folder to start anew)")
        return
    from onebit.train import TrainSettings, train

    length = f"{run.max_steps} steps" if run.max_steps else f"about {run.minutes:g} minutes"
    run.say(f"training a ternary model on {run.data}, {length}; Ctrl-C stops, the same command goes on")
    limit: dict[str, Any] = {"max_steps": run.max_steps} if run.max_steps else {"max_minutes": run.minutes}
    outcome = train(
        TrainSettings(
            data=run.data,
            output_dir=run.checkpoint,
            preset="bitnet",
            overrides=dict(SHAPE),
            vocab_size=VOCABULARY,
            val_fraction=VALIDATION_SHARE,
            batch_size=4,
            optimizer="muon",
            lr=4e-3,
            lr_decay="linear",
            lr_warmup_steps=40,
            bf16=_multiplies_bfloat16(),
            save_every=200,
            keep_checkpoints=1,
            log_every=10,
            eval_every=250,
            seed=run.seed,
            device="cpu",
            **limit,
        )
    )
    if not outcome.complete:
        typer.echo("stopped; run the same command again to go on from here", err=True)
        raise typer.Exit(128 + (outcome.signal or 0))


def _multiplies_bfloat16() -> bool:
    """True where the processor itself multiplies bfloat16: twice as fast there, slower than float32 elsewhere."""
    import torch

    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # absent from older torch
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16"))


def _manifest(run: _Run) -> dict[str, Any] | None:
    """The manifest of a finished training run in the folder, or None."""
    path = run.checkpoint / "training_manifest.json"
    if not path.is_file() or not (run.checkpoint / "model.safetensors").is_file():
        return None
    manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return manifest if manifest.get("status") == "complete" else None


def _train_seconds(metrics: list[dict[str, float]], tokens: int) -> float:
    """Seconds of training, from the logged speeds: right for a run that was stopped and resumed, too."""
    speeds = [entry["tokens_per_second"] for entry in metrics if entry.get("tokens_per_second")]
    return tokens * sum(1 / speed for speed in speeds) / len(speeds) if speeds else 0.0


def _export(run: _Run) -> OneBitFile:
    from onebit.cli.progress import ProgressLine
    from onebit.eval.forms import open_checkpoint
    from onebit.eval.tables_cost import with_tables_cost
    from onebit.formats.checkpoint import from_checkpoint
    from onebit.formats.onebit_file import read, write

    checkpoint, line = open_checkpoint(run.checkpoint), ProgressLine("measuring embedding and head", "windows")
    file, cost = with_tables_cost(from_checkpoint(run.checkpoint, pack_mode="ternary"), checkpoint, progress=line)
    size = write(run.file, file)
    run.say(f"exported {run.file}, {size / 1e6:.2f} MB; {cost}")
    return read(run.file)


def _verify(run: _Run) -> VerifyReport:
    from onebit.eval.verify import verify

    report = verify(run.checkpoint, run.file)
    if not report.passed:
        raise OnebitError(f"{run.file} differs from the checkpoint: {'; '.join(report.reasons)}")
    run.say(
        "verified: the file is the same model as the checkpoint "
        f"(largest difference {report.max_relative:.1e} of the largest logit)"
    )
    return report


def _evaluate(run: _Run) -> Evaluation:
    """Score the text that was held out of training, through the engine."""
    from onebit.cli.progress import ProgressLine
    from onebit.data import open_split
    from onebit.eval.evaluate import evaluate
    from onebit.eval.forms import open_form

    held_out = open_split(run.data, val_fraction=VALIDATION_SHARE).validation
    assert held_out is not None
    text = "".join(piece.text for piece in held_out.pieces())
    result = evaluate(open_form(run.file), text, max_tokens=EVAL_TOKENS, progress=ProgressLine("eval", "tokens"))
    quality = result.quality
    run.say(f"evaluated: {quality.bits_per_byte:.3f} bits per byte on held-out text, through the engine")
    return result


def _open(run: _Run) -> Model:
    from onebit.engine import Model

    return Model(run.file)


def _write_page(run: _Run, model: Model) -> list[tuple[str, str]]:
    """A page of text: what the model makes of a few beginnings, seeded."""
    samples = []
    for index, prompt in enumerate(PROMPTS):
        pieces = model.generate(
            prompt,
            max_new_tokens=200,
            temperature=0.7,
            top_k=40,
            top_p=0.9,
            repetition_penalty=1.05,
            seed=run.seed + index,
        )
        samples.append((prompt, "".join(pieces).rstrip()))
    page = "\n\n\n".join(prompt + text for prompt, text in samples)
    (run.folder / "sample.txt").write_text(page + "\n", encoding="utf-8")
    return samples


def _report(
    run: _Run,
    file: OneBitFile,
    model: Model,
    report: VerifyReport,
    result: Evaluation,
    samples: list[tuple[str, str]],
) -> Path:
    from datetime import UTC, datetime

    from onebit.eval import demo_measure as measure
    from onebit.eval.demo_report import DemoResult, render
    from onebit.eval.pace import engine_pace, torch_pace
    from onebit.eval.record import commit, machine, versions
    from onebit.formats.checkpoint import load_model
    from onebit.train.metrics_log import read_metrics

    run.say("measuring speed")
    ids = model.tokenizer.encode("".join(prompt + text for prompt, text in samples)).ids[:128]
    writing, reading = engine_pace(model, ids)
    in_torch = torch_pace(load_model(run.checkpoint), ids)
    manifest = _manifest(run) or {}
    metrics, tokens = read_metrics(run.checkpoint), int(manifest.get("tokens_seen", 0))
    float16, stored = measure.sizes(file, run.file)
    here, description = machine(), file.description
    content = DemoResult(
        corpus=_corpus(run),
        num_parameters=file.num_weights,
        num_ternary=measure.num_ternary(file),
        shape=(
            f"BitNet-style decoder: {description.num_layers} layers of {description.hidden_size}, vocabulary "
            f"{description.vocab_size}, context {description.max_seq_len}"
        ),
        steps=int(manifest.get("training_steps", 0)),
        train_seconds=_train_seconds(metrics, tokens),
        train_tokens=tokens,
        losses=[(int(entry["step"]), entry["loss"]) for entry in metrics if "loss" in entry],
        held_out_losses=[(int(entry["step"]), entry["eval_loss"]) for entry in metrics if "eval_loss" in entry],
        bits_per_byte=result.quality.bits_per_byte,
        perplexity=result.quality.perplexity,
        shares=measure.code_shares(file),
        float16_mb=float16,
        file_mb=stored,
        bits_per_weight=measure.bits_per_ternary_weight(file),
        tokens_per_second=[
            ("engine, writing", writing),
            ("engine, reading a prompt", reading),
            ("PyTorch, writing", in_torch),
        ],
        kernels=_kernels(model),
        verify_max=report.max_relative,
        verify_agreement=report.greedy_agreement,
        verify_passed=report.passed,
        samples=samples,
        next_commands=_next_commands(run),
        machine=f"{here['processor']}, {here['cores']} cores, {here['memory_gib']} GiB",
        versions=", ".join(f"{name} {version}" for name, version in versions().items()),
        commit=commit() or "unknown",
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        seed=run.seed,
    )
    path = run.folder / "report.html"
    path.write_text(render(content), encoding="utf-8")
    return path


def _corpus(run: _Run) -> str:
    return "the Python standard library's own sources" if run.data == "stdlib" else run.data


def _kernels(model: Model) -> str:
    """Which kernel multiplies the ternary weights, and why that one."""
    chosen = [line.partition(": ")[2] for line in model.kernels() if line.startswith("linear ternary_t16 int8")]
    return f"Kernel of the ternary weights: {chosen[0]}." if chosen else ""


def _next_commands(run: _Run) -> list[tuple[str, str]]:
    onebit, file = ".venv/bin/onebit" if Path(".venv/bin/onebit").exists() else "onebit", run.file
    return [
        ("Let it write more", f"{onebit} generate {file} 'class Reader:'"),
        ("See what is in the file", f"{onebit} info {file}"),
        ("Train longer, into another folder", f"{onebit} demo --minutes 30 --output-dir demo-long"),
        ("Train on your own text", f"{onebit} demo --data FOLDER --output-dir demo-own"),
        ("Choose everything yourself", f"{onebit} train --help"),
    ]


def _say_what_next(run: _Run, page: Path, samples: list[tuple[str, str]], result: Evaluation) -> None:
    prompt, text = samples[0]
    typer.echo("\n" + "\n".join(f"    {line}" for line in (prompt + text).splitlines()[:16]) + "\n    ...\n")
    run.say(f"done. Open {page} in a browser; the page of text is in {run.folder / 'sample.txt'}")
    typer.echo("\nWhat to try next:")
    for why, command in _next_commands(run):
        typer.echo(f"  {why}:\n    {command}")
