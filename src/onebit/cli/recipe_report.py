"""The report of a recipe: one HTML file with everything inside it, in the demo report's dress."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from html import escape
from typing import Any

from onebit.cli.recipe_file import Recipe
from onebit.cli.recipe_stages import StageRecord
from onebit.eval.page import page
from onebit.eval.record import commit, machine, versions

__all__ = ["render"]


def render(recipe: Recipe, records: Mapping[str, StageRecord]) -> str:
    """The page: what each stage ran, how long, how it ended, and every figure it gave. Stages not reached are named."""
    body = [
        _head(recipe, records),
        _tiles(recipe, records),
        _table(recipe, records),
        *(_figures(label, record) for label, record in records.items() if record.figures),
        _foot(),
    ]
    return page(recipe.path.name, body)


def _head(recipe: Recipe, records: Mapping[str, StageRecord]) -> str:
    failed = [label for label, record in records.items() if record.status != "done"]
    if failed:
        record = records[failed[0]]
        lead = f"Stopped at stage {escape(failed[0])} (exit code {record.exit_code}). The same command goes on there."
    elif len(records) < len(recipe.stages):
        lead = f"Running: {len(records)} of {len(recipe.stages)} stages are done."
    else:
        lead = f"All {len(recipe.stages)} stages are done."
    name = escape(recipe.path.name)
    return f"<header><p class=eyebrow>onebit recipe</p><h1>{name}</h1><p class=lead>{lead}</p></header>"


def _tiles(recipe: Recipe, records: Mapping[str, StageRecord]) -> str:
    done = sum(record.status == "done" for record in records.values())
    tiles = [
        (f"{done} of {len(recipe.stages)}", "stages done"),
        (str(sum(record.skipped for record in records.values())), "up to date, not run again"),
        (_duration(sum(record.seconds for record in records.values())), "of work, in the stages' last runs"),
    ]
    items = "".join(f"<li><b>{escape(value)}</b><span>{escape(name)}</span></li>" for value, name in tiles)
    return f"<ul class=tiles>{items}</ul>"


def _table(recipe: Recipe, records: Mapping[str, StageRecord]) -> str:
    rows = []
    for number, stage in enumerate(recipe.stages, start=1):
        record = records.get(stage.label)
        line = escape(shlex.join(["onebit", *stage.argv]))
        if record is None:
            ended, seconds = "not reached", ""
        else:
            ended, seconds = _ended(record), _duration(record.seconds)
        rows.append(
            f"<tr><td>{number}</td><td><b>{escape(stage.label)}</b></td><td>{ended}</td>"
            f"<td class=right>{seconds}</td><td><code>{line}</code></td></tr>"
        )
    head = "<tr><th></th><th>stage</th><th>ended</th><th class=right>time</th><th>command</th></tr>"
    return f"<section><h2>Stages</h2><div class=wide><table>{head}{''.join(rows)}</table></div></section>"


def _ended(record: StageRecord) -> str:
    if record.status == "done":
        when = escape(record.finished or "")
        return f"{when}<br><span class=soft>{'up to date' if record.skipped else 'ran now'}</span>"
    error = f"<br>{escape(record.error)}" if record.error else ""
    return f"<span class=bad>exit code {record.exit_code}</span>{error}"


def _figures(label: str, record: StageRecord) -> str:
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td class=right>{_number(value)}</td></tr>"
        for name, value in record.figures.items()
    )
    return f"<figure><h2>{escape(label)}</h2><table>{rows}</table></figure>"


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.5g}" if abs(value) < 1e6 else f"{value:,.0f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _foot() -> str:
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"<footer><p>{escape(_circumstances())} {made}.</p></footer>"


@cache  # it asks git and the compiler, and the page is written after every stage
def _circumstances() -> str:
    here = machine()
    packages = ", ".join(f"{name} {version}" for name, version in versions().items())
    memory = f"{here['cores']} cores, {here['memory_gib']} GiB"
    return f"{here['gpu'] or here['processor']}, {memory}. {packages}. Commit {commit() or 'unknown'}."
