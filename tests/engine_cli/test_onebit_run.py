"""onebit-run against the Python face of the same engine: the same text, the same stops, clear errors."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from onebit.engine import Model
from onebit.formats import onebit_file
from onebit.formats.random_model import random_file

from .conftest import CHAT

Run = Callable[..., "subprocess.CompletedProcess[str]"]
MakeModel = Callable[..., Path]
GREEDY = ("--temperature", 0, "--repetition-penalty", 1)


def continuation(path: Path, prompt: str, count: int, **sampling: object) -> str:
    """What the Python face generates after a prompt (and BOS, when the model has one)."""
    model = Model(path, threads=1)
    ids = model.tokenizer.encode(prompt, add_special_tokens=False).ids
    ids = ids if model.description.bos is None else [model.description.bos, *ids]
    return "".join(model.generate(ids, max_new_tokens=count, **sampling))  # type: ignore[arg-type]


@pytest.mark.parametrize("bos", [None, 1])
@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
@pytest.mark.parametrize("prompt", ["in the", "\u00e9 \U0001f600 don't  stop\n", "<|im_start|>x</s>"])
def test_greedy_text_equals_the_python_face(
    run: Run, make_model: MakeModel, kind: str, prompt: str, bos: int | None
) -> None:
    path = make_model(kind, bos=bos, eos=2)
    wanted = prompt + continuation(path, prompt, 40, temperature=0) + "\n"
    for isa, threads in (("scalar", 1), ("auto", 2)):
        done = run(path, "-p", prompt, "-n", 40, "--isa", isa, "--threads", threads, *GREEDY)
        assert (done.returncode, done.stdout) == (0, wanted), done.stderr


@pytest.mark.parametrize("seed", range(5))
def test_sampled_text_equals_the_python_face(run: Run, make_model: MakeModel, seed: int) -> None:
    path = make_model()
    sampling = {"temperature": 0.9, "top_k": 30, "top_p": 0.8, "min_p": 0.01, "repetition_penalty": 1.2}
    flags = [word for name, value in sampling.items() for word in (f"--{name}", value)]  # underscores are accepted
    done = run(path, "--prompt", "in the", "-n", 50, "--seed", seed, *flags)
    assert done.stdout == "in the" + continuation(path, "in the", 50, seed=seed, **sampling) + "\n"


@pytest.mark.parametrize("kv", ["float32", "float16", "int8"])
def test_the_type_of_keys_and_values(run: Run, make_model: MakeModel, kv: str) -> None:
    path = make_model()
    model = Model(path, threads=1)
    text = "".join(model.generate("in the", session=model.session(kv=kv), max_new_tokens=30, temperature=0))
    assert run(path, "-p", "in the", "-n", 30, "--kv", kv, *GREEDY).stdout == "in the" + text + "\n"
    refused = run(path, "-p", "in the", "--kv", "int9")
    assert refused.returncode == 2
    assert "float32, float16 or int8" in refused.stderr


def test_a_prompt_can_come_from_stdin(run: Run, make_model: MakeModel) -> None:
    path = make_model(chat=False)
    assert run(path, "-n", 9, *GREEDY, stdin="in the").stdout == run(path, "-p", "in the", "-n", 9, *GREEDY).stdout


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX terminal")
def test_on_a_terminal_it_says_that_it_waits_and_one_ctrl_d_is_enough(program: Path, make_model: MakeModel) -> None:
    import pty

    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            [program, make_model(chat=False), "-n", "3"], stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stderr is not None
        assert b"end it with Ctrl-D" in process.stderr.readline()
        os.write(ours, b"in the\n")
        os.write(ours, b"\x04")
        out, _ = process.communicate(timeout=30)
    finally:
        os.close(ours)
        os.close(theirs)
    assert (process.returncode, out[:7]) == (0, b"in the\n")


def test_stop_texts_end_the_answer_and_are_not_shown(run: Run, make_model: MakeModel) -> None:
    path = make_model()
    arguments = (path, "-p", "in", "-n", 60, "--seed", 4, "--temperature", 1.5, "--stop", "never there")
    whole = run(*arguments).stdout[2:-1]
    for length in (1, 3, 7):
        stop = whole[10 : 10 + length]
        if "\ufffd" in stop:
            continue
        assert run(*arguments, "--stop", stop).stdout[2:-1] == whole[: whole.index(stop)]


def test_a_chat_turn_renders_the_template(run: Run, make_model: MakeModel) -> None:
    path = make_model()
    prompt = CHAT.render([{"role": "user", "content": "in the?"}])
    end = Model(path, threads=1).tokenizer.token_to_id("<|im_end|>")
    done = run(path, "--chat", "-p", "in the?", "-n", 30, *GREEDY)
    model = Model(path, threads=1)
    pieces = model.generate(model.tokenizer.encode(prompt).ids, max_new_tokens=30, temperature=0)
    wanted = "".join(pieces)
    assert end not in pieces.ids  # else the answer below would end there
    assert done.stdout == wanted + "\n"


def test_reset_begins_a_conversation_again(run: Run, make_model: MakeModel) -> None:
    path = make_model(max_seq_len=400)
    once = run(path, "-n", 8, *GREEDY, stdin="the\n").stdout
    twice = run(path, "-n", 8, *GREEDY, stdin="the\n/reset\nthe\n/exit\nnot read\n")
    assert (twice.returncode, twice.stdout) == (0, once + once)
    follow_up = run(path, "-n", 8, *GREEDY, stdin="the\nin\n").stdout
    assert follow_up.startswith(once)
    assert len(follow_up) > len(once)


@pytest.mark.skipif(sys.platform == "win32", reason="signals differ")
def test_interrupt_stops_the_answer_and_not_the_program(program: Path, make_model: MakeModel) -> None:
    path = make_model(max_seq_len=100_000)  # minutes of text
    command = [str(program), str(path), "-n", "0", "--temperature", "2", "--threads", "1", "--stats"]
    chat = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert chat.stdin is not None
    assert chat.stdout is not None
    chat.stdin.write(b"the\n")
    chat.stdin.flush()
    chat.stdout.read(1)  # the answer has begun
    chat.send_signal(signal.SIGINT)
    chat.stdin.write(b"/exit\n")
    _, errors = chat.communicate(timeout=30)
    assert chat.returncode == 0
    assert b"> > " in errors
    assert b"answer: " in errors


def test_info_shows_tensors_sections_and_kernels(run: Run, make_model: MakeModel) -> None:
    text = run(make_model(), "--info").stdout
    for part in ("vocab_size 265", "model.layers.1.mlp.up_proj.weight", "ternary_t16", "TOKBIN", "kernel: "):
        assert part in text


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "no model given"),
        (["--nope"], "--nope"),
        (["--nope", "1"], "--nope"),
        (["a", "b"], "only one file"),
        (["nowhere.1bit"], "nowhere.1bit"),
        ([__file__], "not a .1bit file"),
        (["m", "-n", "-1"], "whole number"),
        (["m", "-n"], "a value expected"),
        (["m", "--top-p", "2"], "0 to 1"),
        (["m", "--temperature", "nan"], "0 to 100"),
        (["m", "--isa", "mmx"], "avx2"),
        (["m", "--stop", ""], "some text"),
        (["m", "--seed", "99999999999999999999x"], "whole number"),
    ],
)
def test_bad_arguments_are_one_line_and_code_2(run: Run, arguments: list[str], named: str) -> None:
    assert_refused(run(*arguments), named)


def assert_refused(done: subprocess.CompletedProcess[str], named: str) -> None:
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert named in done.stderr
    assert done.stdout == ""


def test_bad_models_and_prompts_are_refused(run: Run, make_model: MakeModel, tmp_path: Path) -> None:
    path = make_model(chat=False)
    data = path.read_bytes()
    bad = tmp_path / "bad.1bit"
    bad.write_bytes(data[: len(data) // 2])
    assert_refused(run(bad, "-p", "x"), "incomplete")
    flipped = bytearray(data)
    flipped[-1000] ^= 4
    bad.write_bytes(flipped)
    assert_refused(run(bad, "-p", "x"), "checksum is wrong")
    assert run(bad, "-p", "x", "--no-verify", "-n", 2).returncode == 0
    assert_refused(run(path, "--chat", "-p", "x"), "no chat template")
    assert_refused(run(path, "-p", "x " * 100), "the model's 64")
    onebit_file.write(bad, random_file())
    assert_refused(run(bad, "-p", "x"), "no tokenizer")


@pytest.mark.parametrize("flags", [["--lookup"], ["--draft"], ["--lookup", "--draft", "--speculate-tokens", 3]])
def test_speculation_changes_no_text(run: Run, make_model: MakeModel, flags: list[object]) -> None:
    path = make_model(chat=False)
    flags = [part for flag in flags for part in ([flag, path] if flag == "--draft" else [flag])]
    prompt = "in the end in the"
    plain = run(path, "-p", prompt, "-n", 60, "--stop", "e", *GREEDY)
    done = run(path, "-p", prompt, "-n", 60, "--stop", "e", "--stats", *GREEDY, *flags)
    assert (done.returncode, done.stdout) == (0, plain.stdout), done.stderr
    assert "proposed tokens accepted" in done.stderr
    sampled = ("-p", prompt, "-n", 60, "--seed", 3)
    if "--draft" not in flags:
        assert run(path, *sampled, *flags).stdout == run(path, *sampled).stdout


def test_a_full_context_shifts(run: Run, make_model: MakeModel) -> None:
    path = make_model(chat=False)
    room = Model(path).description.max_seq_len
    whole = run(path, "-p", "in the", "-n", room + 20, "--stats", *GREEDY, "--context-shift", 2)
    assert whole.returncode == 0, whole.stderr
    assert "is full" not in whole.stderr
    assert run(path, "-p", "in the", "-n", room + 20, *GREEDY, "--context-shift", 2, "--lookup").stdout == whole.stdout
    assert "keeps too much" in run(path, "-p", "x", "--context-shift", room).stderr


def test_speculation_is_refused_in_words(run: Run, make_model: MakeModel, tmp_path: Path) -> None:
    path = make_model(chat=False)
    assert "1 to 31" in run(path, "-p", "x", "--lookup", "--speculate-tokens", 0).stderr
    other = tmp_path / "other.1bit"
    onebit_file.write(other, random_file())
    assert "the model's tokenizer" in run(path, "-p", "x", "--draft", other).stderr
    assert run(path, "-p", "x", "--draft", tmp_path / "none.1bit").returncode == 2
