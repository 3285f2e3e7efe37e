"""The `onebit` command: one table of commands, each module imported only when its command is used.

Three requirements shaped this file. `onebit --help` must answer in under 300 ms, so it is written from the table below
and imports neither a command nor rich. Whatever a user got wrong is one line on stderr and exit code 2; a traceback
means a bug of ours (``ONEBIT_TRACEBACK=1`` shows one for user errors too). Flags are spelled with hyphens and accepted
with underscores, values are left alone.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from onebit.errors import OnebitError, missing_extra, nearest_name

__all__ = ["COMMANDS", "USAGE_ERRORS", "CommandLine", "app", "execute", "load_command", "run"]


class CommandLine(NamedTuple):
    """What `onebit --help` says about one command without importing it."""

    panel: str
    help: str


COMMANDS: dict[str, CommandLine] = {
    "chat": CommandLine("Start", "Talk to a model; without one, to the small one inside onebit."),
    "demo": CommandLine("Start", "Train, export and run a small ternary model in a few minutes."),
    "doctor": CommandLine("Start", "What this machine offers: processor, engine, torch, GPU, disk."),
    "data": CommandLine("Train", "Turn text into token blocks, or fetch a known corpus."),
    "tokenizer": CommandLine("Train", "Train a byte-level BPE tokenizer on your text."),
    "train": CommandLine("Train", "Train a 1-bit or 1.58-bit model."),
    "sft": CommandLine("Train", "Fine-tune a Hugging Face model with ternary weights."),
    "distill": CommandLine("Train", "Train a ternary student on the answers of a float teacher."),
    "selfgen": CommandLine("Train", "Let a model write instruction data itself, and keep the good answers."),
    "memory": CommandLine("Train", "What training a model takes, by kind and method, and what fits."),
    "recipe": CommandLine("Train", "Run a list of commands as one that resumes, with a report."),
    "search": CommandLine("Train", "Find which bit-width each matrix gets, under a byte budget."),
    "convert": CommandLine("Convert", "Write a model in another form: .1bit, GGUF, transformers."),
    "export": CommandLine("Convert", "Write a checkpoint as one .1bit file."),
    "compress": CommandLine("Convert", "Pack a checkpoint at four ternary codes a byte, and back."),
    "generate": CommandLine("Run", "Continue a prompt, streamed to the terminal."),
    "serve": CommandLine("Run", "Serve a model to OpenAI's clients, with a chat page."),
    "eval": CommandLine("Judge", "Loss on a text, tasks, size and speed of one model or several."),
    "eval-config": CommandLine("Judge", "Loss and exact file size of a model under one bit-width map."),
    "verify": CommandLine("Judge", "Compare two forms of a model; exit 1 when they differ."),
    "bench": CommandLine("Judge", "Speed of decode and prefill beside this machine's limits."),
    "info": CommandLine("Look inside", "What a .1bit or GGUF file holds: shapes, sizes, bits per weight."),
}

# BadParameter is the one usage error every typer version exports; its last ancestor before Exception is the parent
# of them all (typer carries its own copy of click since 0.24, so naming click's class would miss them).
USAGE_ERRORS: type[Exception] = [c for c in typer.BadParameter.__mro__ if issubclass(c, Exception)][-2]
if USAGE_ERRORS is Exception or not hasattr(USAGE_ERRORS, "format_message"):  # pragma: no cover
    USAGE_ERRORS = typer.BadParameter


def _heading(text: str) -> str:
    return typer.style(text, bold=True)  # echo strips the style when the output is not a terminal


_ORDER = {"Arguments": 0, "Options": 2}  # panels that a command names itself stand between


class Command(TyperCommand):
    """A command whose options may be written with underscores and whose help lists them by panel."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = {name for parameter in self.params for name in (*parameter.opts, *parameter.secondary_opts)}
        return super().parse_args(ctx, [_hyphenated(arg, known) for arg in args])

    def format_options(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                default = "Arguments" if parameter.param_type_name == "argument" else "Options"
                panels.setdefault(getattr(parameter, "rich_help_panel", None) or default, []).append(record)
        for panel, records in sorted(panels.items(), key=lambda item: _ORDER.get(item[0], 1)):
            with formatter.section(_heading(panel)):
                formatter.write_dl(records)


def _hyphenated(arg: str, known: set[str]) -> str:
    """``--max_steps=3`` -> ``--max-steps=3`` when only the spelling with hyphens is an option; all else unchanged."""
    name, equals, value = arg.partition("=")
    if not name.startswith("--") or "_" not in name or name in known:
        return arg
    hyphened = name.replace("_", "-")
    return f"{hyphened}{equals}{value}" if hyphened in known else arg


class LazyGroup(TyperGroup):
    """The top command: knows the others by the table only."""

    _listing = False

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        name = cmd_name.replace("_", "-")
        if name not in COMMANDS:
            return None
        if self._listing:  # completion wants names and help lines only
            return TyperCommand(name, help=COMMANDS[name].help, rich_markup_mode=None)
        return load_command(name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and not ctx.resilient_parsing and args[0].replace("_", "-") not in COMMANDS:
            ctx.fail(f"no command '{args[0]}'{nearest_name(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        self._listing = True
        try:
            return super().shell_complete(ctx, incomplete)
        finally:
            self._listing = False

    def format_options(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        for name, line in COMMANDS.items():
            panels.setdefault(line.panel, []).append((name, line.help))
        width = max(map(len, COMMANDS))
        for panel, records in panels.items():
            with formatter.section(_heading(panel)):
                formatter.write_dl([(name.ljust(width), text) for name, text in records])
        records = [record for record in (p.get_help_record(ctx) for p in self.get_params(ctx)) if record is not None]
        with formatter.section(_heading("Options")):
            formatter.write_dl(records)


def load_command(name: str) -> Any:
    """Import ``onebit.cli.<name>`` and turn its function of the same name into a command."""
    attribute = name.replace("-", "_")
    module = importlib.import_module(f"onebit.cli.{attribute}")
    function = getattr(module, attribute)
    single = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    single.command(name, cls=Command, context_settings=getattr(module, "CONTEXT_SETTINGS", None))(function)
    return typer.main.get_command(single)


def _print_version(value: bool) -> None:
    if value:
        from onebit import __version__

        typer.echo(f"onebit {__version__}")
        raise typer.Exit()


app = typer.Typer(
    cls=LazyGroup, rich_markup_mode=None, pretty_exceptions_enable=False, epilog="onebit COMMAND --help says more."
)


@app.callback()
def main(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
    ),
) -> None:
    """Train, compress, export and run 1-bit and 1.58-bit language models."""


def _colour() -> bool | None:
    """False when the user or the terminal asks for none, else None: on a terminal only."""
    return False if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" else None


def _fail(message: str) -> int:
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    return 2


def execute(argv: Sequence[str]) -> int:
    """Run one command line and return its exit code; nothing but a bug of ours escapes as an exception."""
    command = typer.main.get_command(app)
    try:
        code = command.main(list(argv) or ["--help"], prog_name="onebit", standalone_mode=False, color=_colour())
    except USAGE_ERRORS as problem:
        context = getattr(problem, "ctx", None)
        where = f" (see {context.command_path} --help)" if context is not None else ""
        return _fail(f"{problem.format_message().rstrip('.')}{where}")  # type: ignore[attr-defined]
    except typer.Abort:
        return 130
    except KeyboardInterrupt:
        return 130
    except OnebitError as problem:
        if os.environ.get("ONEBIT_TRACEBACK"):
            raise
        return _fail(str(problem))
    except ModuleNotFoundError as problem:
        extra = missing_extra(problem, f"onebit {argv[0]}")
        if extra is None or os.environ.get("ONEBIT_TRACEBACK"):
            raise
        return _fail(str(extra))
    except OSError as problem:
        if problem.filename is None or os.environ.get("ONEBIT_TRACEBACK"):
            raise
        return _fail(f"{problem.filename2 or problem.filename}: {problem.strerror}")
    return code if isinstance(code, int) else 0


def run(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point of the `onebit` script."""
    sys.exit(execute(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    run()
