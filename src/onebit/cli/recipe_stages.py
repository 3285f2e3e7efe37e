"""Run the stages of a recipe one after the other, each as its command would run, and skip what is up to date.

What shaped it: a stage may take hours and be killed, so what is done is written down after each stage, and that one is
being worked on before; the commands resume by themselves, except where what they would go on from came of other inputs
or flags. They run in this process, so a Ctrl-C or SIGTERM is handled by the command that is at work, and its exit code
becomes ours; what one leaves behind in torch is cleared after it. It knows commands, so it lives with them.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from onebit.cli.main import execute
from onebit.cli.recipe_file import Recipe, Stage
from onebit.cli.recipe_inputs import Contents, fingerprint, what_changed
from onebit.errors import FormatError
from onebit.formats.atomic import replacing

__all__ = ["REPORT_NAME", "STATE_NAME", "StageRecord", "run_stages"]

STATE_NAME, REPORT_NAME = "recipe_state.json", "report.html"
Say = Callable[[str], None]


@dataclass(kw_only=True)
class StageRecord:
    """What is remembered of a stage. status: running, done or failed; fingerprint: of the run that this tells of;
    starts_over: that run was not to go on from what there was."""

    command_line: list[str]
    fingerprint: dict[str, Any]
    status: str = "running"
    exit_code: int | None = None
    error: str | None = None
    seconds: float = 0.0
    finished: str | None = None
    figures: dict[str, float] = field(default_factory=dict)
    skipped: bool = False
    starts_over: bool = False


def run_stages(recipe: Recipe, say: Say, report: Callable[[dict[str, StageRecord]], str]) -> int:
    """Run what is not up to date; the exit code is that of the stage that did not end well, else 0.

    report: makes the page of the records so far, written to the output folder after every stage.
    """
    recipe.output_dir.mkdir(parents=True, exist_ok=True)
    state = _State(recipe.output_dir / STATE_NAME)
    page = recipe.output_dir / REPORT_NAME
    records: dict[str, StageRecord] = {}
    code = 0
    for place, stage in enumerate(recipe.stages):
        later = [Path(path) for other in recipe.stages[place:] for path in other.outputs]
        now = fingerprint(stage, state.contents, [*later, state.path, page])
        before, head = state.records.get(stage.label), f"[{place + 1}/{len(recipe.stages)}] {stage.label}"
        reasons = _why_run(stage, before, now)
        if before is not None and not reasons:
            say(f"{head}: up to date")
            before.skipped = True
            records[stage.label] = before
        else:
            say(f"{head}: {'; '.join(reasons)}")
            records[stage.label] = _run_or_start_over(stage, now, state, say)
            code = records[stage.label].exit_code or 0
            _say_result(records[stage.label], say)
        with replacing(page) as out:
            out.write(report(records).encode())
        if code:
            break
    return code


def _why_run(stage: Stage, before: StageRecord | None, now: dict[str, Any]) -> list[str]:
    if before is None:
        return ["was not run before"]
    if before.status != "done":
        return ["was not finished"]
    missing = [f"{path} is not there" for path in stage.outputs if not Path(path).exists()]
    return what_changed(before.fingerprint, now) + missing


def _run_or_start_over(stage: Stage, now: dict[str, Any], state: _State, say: Say) -> StageRecord:
    """Run a stage, from the beginning where what there is came of other inputs or flags.

    A run that was to start over may have been killed before it did: then its command refuses to go on, and is told to
    start over again.
    """
    before = state.records.get(stage.label)
    is_another = before is not None and bool(what_changed(before.fingerprint, now))
    may_not_have_begun = before is not None and not is_another and before.starts_over and before.status != "done"
    record = _run(stage, now, state, start_over=is_another)
    if may_not_have_begun and record.exit_code == _REFUSED and stage.restart is not None:
        say("    starting over, as it was stopped before it did")
        record = _run(stage, now, state, start_over=True)
    return record


_REFUSED = 2


def _run(stage: Stage, now: dict[str, Any], state: _State, *, start_over: bool) -> StageRecord:
    """Run a stage's command and write down how it ended, also when it ends in an exception."""
    command, *words = stage.argv
    argv = [command, stage.restart, *words] if start_over and stage.restart is not None else stage.argv
    before = state.records.get(stage.label)
    starts_over = start_over or (before is not None and before.starts_over and before.status != "done")
    record = StageRecord(command_line=argv, fingerprint=now, starts_over=starts_over)
    state.save(stage.label, record)
    record.status = "failed"  # unless it ends well
    began = time.monotonic()
    try:
        with _cleared(), _captured(hidden=stage.prints_json) as (printed, errors):
            record.exit_code = execute(argv)
        missing = [path for path in stage.outputs if not Path(path).exists()]
        if record.exit_code == 0 and missing:
            record.exit_code, record.error = 1, f"it ended well but did not write {', '.join(missing)}"
        if record.exit_code:
            record.error = record.error or next(iter(errors), None)
        else:
            record.status = "done"
        record.figures = _figures(stage, "".join(printed))
    finally:
        record.seconds = round(time.monotonic() - began, 1)
        record.finished = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        state.save(stage.label, record)
    return record


def _say_result(record: StageRecord, say: Say) -> None:
    shown = [f"{name} {value:.5g}" for name, value in list(record.figures.items())[:6]]
    ended = "done" if record.status == "done" else f"stopped with exit code {record.exit_code}"
    say(f"    {ended} in {record.seconds:.1f} s{': ' if shown else ''}{', '.join(shown)}")


class _State:
    """The file that says what was run: records by label, and the hashes of files by path."""

    def __init__(self, path: Path) -> None:
        self.path = path
        content: dict[str, Any] = {}
        try:
            if path.is_file():
                content = json.loads(path.read_text(encoding="utf-8"))
            self.records = {label: StageRecord(**record) for label, record in content.get("stages", {}).items()}
            self.contents = Contents(content.get("files", {}))
        except (ValueError, TypeError, AttributeError):
            raise FormatError(f"{path} cannot be read; remove it to run every stage again") from None

    def save(self, label: str, record: StageRecord) -> None:
        self.records[label] = record
        content = {"stages": {label: asdict(record) for label, record in self.records.items()}}
        with replacing(self.path) as out:
            out.write((json.dumps({**content, "files": self.contents.seen}, indent=1) + "\n").encode())


class _Tee:
    """A stream that keeps what it is given, and passes it on unless it is hidden."""

    def __init__(self, stream: Any, kept: list[str], hidden: bool, only: str = "") -> None:
        self._stream, self._kept, self._hidden, self._only = stream, kept, hidden, only

    def write(self, text: str) -> int:
        if text.startswith(self._only):
            self._kept.append(text)
        return len(text) if self._hidden else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        if name == "buffer":  # whoever looks for it would write past us
            raise AttributeError(name)
        return getattr(self._stream, name)


@contextmanager
def _captured(*, hidden: bool) -> Iterator[tuple[list[str], list[str]]]:
    """(what goes to stdout, the error messages on stderr), kept while both still appear, stdout unless hidden."""
    printed: list[str] = []
    errors: list[str] = []
    out: Any = _Tee(sys.stdout, printed, hidden)
    err: Any = _Tee(sys.stderr, errors, False, "error: ")
    with redirect_stdout(out), redirect_stderr(err):
        yield printed, errors


@contextmanager
def _cleared() -> Iterator[None]:
    """Give back what a command leaves: models in memory and the number of threads."""
    try:
        import torch
    except ModuleNotFoundError:  # a recipe of commands that need none
        yield
        return
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        gc.collect()
        torch.set_num_threads(threads)
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def _figures(stage: Stage, printed: str) -> dict[str, float]:
    """The numbers of a stage: of the JSON it printed, else of the manifests in the folders it wrote."""
    if stage.prints_json:
        try:
            record = json.loads(printed)
        except ValueError:
            return {}
        return _numbers(record.get("figures", record)) if isinstance(record, dict) else {}
    found: dict[str, float] = {}
    for path in stage.outputs:
        try:
            manifest = json.loads((Path(path) / "training_manifest.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        found |= _numbers({**manifest.get("final_metrics", {}), **{n: manifest.get(n) for n in _OF_MANIFEST}})
    return found


_OF_MANIFEST = ("training_steps", "tokens_seen", "seconds", "final_lambda")


def _numbers(record: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a record by dotted name."""
    found: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, dict):
            found |= _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found[f"{prefix}{name}"] = value
    return found
