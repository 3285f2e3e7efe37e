"""`onebit train`: train a 1-bit or 1.58-bit model on your text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from onebit.cli.pure_options import Pure, PureAccumulation, PureCounter, PureEta, PureFlipBudget
from onebit.errors import ConfigError

__all__ = ["train"]

_MODEL, _DATA, _OPTIMISER, _RUN, _MACHINE = "Model", "Text", "Optimiser", "Run", "Machine"


def train(
    data: Annotated[
        str,
        typer.Option(
            "--data",
            "--data-dir",
            help="Text to train on: stdlib, a file, a folder of .txt/.jsonl/.parquet, or a Hugging Face data set name.",
            rich_help_panel=_DATA,
        ),
    ],
    output_dir: Annotated[Path, typer.Option(help="Folder for the model and checkpoints.", rich_help_panel=_RUN)],
    config: Annotated[Path | None, typer.Option(help="The model's config.json.", rich_help_panel=_MODEL)] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="Instead of --config: bitnet (the default), seed, llama or qwen3.", rich_help_panel=_MODEL),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="Replace a field of the configuration; repeatable.",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    init_from: Annotated[
        Path | None, typer.Option(help="Start from this checkpoint's weights.", rich_help_panel=_MODEL)
    ] = None,
    bit_width_map: Annotated[
        Path | None,
        typer.Option(help="Levels of the matrices, as onebit search wrote them.", rich_help_panel=_MODEL),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="tokenizer.json or a folder with one; else one is trained.", rich_help_panel=_DATA),
    ] = None,
    vocab_size: Annotated[
        int | None, typer.Option(help="Size of the tokenizer that is trained here.", rich_help_panel=_DATA)
    ] = None,
    val_data: Annotated[str | None, typer.Option(help="Validation text, as --data.", rich_help_panel=_DATA)] = None,
    val_fraction: Annotated[
        float, typer.Option(help="Share held out when there is no validation text.", rich_help_panel=_DATA)
    ] = 0.05,
    text_column: Annotated[str, typer.Option(help="Column that holds the text.", rich_help_panel=_DATA)] = "text",
    cache_dir: Annotated[
        Path | None, typer.Option(help="Where tokens are kept [default: OUTPUT_DIR/cache].", rich_help_panel=_DATA)
    ] = None,
    streaming: Annotated[
        bool,
        typer.Option("--streaming", help="Tokenise on the fly, for text larger than the disk.", rich_help_panel=_DATA),
    ] = False,
    batch_size: Annotated[int, typer.Option(help="Blocks in a batch.", rich_help_panel=_OPTIMISER)] = 8,
    accumulation_steps: Annotated[int, typer.Option(help="Batches a step.", rich_help_panel=_OPTIMISER)] = 1,
    optimizer: Annotated[
        str,
        typer.Option(
            help="adamw, or muon: fewer steps for small models trained from scratch.", rich_help_panel=_OPTIMISER
        ),
    ] = "adamw",
    lr: Annotated[float, typer.Option(help="Peak learning rate.", rich_help_panel=_OPTIMISER)] = 1.5e-3,
    min_lr: Annotated[float, typer.Option(help="Learning rate at the end.", rich_help_panel=_OPTIMISER)] = 0.0,
    lr_decay: Annotated[
        str,
        typer.Option(
            help="cosine, linear, constant, or two-stage (BitNet: both lr and weight decay drop at half).",
            rich_help_panel=_OPTIMISER,
        ),
    ] = "cosine",
    lr_warmup_steps: Annotated[int, typer.Option(help="Steps of linear warm-up.", rich_help_panel=_OPTIMISER)] = 100,
    weight_decay: Annotated[
        float, typer.Option(help="On matrices; not on norms and embeddings.", rich_help_panel=_OPTIMISER)
    ] = 0.1,
    label_smoothing: Annotated[float, typer.Option(help="In training only.", rich_help_panel=_OPTIMISER)] = 0.0,
    grad_clip_max_norm: Annotated[
        float,
        typer.Option(
            "--grad-clip-max-norm",
            "--grad-clip",
            help="Largest gradient norm, 0 for none.",
            rich_help_panel=_OPTIMISER,
        ),
    ] = 1.0,
    pure: Pure = False,
    pure_counter: PureCounter = "int8",
    pure_accumulation: PureAccumulation = "int8",
    pure_eta: PureEta = None,
    pure_flip_budget: PureFlipBudget = None,
    max_steps: Annotated[int, typer.Option(help="Optimizer steps.", rich_help_panel=_RUN)] = 1000,
    max_minutes: Annotated[
        float | None,
        typer.Option(help="Measure a step and take as many as fit, instead of --max-steps.", rich_help_panel=_RUN),
    ] = None,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints, 0: none.", rich_help_panel=_RUN)] = 1000,
    keep_checkpoints: Annotated[int, typer.Option(help="Checkpoints kept.", rich_help_panel=_RUN)] = 2,
    log_every: Annotated[int, typer.Option(help="Steps between log lines.", rich_help_panel=_RUN)] = 100,
    eval_every: Annotated[
        int, typer.Option(help="Steps between evaluations, 0: at the end only.", rich_help_panel=_RUN)
    ] = 0,
    keep_best: Annotated[
        bool,
        typer.Option(
            "--keep-best", help="Hand on the model of the best evaluation, not the last.", rich_help_panel=_RUN
        ),
    ] = False,
    resume: Annotated[
        bool, typer.Option(help="Go on from the folder's last checkpoint, if it is this run's.", rich_help_panel=_RUN)
    ] = True,
    seed: Annotated[int, typer.Option(help="Of the weights and the order of the data.", rich_help_panel=_RUN)] = 42,
    report_to: Annotated[
        str,
        typer.Option(
            help="none, tensorboard, or wandb (offline unless WANDB_MODE says otherwise).", rich_help_panel=_RUN
        ),
    ] = "none",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.", rich_help_panel=_MACHINE)] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads.", rich_help_panel=_MACHINE)] = None,
    bf16: Annotated[bool, typer.Option("--bf16", help="bfloat16 autocast.", rich_help_panel=_MACHINE)] = False,
    compile: Annotated[bool, typer.Option("--compile", help="torch.compile.", rich_help_panel=_MACHINE)] = False,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, more time.", rich_help_panel=_MACHINE)
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.", rich_help_panel=_MACHINE)] = False,
) -> None:
    """Train a model; the folder can then be given to `onebit export`, `generate`, `chat` and `eval`.

    The same command goes on where a killed run stopped, to the same losses. Exit codes: 0 done, 2 something given is
    wrong, 143 or 130 stopped by SIGTERM or Ctrl-C after saving a checkpoint.
    """
    values = dict(locals())
    overrides = _overrides(values.pop("set_") or [])
    from onebit.train import TrainSettings
    from onebit.train import train as run

    result = run(TrainSettings(**values, overrides=overrides))
    if result.signal is not None:
        raise typer.Exit(128 + result.signal)


def _overrides(pairs: list[str]) -> dict[str, Any]:
    """Read `field=value` pairs; values are JSON where they parse as such, else text."""
    fields: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not (name and equals):
            raise ConfigError(f"--set {pair}: expected FIELD=VALUE, as --set hidden_size=256")
        try:
            fields[name.replace("-", "_")] = json.loads(text)
        except json.JSONDecodeError:
            fields[name.replace("-", "_")] = text
    return fields
