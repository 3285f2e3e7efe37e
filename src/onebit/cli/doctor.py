"""`onebit doctor`: what this machine offers, what onebit chose and why. Works without torch and without the engine."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["doctor"]


def doctor(json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False) -> None:
    """Say what this machine offers and what onebit makes of it.

    Processor and its instruction sets, the engine library and the kernels it chose, torch and its devices, memory and
    disk, caches, and which optional parts are installed. Paste it into a bug report.
    """
    from onebit.cli.findings import findings

    found = findings()
    if json:
        from json import dumps

        typer.echo(dumps(found, indent=2))
        return
    for section, facts in found.items():
        typer.secho(section, bold=True)
        width = max(map(len, facts), default=0)
        for name, value in facts.items():
            lines = value if isinstance(value, list) else [value]
            for i, line in enumerate(lines or ["none"]):
                typer.echo(f"  {(name if i == 0 else '').ljust(width)}  {'-' if line is None else line}")
