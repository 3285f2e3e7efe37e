"""onebit chat as a person uses it (through a pty) and as a script does (through a pipe)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "onebit.cli.main", "chat"]


def pipe(model: Path, lines: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, str(model), "--seed", "1", "--max-new-tokens", "12", *args],
        input=lines,
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        timeout=60,
    )


def test_a_pipe_gets_answers_only(model_file: Path) -> None:
    done = pipe(model_file, "hello\nagain\n")
    assert done.returncode == 0
    assert done.stdout.strip()
    assert ">" not in done.stdout.split("\n")[0][:2]
    assert done.stderr == ""
    assert done.stdout == pipe(model_file, "hello\nagain\n").stdout


def test_reset_forgets(chat_file: Path) -> None:
    """After /reset a question is answered as if it were the first (greedy: the seed moves on with the turns)."""
    greedy = ("--temperature", "0")
    first = pipe(chat_file, "one\n", *greedy).stdout
    both = pipe(chat_file, "two\n/reset\none\n", *greedy).stdout
    kept = pipe(chat_file, "two\none\n", *greedy).stdout
    assert both.endswith(first)
    assert both != kept


def test_commands_in_a_pipe(chat_file: Path, tmp_path: Path) -> None:
    saved = tmp_path / "chat.json"
    done = pipe(chat_file, f"/system Be brief.\nhi\n/save {saved}\n/help\n/hlep\n/save\n/exit\nnot read\n")
    assert done.returncode == 0
    assert "/reset" in done.stderr
    assert "did you mean '/help'" in done.stderr
    assert "name a file" in done.stderr
    messages = json.loads(saved.read_text())["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant"]
    assert messages[0]["content"] == "Be brief."


def test_a_long_chat_says_what_it_drops(chat_file: Path) -> None:
    done = pipe(chat_file, ("x" * 60 + "\n") * 6)
    assert done.returncode == 0
    assert re.search(r"\[dropped the \d+ oldest turns: the context holds 256 tokens\]", done.stderr)


def test_a_missing_model_is_one_line(tmp_path: Path) -> None:
    done = pipe(tmp_path / "none.1bit", "hi\n")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


class Terminal:
    """A program on a pty: type into it, wait for what it writes."""

    def __init__(self, *command: str) -> None:
        import pty

        self.pid, self.fd = pty.fork()
        if self.pid == 0:  # pragma: no cover - the child
            os.environ["TERM"] = "xterm"
            os.execv(command[0], command)
        self.seen = ""

    def wait_for(self, text: str, seconds: float = 30.0) -> None:
        """Read until `text` shows up after what was waited for before."""
        import select

        deadline = time.monotonic() + seconds
        while text not in self.seen:
            ready, _, _ = select.select([self.fd], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{text!r} did not come; seen: {self.seen[-2000:]!r}"
            try:
                self.seen += os.read(self.fd, 4096).decode("utf-8", "replace")
            except OSError as closed:  # Linux reports the end of a pty so
                raise AssertionError(f"ended before {text!r}; seen: {self.seen[-2000:]!r}") from closed
        self.seen = self.seen[self.seen.index(text) + len(text) :]

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def exit_code(self) -> int:
        while True:
            try:
                if not os.read(self.fd, 4096):
                    break
            except OSError:
                break
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture
def terminal(model_file: Path) -> Iterator[Terminal]:
    if sys.platform == "win32":
        pytest.skip("no pty")
    running = Terminal(*COMMAND, str(model_file), "--max-new-tokens", "250", "--threads", "1")
    yield running
    try:
        os.kill(running.pid, 9)
        os.waitpid(running.pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass
    os.close(running.fd)


def test_a_person_chats_and_leaves(terminal: Terminal) -> None:
    terminal.wait_for("no chat template")
    terminal.wait_for("> ")
    terminal.type("abc\r")
    terminal.wait_for("\n")
    terminal.wait_for("> ")
    terminal.type("/reset\r")
    terminal.wait_for("forgotten")
    terminal.wait_for("> ")
    terminal.type("\x04")
    assert terminal.exit_code() == 0


def test_ctrl_c_at_the_prompt_does_not_leave(terminal: Terminal) -> None:
    terminal.wait_for("> ")
    time.sleep(0.5)  # readline shows its prompt a moment before it listens
    terminal.type("\x03")
    terminal.wait_for("/exit leaves")
    terminal.wait_for("> ")
    terminal.type("/exit\r")
    assert terminal.exit_code() == 0


def test_ctrl_c_stops_the_answer_and_not_the_program(chat_file: Path, tmp_path: Path) -> None:
    """The answer is made slow so that Ctrl-C surely falls into it."""
    if sys.platform == "win32":
        pytest.skip("no pty")
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import sys, time\n"
        "from onebit.engine.generate import Generation\n"
        "real = Generation.__next__\n"
        "def slowly(self):\n"
        "    time.sleep(0.2)\n"
        "    return real(self)\n"
        "Generation.__next__ = slowly\n"
        "from onebit.cli.main import run\n"
        "run(sys.argv[1:])\n"
    )
    running = Terminal(sys.executable, str(slow), "chat", str(chat_file))
    try:
        running.wait_for("> ")
        running.type("hello\r")
        running.wait_for("hello")
        time.sleep(1.0)
        running.type("\x03")
        running.wait_for("[stopped]")
        running.wait_for("> ")
        running.type("/save " + str(tmp_path / "c.json") + "\r")
        running.wait_for("Saved")
        running.type("/exit\r")
        assert running.exit_code() == 0
    finally:
        os.close(running.fd)
    roles = [message["role"] for message in json.loads((tmp_path / "c.json").read_text())["messages"]]
    assert roles == ["user", "assistant"]
