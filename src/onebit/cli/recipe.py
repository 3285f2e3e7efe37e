"""`onebit recipe run`: a whole pipeline as one command that resumes."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["recipe"]


class Action(StrEnum):
    """What `onebit recipe` can do."""

    run = "run"


def recipe(
    action: Annotated[Action, typer.Argument(help="run: run the stages that are not up to date.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The recipe: YAML with a list of stages.")],
    output_dir: Annotated[
        Path | None,
        typer.Option("--output-dir", help="Folder of the report [default: the recipe's output_dir, else runs/NAME]."),
    ] = None,
) -> None:
    """Run a list of commands, each with its flags, one after the other, and write a report.

    A stage is skipped when its flags, the contents of the files it reads and the version of onebit are those of its
    last run and what it wrote is still there. A stage that fails or is stopped ends the run with its exit code; the
    same command goes on there. A stage whose flags or inputs changed starts over, unless its flags say resume: true.
    The whole file is checked before anything runs. A recipe looks like this:

    \b
    stages:
      - train: {data: my-text, output_dir: runs/mine}
      - export: {model_dir: runs/mine, output: mine.1bit}
      - eval: {model: mine.1bit, data: valid.txt}
    """
    from onebit.cli.recipe_file import read_recipe
    from onebit.cli.recipe_report import render
    from onebit.cli.recipe_stages import REPORT_NAME, run_stages

    read = read_recipe(file, output_dir)
    code = run_stages(read, typer.echo, lambda records: render(read, records))
    typer.echo(f"report: {read.output_dir / REPORT_NAME}")
    if code:
        raise typer.Exit(code)
