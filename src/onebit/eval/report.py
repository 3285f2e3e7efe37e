"""Several models side by side: one HTML page of their records, with pictures, and the records themselves.

Nothing on it is measured here: it shows what `onebit eval` wrote down, and says where two of the records were not
measured alike.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import PurePath

from onebit.eval.charts import Bar, Spot, bars, front
from onebit.eval.page import page
from onebit.eval.record import ResultRecord
from onebit.eval.summary import stderr_of

__all__ = ["render"]

# What must be the same for figures to be compared, and how a reader calls it.
_ALIKE = {
    "data": "the text that was scored",
    "context": "the windows it was scored in",
    "stride": "the steps it was scored in",
    "bos": "whether a BOS begins the text",
    "limit": "how many questions of a task were asked",
    "num_fewshot": "examples before a question",
    "apply_chat_template": "the chat template around a question",
}


@dataclass(frozen=True)
class _Column:
    """A figure as the page shows it."""

    name: str
    title: str
    text: Callable[[float], str]
    is_higher_better: bool | None


_MEASURES = (
    _Column("bits_per_byte", "bits per byte", lambda value: f"{value:.4f}", False),
    _Column("loss", "nats per token", lambda value: f"{value:.4f}", None),
    _Column("perplexity", "perplexity", lambda value: f"{value:,.2f}", None),
    _Column("size_bytes", "size, MB", lambda value: f"{value / 1e6:,.2f}", False),
    _Column("bits_per_weight", "bits a weight", lambda value: f"{value:.2f}", False),
    _Column("tokens_per_s_decode", "tokens/s written", lambda value: f"{value:,.1f}", True),
    _Column("tokens_per_s_prefill", "tokens/s read", lambda value: f"{value:,.0f}", True),
    _Column("memory_bytes", "memory, MB", lambda value: f"{value / 1e6:,.1f}", False),
)


def render(records: Sequence[ResultRecord]) -> str:
    """The whole page."""
    names = _names(records)
    columns = [*_MEASURES, *_task_columns(records)]
    shown = [column for column in columns if any(_value(record, column) is not None for record in records)]
    body = [_head(records), _table(records, names, shown), *_pictures(records, names, shown), _records(records, names)]
    return page("Models compared", [part for part in [*body, _foot(records)] if part])


def _names(records: Sequence[ResultRecord]) -> list[str]:
    """Short where that tells them apart."""
    whole = [str(record.config.get("model", "?")) for record in records]
    short = [name if "://" in name else PurePath(name).name for name in whole]
    names = [each if short.count(each) == 1 else full for each, full in zip(short, whole, strict=True)]
    return [name if names.count(name) == 1 else f"{name} ({index + 1})" for index, name in enumerate(names)]


def _value(record: ResultRecord, column: _Column) -> float | None:
    return record.figures.get(column.name)


def _task_columns(records: Sequence[ResultRecord]) -> list[_Column]:
    better: dict[str, bool] = {}
    for record in records:
        told = record.config.get("higher_is_better")
        better |= told if isinstance(told, Mapping) else {}
    found = dict.fromkeys(
        name for record in records for name in record.figures if name.startswith("task/") and "_stderr" not in name
    )
    return [_Column(name, _task_title(name), lambda value: f"{value:.4g}", better.get(name)) for name in found]


def _task_title(name: str) -> str:
    _, task, metric, *choice = name.split("/")
    return f"{task} {metric}" + (f" ({choice[0]})" if choice else "")


def _head(records: Sequence[ResultRecord]) -> str:
    tasks = {name.split("/")[1] for record in records for name in record.figures if name.startswith("task/")}
    texts = {str(record.config["data"]) for record in records if record.config.get("data")}
    asked = [
        *([f"on {', '.join(escape(PurePath(text).name) for text in sorted(texts))}"] if texts else []),
        *([f"by {', '.join(map(escape, sorted(tasks)))}"] if tasks else []),
    ]
    lead = f"{len(records)} {'model' if len(records) == 1 else 'models'}, judged {' and '.join(asked)}".rstrip()
    notes = "".join(f"<p class=bad>{escape(note)}</p>" for note in _unlike(records))
    return f"<header><p class=eyebrow>onebit eval</p><h1>Models compared</h1><p class=lead>{lead}.</p>{notes}</header>"


def _unlike(records: Sequence[ResultRecord]) -> list[str]:
    """Sentences on what was not measured alike."""
    notes = []
    for key, what in _ALIKE.items():
        values = {json.dumps(record.config[key]) for record in records if key in record.config}
        if len(values) > 1:
            notes.append(f"Not measured alike: {what} differs ({', '.join(sorted(values))}).")
    machines = {str(record.machine.get("processor")) + str(record.machine.get("gpu") or "") for record in records}
    if len(machines) > 1 and any("tokens_per_s_decode" in record.figures for record in records):
        notes.append("Speeds come from different machines.")
    return notes


def _table(records: Sequence[ResultRecord], names: Sequence[str], columns: Sequence[_Column]) -> str:
    head = "".join(f"<th class=right>{escape(column.title)}</th>" for column in columns)
    rows = []
    for record, name in zip(records, names, strict=True):
        cells = "".join(_cell(record, column, _best(records, column)) for column in columns)
        runtime = escape(str(record.config.get("runtime", "")))
        rows.append(f"<tr><td><b>{escape(name)}</b> <span class=soft>{runtime}</span></td>{cells}</tr>")
    return (
        "<section><h2>Figures</h2><div class=wide tabindex=0 role=region aria-label=Figures><table>"
        f"<tr><th>model</th>{head}</tr>{''.join(rows)}</table></div>"
        "<p class=caption>The best of a column is bold. Models with different tokenizers are compared by bits per "
        "byte, not by loss per token. A score of a task has its standard error beside it.</p></section>"
    )


def _best(records: Sequence[ResultRecord], column: _Column) -> float | None:
    values = [value for record in records if (value := _value(record, column)) is not None]
    if column.is_higher_better is None or len(values) < 2:
        return None
    return max(values) if column.is_higher_better else min(values)


def _cell(record: ResultRecord, column: _Column, best: float | None) -> str:
    value = _value(record, column)
    if value is None:
        return "<td class=right><span class=soft>not measured</span></td>"
    error = record.figures.get(stderr_of(column.name)) if column.name.startswith("task/") else None
    spread = f" <span class=soft>&#177; {error:.2g}</span>" if error else ""
    is_best = best is not None and column.text(value) == column.text(best)  # what prints alike is alike
    style = "right best" if is_best else "right"
    return f'<td class="{style}">{column.text(value)}{spread}</td>'


def _pictures(records: Sequence[ResultRecord], names: Sequence[str], columns: Sequence[_Column]) -> list[str]:
    pictures = []
    spots = [
        Spot(name, size / 1e6, loss)
        for record, name in zip(records, names, strict=True)
        if (size := record.figures.get("size_bytes")) is not None
        and (loss := record.figures.get("bits_per_byte")) is not None
    ]
    if len(spots) > 1:
        drawn = front(spots, x_label="MB", y_label="bits per byte", title="Size and loss")
        pictures.append(
            _figure("Size and loss", drawn, "Down and left is better; the line joins those that none beats.")
        )
    for column in columns:
        if column.name in ("loss", "perplexity", "bits_per_weight"):
            continue
        rows = []
        for record, name in zip(records, names, strict=True):
            if (value := _value(record, column)) is not None:
                error = record.figures.get(stderr_of(column.name)) if column.name.startswith("task/") else None
                rows.append(Bar(name, value, column.text(value), error or 0.0))
        if rows:
            side = {True: "More is better.", False: "Less is better.", None: ""}[column.is_higher_better]
            pictures.append(_figure(column.title, bars(rows, title=column.title), side))
    return pictures


def _figure(title: str, picture: str, caption: str) -> str:
    return f"<figure><h2>{escape(title)}</h2>{picture}<figcaption>{escape(caption)}</figcaption></figure>"


def _records(records: Sequence[ResultRecord], names: Sequence[str]) -> str:
    parts = "".join(
        f"<details><summary>{escape(name)}: {escape(record.date)}, {escape(_place(record))}</summary>"
        f"<pre>{escape(record.to_json())}</pre></details>"
        for record, name in zip(records, names, strict=True)
    )
    return f"<section><h2>The records</h2>{parts}</section>"


def _place(record: ResultRecord) -> str:
    return str(record.machine.get("gpu") or record.machine.get("processor") or "unknown machine")


def _foot(records: Sequence[ResultRecord]) -> str:
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    versions = sorted({f"onebit {record.versions.get('onebit', '?')}" for record in records})
    return (
        "<footer><p>Size is of the file, or the folder's weights. Speed is of one sequence, a short prompt. Memory is "
        "what a process takes to load the model and write that sequence, above what it took before.</p>"
        f"<p>{escape(', '.join(versions))}. Made {made}.</p></footer>"
    )
