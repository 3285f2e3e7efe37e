"""`onebit search`: which bit-width each matrix gets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from onebit.search.report import SearchResult

__all__ = ["search"]

_MODEL, _BUDGET, _SEARCH, _HEALING, _MACHINE = "Model and text", "Budget", "Search", "Healing", "Machine"


def search(
    checkpoint: Annotated[
        Path,
        typer.Option(help="A folder of onebit train, or the model.safetensors in it.", rich_help_panel=_MODEL),
    ],
    val_data: Annotated[
        Path, typer.Option(help="Text that the model was not trained on, UTF-8.", rich_help_panel=_MODEL)
    ],
    output: Annotated[
        Path, typer.Option(help="The JSON to write; the rest goes into a folder beside it, NAME.search.")
    ] = Path("search_result.json"),
    model_config: Annotated[
        Path | None, typer.Option(help="config.json, when it is not the checkpoint's.", rich_help_panel=_MODEL)
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="tokenizer.json, when it is not the checkpoint's.", rich_help_panel=_MODEL)
    ] = None,
    context: Annotated[
        int | None, typer.Option(help="Tokens a window feeds [default: the model's].", rich_help_panel=_MODEL)
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens of the text to score.", rich_help_panel=_MODEL)] = 16384,
    max_size_mb: Annotated[
        float | None, typer.Option(help="Most that the exported file may have, in 10^6 bytes.", rich_help_panel=_BUDGET)
    ] = None,
    min_accuracy: Annotated[
        float,
        typer.Option(help="Least share of tokens that are the model's likeliest.", rich_help_panel=_BUDGET),
    ] = 0.0,
    max_evaluations: Annotated[int, typer.Option(help="Maps to measure at most.", rich_help_panel=_BUDGET)] = 1000,
    strategy: Annotated[
        str, typer.Option(help="sensitivity, expander, evolution or random.", rich_help_panel=_SEARCH)
    ] = "sensitivity",
    levels: Annotated[
        str, typer.Option(help="What a matrix may get, with commas.", rich_help_panel=_SEARCH)
    ] = "binary,ternary,int4,int8,float16",
    units: Annotated[
        str,
        typer.Option(help="What gets one level: matrix, layer, or kind (all q_proj).", rich_help_panel=_SEARCH),
    ] = "matrix",
    seed: Annotated[int, typer.Option(help="Of evolution, random and healing.", rich_help_panel=_SEARCH)] = 42,
    cache_dir: Annotated[
        Path | None,
        typer.Option(help="Where evaluations are kept [default: the folder NAME.search].", rich_help_panel=_SEARCH),
    ] = None,
    finetune_steps: Annotated[
        int, typer.Option(help="Train the map that was found so long.", rich_help_panel=_HEALING)
    ] = 0,
    data: Annotated[
        str | None, typer.Option(help="Text to train on, as of onebit train.", rich_help_panel=_HEALING)
    ] = None,
    finetune_lr: Annotated[float, typer.Option(help="Peak learning rate.", rich_help_panel=_HEALING)] = 1e-3,
    workers: Annotated[int, typer.Option(help="Processes that measure, or Ray actors.", rich_help_panel=_MACHINE)] = 1,
    address: Annotated[
        str | None,
        typer.Option(help="Ray cluster, as auto or ray://HOST:10001; local starts one.", rich_help_panel=_MACHINE),
    ] = None,
    threads: Annotated[int, typer.Option(help="CPU threads of each worker.", rich_help_panel=_MACHINE)] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda or mps.", rich_help_panel=_MACHINE)] = "cpu",
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.", rich_help_panel=_MACHINE)] = False,
) -> None:
    """Find the bit-width map of least held-out loss whose exported file has at most --max-size-mb.

    The JSON goes as it is to onebit export, train and sft as --bit-width-map. Every map is measured; the same command
    goes on where a killed search stopped. Ctrl-C keeps the best map so far and exits with 130.
    """
    values = dict(locals())
    values["levels"] = tuple(name.strip() for name in levels.split(","))
    from onebit.search.run import search as run
    from onebit.search.settings import SearchSettings

    result = run(SearchSettings(**values))
    if not quiet:
        for line in _told(result):
            typer.echo(line)
    if result.interrupted:
        raise typer.Exit(130)


def _told(result: SearchResult) -> Iterator[str]:
    """What the terminal is told at the end."""
    settings, score, trials = result.settings, result.score, result.trials
    yield (
        f"{settings.strategy}: loss {score.loss:.4f} nats per token, perplexity {score.perplexity:.4g}, top-1"
        f" {score.accuracy:.2%}; the file has {result.size:,} bytes, {result.float16_bytes / result.size:.2f} times"
        f" smaller than float16; {len(trials.done)} evaluations, {trials.measured} of them new"
    )
    if result.kept is not None:
        yield f"healed from loss {result.best.score.loss:.4f}; wrote {settings.output}"
        yield f"onebit export --model-dir {result.kept.folder} --output model.1bit"
        return
    if result.healed is not None:
        healed = result.healed.score
        yield (
            f"healing did no good (loss {healed.loss:.4f}, top-1 {healed.accuracy:.2%}): this is the map without it;"
            " try more --finetune-steps or another --finetune-lr"
        )
    if result.interrupted:
        yield "stopped: this is the best so far, and the same command goes on from here"
    yield f"wrote {settings.output}"
    folder = settings.checkpoint if settings.checkpoint.is_dir() else settings.checkpoint.parent
    yield f"onebit export --model-dir {folder} --bit-width-map {settings.output} --output model.1bit"
