"""`onebit memory`: what training a model takes, by kind and method, and what fits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from onebit.train.memory import Memory
    from onebit.train.memory_model import ModelOutline

__all__ = ["memory"]

_BUDGETS = (8, 16, 24, 80)  # GB
_USUAL_LENGTH = 2048

_METHOD, _STEP = "Training", "Step"


class CodesGiven(StrEnum):
    """What pure training holds."""

    ternary = "ternary"
    binary = "binary"


def memory(
    model: Annotated[
        str, typer.Argument(metavar="CONFIG|MODEL", help="A config.json, a checkpoint folder, or a preset's name.")
    ],
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            help="Only this one; repeatable: float-fp32, float-bf16, hybrid-fp32, hybrid-bf16, hybrid-8bit, lora, "
            "pure-int8, pure-int4, pure-none.",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    codes: Annotated[
        CodesGiven | None,
        typer.Option(
            help="Of pure methods: 2 bits a weight or 1 [default: the configuration's].", rich_help_panel=_METHOD
        ),
    ] = None,
    granularity: Annotated[
        str | None,
        typer.Option(
            help="Of the scales, as sft's: per_tensor, per_row or per_group [default: sft's].", rich_help_panel=_METHOD
        ),
    ] = None,
    group_size: Annotated[int | None, typer.Option(min=1, help="Of scales per group.", rich_help_panel=_METHOD)] = None,
    freeze_embeddings: Annotated[
        bool, typer.Option("--freeze-embeddings", help="Train neither embeddings nor head.", rich_help_panel=_METHOD)
    ] = False,
    lambda_warmup_frac: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="As sft's: above 0, hybrid methods are counted on their way from float to ternary. Configurations of "
            "onebit train have their own.",
            rich_help_panel=_METHOD,
        ),
    ] = 0.4,
    lora_r: Annotated[int, typer.Option(min=1, help="Rank of the adapters of lora.", rich_help_panel=_METHOD)] = 16,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences in a batch.", rich_help_panel=_STEP)] = 1,
    length: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens in a sequence [default: 2048, or what the model has].", rich_help_panel=_STEP),
    ] = None,
    accumulation_steps: Annotated[
        int, typer.Option(min=1, help="Batches a step; above 1, gradients are summed.", rich_help_panel=_STEP)
    ] = 1,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Of every layer.", rich_help_panel=_STEP)
    ] = False,
    bf16: Annotated[
        bool,
        typer.Option("--bf16", help="bfloat16 autocast where the weights are float32.", rich_help_panel=_STEP),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON, in bytes.")] = False,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw stacked bars here (.png, .svg, .pdf).")] = None,
) -> None:
    """Count the bytes of training: weights, gradients, optimizer, counters, activations; and what fits in 8 to 80 GB.

    Nothing is trained or loaded: a step is taken without values. Kinds are added up, so the sum is the peak of a run
    with gradient accumulation, and a little more than that of a run without. 1 GB is 10^9 bytes.
    """
    from typing import get_args

    from onebit.errors import ConfigError
    from onebit.quant import Granularity
    from onebit.quant.spec import check_name
    from onebit.train.memory import largest_fit, memory_of
    from onebit.train.memory_methods import METHODS, method_named
    from onebit.train.memory_model import outline_of
    from onebit.train.memory_picture import check_picture, draw_memory

    methods = METHODS if method is None else [method_named(name) for name in dict.fromkeys(method)]
    if plot is not None:
        check_picture(plot)
    if granularity is not None:
        check_name("--granularity", granularity, get_args(Granularity))
    outline = outline_of(model, granularity=granularity, group_size=group_size)
    length = length or min(_USUAL_LENGTH, outline.longest)
    if length > outline.longest:
        raise ConfigError(f"--length is {length}, but the model has {outline.longest} positions; give at most that")
    accumulate = accumulation_steps > 1

    counted: list[tuple[Memory, dict[int, tuple[int, int] | None]]] = []
    for each in methods:
        step = outline.step(
            each,
            checkpointing=gradient_checkpointing,
            accumulate=accumulate,
            freeze_tables=freeze_embeddings,
            bf16=bf16,
            lambda_warmup=lambda_warmup_frac > 0,
            rank=lora_r,
        )

        def at(batch: int, length: int, method: Any = each, step: Any = step) -> Memory:
            return memory_of(
                outline.parameters,
                method,
                step=step,
                batch=batch,
                length=length,
                codes=outline.codes if codes is None else codes.value,
                freeze_tables=freeze_embeddings,
                accumulate=accumulate,
                rank=lora_r,
            )

        def total(batch: int, length: int, at: Callable[[int, int], Memory] = at) -> int:
            return at(batch, length).total

        fits = {budget: largest_fit(total, budget * 1e9, length) for budget in _BUDGETS}
        counted.append((at(batch_size, length), fits))

    title = f"{model}: {batch_size} x {length} tokens" + (", checkpointed" if gradient_checkpointing else "")
    if json:
        _print_json(model, outline, counted)
    else:
        typer.echo(f"{title}; {_described(outline)}")
        _print_tables([memory for memory, _ in counted], [fits for _, fits in counted], length)
    if plot is not None:
        draw_memory([memory for memory, _ in counted], plot, title, [budget * 1e9 for budget in _BUDGETS])
        typer.echo(f"picture: {plot}", err=True)


def _described(outline: ModelOutline) -> str:
    parameters = outline.parameters
    table = sum(parameters.embeddings)
    head = "tied" if outline.tied else f"{sum(parameters.head) / 1e6:,.1f} M"
    return (
        f"{outline.layers} layers, {parameters.weights / 1e6:,.1f} M {outline.codes} weights, "
        f"embeddings {table / 1e6:,.1f} M, head {head}"
    )


def _print_tables(memories: Sequence[Memory], fits: Sequence[dict[int, tuple[int, int] | None]], length: int) -> None:
    from onebit.train.memory import KINDS

    unit, name = (1e9, "GB") if max(memory.total for memory in memories) >= 1e9 else (1e6, "MB")
    kinds = [kind for kind in KINDS if any(memory.by_kind()[kind] for memory in memories)]
    rows = [
        [memory.method, *(f"{memory.by_kind()[kind] / unit:,.2f}" for kind in kinds), f"{memory.total / unit:,.2f}"]
        for memory in memories
    ]
    _print_table([name, *kinds, "sum"], rows)
    typer.echo("")
    rows = [
        [
            memory.method,
            f"{memory.bytes_per_weight:.3f}",
            *("-" if fit is None else f"{fit[0]:,} x {fit[1]:,}" for fit in each.values()),
        ]
        for memory, each in zip(memories, fits, strict=True)
    ]
    _print_table(["batch x length that fits", "bytes/weight", *(f"{budget} GB" for budget in _BUDGETS)], rows)
    typer.echo(f"bytes/weight: what stays between steps for each quantised weight; lengths up to {length:,}")


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        typer.echo("  ".join(cells).rstrip())


def _print_json(
    model: str, outline: ModelOutline, counted: Sequence[tuple[Memory, dict[int, tuple[int, int] | None]]]
) -> None:
    from dataclasses import asdict
    from json import dumps

    parameters = outline.parameters
    described = {
        "model": model,
        "layers": outline.layers,
        "codes": outline.codes,
        "head_tied": outline.tied,
        "parameters": {
            "matrices": parameters.weights,
            "ordinary": sum(parameters.ordinary),
            "embeddings": sum(parameters.embeddings),
            "head": sum(parameters.head),
        },
    }
    methods = [
        {
            "method": memory.method,
            "batch": memory.batch,
            "length": memory.length,
            "bytes": memory.by_kind(),
            "sum": memory.total,
            "bytes_per_weight": memory.bytes_per_weight,
            "parts": {name: asdict(part) for name, part in memory.parts.items()},
            "fits": {f"{budget} GB": fit for budget, fit in fits.items()},
        }
        for memory, fits in counted
    ]
    typer.echo(dumps(described | {"methods": methods}, indent=2))
