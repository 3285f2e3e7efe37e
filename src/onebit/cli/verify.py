"""`onebit verify`: are two forms of a model the same model?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["verify"]


def verify(
    a: Annotated[Path, typer.Argument(metavar="A", help="The reference: a checkpoint folder or a .1bit file.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="What is held against it.")],
    data: Annotated[
        Path | None, typer.Option("--data", help="Text to compare on; a file of Python's library when not given.")
    ] = None,
    num_tokens: Annotated[int, typer.Option("--num-tokens", min=1, help="Tokens to compare on.")] = 128,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Compare two forms of a model; exit 1 when they differ by more than rounding.

    Both read the same tokens. The report says how far the logits are apart, whether the greedy choices agree, and
    which layer differs first.
    """
    from json import dumps

    from onebit.eval.evaluate import read_text
    from onebit.eval.verify import verify as compare

    report = compare(a, b, text=None if data is None else read_text(data), num_tokens=num_tokens)
    typer.echo(dumps(report.to_dict(), indent=2) if json else str(report))
    if not report.passed:
        raise typer.Exit(1)
