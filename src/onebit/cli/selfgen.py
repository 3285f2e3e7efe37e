"""`onebit selfgen`: instruction data that a model writes itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from onebit.data.selfgen_settings import SelfgenResult

__all__ = ["selfgen"]

_SAMPLING, _MACHINE = "Sampling", "Machine"


def selfgen(
    model_path: Annotated[
        str, typer.Option("--model-path", help="The model's folder, or the name of one in the Hugging Face cache.")
    ],
    out: Annotated[Path, typer.Option("--out", "--output", help="The .jsonl file to write.")],
    num: Annotated[int, typer.Option("--num", help="Samples to keep.")] = 100,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            help="Prompts instead of those inside onebit: .txt, one a line, or .jsonl with a column prompt.",
        ),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", help="Tokens of an answer at most.", rich_help_panel=_SAMPLING)
    ] = 512,
    temperature: Annotated[
        float, typer.Option("--temperature", help="0: always the likeliest token.", rich_help_panel=_SAMPLING)
    ] = 0.8,
    top_p: Annotated[
        float,
        typer.Option("--top-p", help="Choose among the likeliest with this mass; 1: all.", rich_help_panel=_SAMPLING),
    ] = 0.95,
    seed: Annotated[
        int, typer.Option("--seed", help="Of the order of prompts and the answers.", rich_help_panel=_SAMPLING)
    ] = 42,
    thinking: Annotated[
        bool,
        typer.Option("--thinking", help="Let models think that do so when asked (Qwen3).", rich_help_panel=_SAMPLING),
    ] = False,
    batch_size: Annotated[
        int, typer.Option("--batch-size", help="Prompts answered together.", rich_help_panel=_MACHINE)
    ] = 8,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.", rich_help_panel=_MACHINE)] = "auto",
    dtype: Annotated[
        str,
        typer.Option("--dtype", help="auto (as stored), float32, bfloat16 or float16.", rich_help_panel=_MACHINE),
    ] = "auto",
    resume: Annotated[bool, typer.Option(help="Go on where a run with these settings stopped.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Ask a model the prompts inside onebit, or yours, and keep the good answers as instruction data.

    Dropped are answers of fewer than 32 or more than 2048 characters, with a disclaimer ("as an AI"), that go in
    circles, that use few different words, or that say what one kept before says; NAME.summary.json counts them. The
    same command goes on where a killed run stopped, to the same samples, and a larger --num adds to them. Exit codes:
    0 done, 2 something given is wrong, 130 stopped by Ctrl-C: what there is has been written.
    """
    values = dict(locals())
    del values["json"]
    from json import dumps

    from onebit.cli.progress import ProgressLine
    from onebit.data.selfgen import selfgen as run
    from onebit.data.selfgen_settings import SelfgenSettings

    result = run(SelfgenSettings(**values), ProgressLine("selfgen", "samples"))
    typer.echo(dumps(result.to_dict(), indent=2) if json else _text(result))
    if result.status == "interrupted":
        typer.echo("stopped; the same command goes on from here", err=True)
        raise typer.Exit(130)


def _text(result: SelfgenResult) -> str:
    lines = [f"{result.out}: {result.samples} samples of {result.asked} answers"]
    lines += [f"  dropped, {reason:<12}{count:6}" for reason, count in result.dropped.items()]
    if result.cut_off:
        lines.append(f"note: {result.cut_off} kept answers were cut off; --max-new-tokens gives them more room")
    if result.status == "short":
        lines.append(f"note: {result.wanted} samples were wanted, but too few answers are good; see the counts above")
    return "\n".join(lines)
