"""`onebit eval`: what a model is worth: loss on a text, tasks, size, speed and memory; one model or several."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onebit.eval.judge import JudgeSettings
    from onebit.eval.record import ResultRecord

__all__ = ["eval"]


def eval(
    model: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="A .1bit or GGUF file (run by the engine), a checkpoint folder (by torch), 'tiny', the address of a"
            " server, or a record that --json wrote (.json).",
        ),
    ],
    data: Annotated[Path | None, typer.Option("--data", help="A text file to score, UTF-8.")] = None,
    context: Annotated[
        int | None,
        typer.Option("--context", min=1, help="Tokens a window feeds; the model's own length when not given."),
    ] = None,
    stride: Annotated[
        int | None, typer.Option("--stride", min=1, help="Tokens each window scores; below --context windows overlap.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=2, help="Score only the first so many tokens.")
    ] = None,
    tasks: Annotated[
        str | None, typer.Option("--tasks", help="Tasks of lm-evaluation-harness, by name, with commas between.")
    ] = None,
    task_path: Annotated[
        Path | None, typer.Option("--task-path", help="A folder with the YAML of further tasks.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Ask only the first so many of a task.")] = None,
    num_fewshot: Annotated[
        int | None,
        typer.Option("--num-fewshot", min=0, help="Examples before a question; else as the task says."),
    ] = None,
    apply_chat_template: Annotated[
        bool, typer.Option("--apply-chat-template", help="Ask as a user would in the model's chat.")
    ] = False,
    speed: Annotated[bool, typer.Option("--speed", help="Measure tokens/s and memory too.")] = False,
    report: Annotated[
        Path | None,
        typer.Option("--report", help="Write one HTML page that compares the models, --speed included."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Engine threads; all cores when not given.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="Device of a checkpoint: cpu, cuda, mps.")] = "cpu",
    api_key: Annotated[
        str | None,
        typer.Option("--api-key", envvar="ONEBIT_API_KEY", show_envvar=True, help="Of a server that is asked."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result record as JSON, a list of several.")] = False,
) -> None:
    """Judge models: loss on a text, tasks, size, speed and memory.

    --data: loss in nats per token, perplexity, bits per byte. The text is tokenized as one sequence and every token is
    scored once. Windows do not overlap unless --stride is given. A .1bit file and the checkpoint it was exported from
    differ by what rounding embedding and head costs.

    --tasks asks lm-evaluation-harness's tasks (extra 'eval'). They read data from Hugging Face unless it was fetched
    before or they are your own (--task-path): set HF_HUB_OFFLINE=0 to let them.

    Several models are measured one after another, each in a process of its own; --report puts them side by side. One
    that cannot be measured is left out, and Ctrl-C keeps what was measured.
    """
    import os

    from onebit.eval.judge import JudgeSettings

    settings = JudgeSettings(
        data=data,
        context=context,
        stride=stride,
        max_tokens=max_tokens,
        tasks=tuple(name for name in (tasks or "").split(",") if name),
        task_path=task_path,
        limit=limit,
        num_fewshot=num_fewshot,
        apply_chat_template=apply_chat_template,
        speed=speed or report is not None,
        threads=threads,
        device=device,
        api_key=api_key,
    )
    if settings.tasks:  # nothing leaves the machine unless asked
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
            os.environ.setdefault(name, "1")
    found = [_found(name) for name in model]  # a name that means nothing is told before the hours of the others
    if len(model) == 1 and report is None:
        records, code = _judged_here(model[0], found[0], settings), 0
    else:
        records, code = _judged_in_turn(model, found, settings)
    if not records:
        raise typer.Exit(code)
    if report is not None:
        from onebit.eval.report import render
        from onebit.formats.atomic import replacing

        with replacing(report) as file:
            file.write(render(records).encode())
        typer.echo(f"{report}: {len(records)} side by side", err=json)
    if json:
        from json import dumps

        told = [record.to_dict() for record in records]
        typer.echo(dumps(told[0] if len(told) == 1 else told, indent=2, ensure_ascii=False))
    elif report is None:
        from onebit.eval.summary import as_text

        typer.echo(as_text(records))
    if code:
        raise typer.Exit(code)


def _found(model: str) -> Path | list[ResultRecord] | None:
    """Where a model lies, or what was measured before; None for an address."""
    from onebit.cli.model_path import resolve_model
    from onebit.eval.record import read_records
    from onebit.eval.served import is_address

    if is_address(model):
        return None
    path = Path(model)
    if path.suffix == ".json":
        return read_records(path)
    return path if path.is_dir() else resolve_model(model)


def _judged_here(model: str, found: Path | list[ResultRecord] | None, settings: JudgeSettings) -> list[ResultRecord]:
    from onebit.cli.progress import ProgressLine
    from onebit.eval.judge import judge

    return found if isinstance(found, list) else [judge(model, found, settings, ProgressLine("eval", "tokens"))]


def _judged_in_turn(
    models: list[str], found: Sequence[Path | list[ResultRecord] | None], settings: JudgeSettings
) -> tuple[list[ResultRecord], int]:
    """(records, exit code): what was measured stays when a model cannot be, and when Ctrl-C ends it."""
    records: list[ResultRecord] = []
    code = 0
    for index, (model, it) in enumerate(zip(models, found, strict=True)):
        if isinstance(it, list):
            records += it
            continue
        typer.echo(f"-- {model}", err=True)
        try:
            told = _judged_apart(model, settings)
        except KeyboardInterrupt:
            typer.echo(f"stopped; not measured: {', '.join(models[index:])}", err=True)
            return records, 130
        if isinstance(told, int):
            typer.echo(f"{model} is left out", err=True)
            code = told
        else:
            records.append(told)
    return records, code


def _judged_apart(model: str, settings: JudgeSettings) -> ResultRecord | int:
    """By this command in a process of its own, so that no model's memory or threads are in another's figures; the exit
    code of one that failed, and said why."""
    import os
    import signal
    import subprocess
    import sys
    import tempfile

    from onebit.eval.record import read_records

    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "record.json"
        with kept.open("wb") as out:
            command = [sys.executable, "-m", "onebit.cli.main", "eval", "--json", *_flags(settings), "--", model]
            # The key goes where no list of processes shows it.
            key = {} if settings.api_key is None else {"ONEBIT_API_KEY": settings.api_key}
            done = subprocess.run(command, stdout=out, env={**os.environ, **key})
        if done.returncode in (130, -signal.SIGINT):  # it was told before this process was
            raise KeyboardInterrupt
        if done.returncode != 0:
            return done.returncode if done.returncode > 0 else 1
        return read_records(kept)[0]


def _flags(settings: JudgeSettings) -> list[str]:
    """The options that make these settings."""
    from dataclasses import fields

    flags = []
    for field in fields(settings):
        value, flag = getattr(settings, field.name), f"--{field.name.replace('_', '-')}"
        if field.name == "api_key" or value == field.default:
            continue
        flags += [flag] if value is True else [flag, ",".join(value) if isinstance(value, tuple) else str(value)]
    return flags
