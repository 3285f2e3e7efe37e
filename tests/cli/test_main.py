"""The command line as a whole: help, speed, errors, spellings. Each is run as a user runs it, in a process."""

from __future__ import annotations

import os
import subprocess
import sys
import types

import pytest
import typer

import onebit.cli.main as cli
from onebit.errors import OnebitError


def onebit(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "onebit.cli.main", *args],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )


def modules_after(code: str) -> set[str]:
    """What is loaded once this has run: on a machine that others use, modules are counted, not seconds."""
    told = f"{code}; import sys; print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, timeout=60, check=True)
    return set(done.stderr.split())


def test_help_groups_commands_and_is_fast() -> None:
    text = onebit("--help").stdout
    panels = ["Start:", "Train:", "Convert:", "Run:", "Judge:", "Look inside:"]
    places = [text.index(panel) for panel in panels]
    assert places == sorted(places)
    for name in cli.COMMANDS:
        assert f"\n  {name} " in text
    # 150 modules, 35 of them the interpreter's own: 0.1 s. numpy alone would be 140 more, rich 60.
    loaded = modules_after("from onebit.cli.main import execute; execute(['--help'])")
    assert not loaded & {"torch", "numpy", "transformers", "tokenizers", "jinja2", "rich"}
    assert len(loaded) < 220


def test_import_is_fast_and_brings_no_torch() -> None:
    assert not {"torch", "rich"} & modules_after("import onebit, onebit.cli.main")
    assert len(modules_after("import onebit")) < 110  # 71


def test_no_arguments_shows_help() -> None:
    done = onebit()
    assert done.returncode == 0
    assert "Usage: onebit" in done.stdout


def test_version() -> None:
    from onebit import __version__

    assert onebit("--version").stdout.strip() == f"onebit {__version__}"


@pytest.mark.parametrize(
    ("args", "says"),
    [(["generat"], "did you mean 'generate'"), (["--nonsense"], "--nonsense")],
)
def test_usage_errors_are_one_line_and_exit_2(args: list[str], says: str) -> None:
    done = onebit(*args)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert says in done.stderr
    assert done.stdout == ""


def test_colours_only_on_a_terminal() -> None:
    assert "\033" not in onebit("--help").stdout


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """A command `probe` whose behaviour the test chooses by its argument."""
    seen: list[object] = []

    def body(
        what: str = typer.Argument("ok"),
        max_steps: int = typer.Option(1, "--max-steps"),
        stop: str = typer.Option("", "--stop"),
    ) -> None:
        seen.extend([what, max_steps, stop])
        if what == "mistake":
            raise OnebitError("two\nlines")
        if what == "missing":
            open("no/such/file")  # noqa: SIM115
        if what == "rename":
            os.replace(__file__, "no/such/target")
        if what == "extra":
            raise ModuleNotFoundError("No module named 'gguf.reader'", name="gguf.reader")
        if what == "interrupt":
            raise KeyboardInterrupt
        if what == "bug":
            raise RuntimeError("ours")
        if what == "three":
            raise typer.Exit(3)

    module = types.ModuleType("onebit.cli.probe")
    module.probe = body  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "onebit.cli.probe", module)
    monkeypatch.setitem(cli.COMMANDS, "probe", cli.CommandLine("Start", "A probe."))
    return seen


@pytest.mark.parametrize(
    ("what", "code", "message"),
    [
        ("ok", 0, ""),
        ("mistake", 2, "error: two lines\n"),
        ("missing", 2, "error: no/such/file: No such file or directory\n"),
        ("rename", 2, "error: no/such/target: No such file or directory\n"),
        ("extra", 2, "error: onebit probe needs the extra 'formats': pip install 'onebit[formats]'\n"),
        ("interrupt", 130, ""),
        ("three", 3, ""),
    ],
)
def test_exit_codes(
    probe: list[object], capsys: pytest.CaptureFixture[str], what: str, code: int, message: str
) -> None:
    assert cli.execute(["probe", what]) == code
    assert capsys.readouterr().err == message


def test_our_own_bugs_keep_their_traceback(probe: list[object]) -> None:
    with pytest.raises(RuntimeError, match="ours"):
        cli.execute(["probe", "bug"])


@pytest.mark.parametrize("flag", ["--max_steps", "--max-steps"])
def test_flags_with_underscores_but_values_untouched(probe: list[object], flag: str) -> None:
    assert cli.execute(["probe", "a_b", flag, "7", "--stop", "--un_known"]) == 0
    assert cli.execute(["probe", "a_b", f"{flag}=8", "--stop=x_y"]) == 0
    assert probe == ["a_b", 7, "--un_known", "a_b", 8, "x_y"]


def test_completion_lists_commands_and_options() -> None:
    commands = onebit(_ONEBIT_COMPLETE="complete_bash", COMP_WORDS="onebit ch", COMP_CWORD="1")
    assert commands.stdout.split() == ["chat"]
    source = onebit(_ONEBIT_COMPLETE="source_bash")
    assert "_ONEBIT_COMPLETE" in source.stdout


def test_every_old_binary_has_its_command() -> None:
    import onebit.cli.aliases as aliases

    assert set(aliases.__all__) == {"train", "export", "chat", "test_generate", "search", "eval_config"}
