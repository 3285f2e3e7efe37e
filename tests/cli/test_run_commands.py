"""generate, eval, verify and doctor on real files, through the command line as a user gives it."""

from __future__ import annotations

import io
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from onebit.cli.main import execute

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ONEBIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def output(capture: Capture, *args: object) -> str:
    assert execute([str(arg) for arg in args]) == 0, capture.readouterr().err
    return capture.readouterr().out


def generate(capture: Capture, model: Path, *args: object) -> str:
    return output(capture, "generate", model, "def f", "--max-new-tokens", 20, *args)


def test_generate_continues_the_prompt(model_file: Path, capsys: Capture) -> None:
    text = generate(capsys, model_file, "--seed", 1)
    assert text.startswith("def f")
    assert len(text) > len("def f\n")
    assert text == generate(capsys, model_file, "--seed", 1)
    assert text != generate(capsys, model_file, "--seed", 2)


def test_generate_is_the_same_on_every_kernel_and_thread(model_file: Path, capsys: Capture) -> None:
    text = generate(capsys, model_file, "--seed", 1)
    assert text == generate(capsys, model_file, "--seed", 1, "--isa", "scalar", "--threads", 2)


def test_greedy_needs_no_seed(model_file: Path, capsys: Capture) -> None:
    assert generate(capsys, model_file, "--temperature", 0) == generate(capsys, model_file, "--temperature", 0)


def test_generate_json(model_file: Path, capsys: Capture) -> None:
    record = json.loads(generate(capsys, model_file, "--seed", 1, "--json"))
    assert record["prompt"] == "def f"
    assert record["sampling"]["seed"] == 1
    assert record["stats"]["new_tokens"] == 20
    assert "def f" + record["text"] + "\n" == generate(capsys, model_file, "--seed", 1)


def test_generate_stats_go_to_stderr(model_file: Path, capsys: Capture) -> None:
    args = ["generate", str(model_file), "ab", "--max-new-tokens", "5", "--stats"]
    assert execute(args) == 0
    captured = capsys.readouterr()
    assert "2 prompt tokens" in captured.err
    assert "5 new ones" in captured.err
    assert "tokens/s" not in captured.out


def test_generate_stops_before_a_stop_string(model_file: Path, capsys: Capture) -> None:
    whole = json.loads(generate(capsys, model_file, "--temperature", 0, "--json"))["text"]
    stop = whole[3:5]
    cut = json.loads(generate(capsys, model_file, "--temperature", 0, "--json", "--stop", stop))
    assert cut["text"] == whole[: whole.index(stop)]
    assert cut["stats"]["stopped_by"] == "stop"


def test_generate_reads_stdin_and_the_old_flag(
    model_file: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("def f"))
    piped = output(capsys, "generate", model_file, "-", "--max_new_tokens", 20, "--temperature", 0)
    old = output(capsys, "generate", "--model-dir", model_file, "def f", "--max-new-tokens=20", "--temperature=0")
    assert piped == old == generate(capsys, model_file, "--temperature", 0)


def test_an_empty_prompt_starts_from_nothing(model_file: Path, capsys: Capture) -> None:
    assert output(capsys, "generate", model_file, "--max-new-tokens", 5).strip("\n")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["generate", "no/such.1bit", "x"], "no/such.1bit: no such file"),
        (["generate", "typo"], "typo: no such file"),
        (["eval", "no/such", "--data", "x"], "no/such: no such file"),
        (["verify", "no/such", "neither"], "no/such: no such file"),
        (["info", "."], ".: a folder, and this reads files; make one with 'onebit convert . NAME.1bit'"),
    ],
)
def test_missing_files_are_one_line(capsys: Capture, args: list[str], says: str) -> None:
    assert execute(args) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {says}")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "flags",
    [
        ["--temperature", "-1"],
        ["--temperature", "nan"],
        ["--top-p", "2"],
        ["--min-p", "-0.1"],
        ["--top-k", "-1"],
        ["--repetition-penalty", "0"],
        ["--max-new-tokens", "0"],
        ["--seed", "-1"],
        ["--seed", str(2**64)],
        ["--threads", "0"],
        ["--isa", "avx3"],
    ],
)
def test_a_flag_out_of_range_is_one_line(model_file: Path, capsys: Capture, flags: list[str]) -> None:
    assert execute(["generate", str(model_file), "x", *flags]) == 2
    error = capsys.readouterr().err
    assert flags[0].strip("-").replace("-", "_") in error.replace("-", "_")
    assert error.count("\n") == 1


@pytest.mark.parametrize("args", [["generate", "a.1bit", "a prompt"], ["chat", "a.1bit"]])
def test_two_models_are_one_too_many(capsys: Capture, args: list[str]) -> None:
    assert execute([*args, "--model-dir", "b"]) == 2
    assert "both name a model" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--stride", "0"], ["--context", "0"], ["--max-tokens", "1"], ["--threads", "0"]])
def test_eval_refuses_sizes_that_make_no_sense(model_file: Path, capsys: Capture, flags: list[str]) -> None:
    assert execute(["eval", str(model_file), "--data", __file__, *flags]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(("device", "says"), [("gpu", "--device is 'gpu'"), ("cuda:99", "--device cuda:99")])
def test_eval_refuses_a_device_that_is_not_there(tmp_path: Path, capsys: Capture, device: str, says: str) -> None:
    pytest.importorskip("transformers")
    assert execute(["eval", str(_folder_with_config(tmp_path)), "--data", __file__, "--device", device]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_a_damaged_file_is_one_line(model_file: Path, tmp_path: Path, capsys: Capture) -> None:
    damaged = tmp_path / "damaged.1bit"
    damaged.write_bytes(model_file.read_bytes()[:-100])
    assert execute(["generate", str(damaged), "x"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_checkpoint_is_exported_to_the_cache_once(
    checkpoint: Path, own_cache: Path, tmp_path: Path, capsys: Capture
) -> None:
    first = generate(capsys, checkpoint, "--temperature", 0)
    (exported,) = own_cache.glob("*.1bit")
    written = exported.stat().st_mtime_ns
    assert generate(capsys, checkpoint, "--temperature", 0) == first
    assert exported.stat().st_mtime_ns == written
    changed = tmp_path / "changed"
    shutil.copytree(checkpoint, changed)
    (changed / "chat_template.jinja").write_text("{{ messages[0].content }}")
    generate(capsys, changed, "--temperature", 0)
    assert len(list(own_cache.glob("*.1bit"))) == 2


def test_eval_gives_the_same_figures_through_torch_and_engine(
    checkpoint: Path, tmp_path: Path, capsys: Capture
) -> None:
    from onebit.formats.checkpoint import from_checkpoint
    from onebit.formats.onebit_file import write

    file, text = tmp_path / "model.1bit", tmp_path / "text.txt"
    write(file, from_checkpoint(checkpoint, embedding_level="float32"))
    text.write_text("Ein Text, der lang genug ist, um mehr als ein Fenster zu füllen. " * 8, encoding="utf-8")
    for options in ([], ["--stride", "40"], ["--context", "50", "--max-tokens", "200"]):
        figures = [
            json.loads(output(capsys, "eval", model, "--data", text, "--json", *options))["figures"]
            for model in (checkpoint, file)
        ]
        # float32 sums in another order: 1e-6 of a logit, less in a mean
        assert figures[0]["loss"] == pytest.approx(figures[1]["loss"], rel=1e-6)
        assert figures[0]["bits_per_byte"] == pytest.approx(figures[1]["bits_per_byte"], rel=1e-6)
        assert [figures[0][key] for key in ("tokens", "bytes", "words")] == [
            figures[1][key] for key in ("tokens", "bytes", "words")
        ]
    # one token a byte, hardly trained: near the uniform distribution over 256
    assert figures[0]["loss"] == pytest.approx(math.log(256), rel=0.2)


def test_verify_says_same_or_different_with_its_exit_code(checkpoint: Path, tmp_path: Path, capsys: Capture) -> None:
    from onebit.formats.checkpoint import from_checkpoint
    from onebit.formats.onebit_file import write
    from onebit.models import OneBitForCausalLM

    file = tmp_path / "model.1bit"
    write(file, from_checkpoint(checkpoint, embedding_level="int8"))
    report = output(capsys, "verify", checkpoint, file)
    assert report.startswith("same: ")
    assert "embed_tokens is stored as int8" in report
    model = OneBitForCausalLM.from_pretrained(checkpoint)
    model.model.layers[1].mlp.down_proj.weight.data[:8] *= -1
    other = tmp_path / "other"
    model.save_pretrained(other)
    assert execute(["verify", str(other), str(file), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["passed"]
    assert found["first_layer"] == 2


def test_doctor_without_and_with_json(capsys: Capture) -> None:
    assert "engine" in output(capsys, "doctor")
    found = json.loads(output(capsys, "doctor", "--json"))
    assert set(found) == {"onebit", "processor", "engine", "torch", "disk", "extras"}
    assert any("ternary_t16" in line for line in found["engine"]["kernels"])


def test_doctor_knows_the_extras_of_pyproject() -> None:
    import tomllib

    from onebit.errors import EXTRAS

    pyproject = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    for extra, modules in EXTRAS.items():
        named = {
            entry.split(">")[0].split(";")[0].split("[")[0].strip().replace("-", "_")
            for entry in pyproject["project"]["optional-dependencies"][extra]
        }
        assert named == set(modules), extra


def test_running_a_model_needs_no_torch(model_file: Path, tmp_path: Path) -> None:
    """As on a machine that has only the core: importing torch or transformers fails."""
    text = tmp_path / "text.txt"
    text.write_text("some text to score, long enough\n")
    blocked = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'datasets', 'safetensors'): sys.modules[name] = None\n"
        "from onebit.cli.main import run\n"
        "run(sys.argv[1:])\n"
    )
    for args in (
        ["generate", str(model_file), "ab", "--max-new-tokens", "3"],
        ["eval", str(model_file), "--data", str(text)],
        ["verify", str(model_file), str(model_file)],
        ["info", str(model_file)],
        ["doctor"],
        ["chat", str(model_file), "--max-new-tokens", "3"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", blocked, *args], input="hi\n", capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, (args, done.stderr)
    folder = str(_folder_with_config(tmp_path))
    for args in (
        ["generate", folder],
        ["eval", folder, "--data", str(text)],
        ["verify", folder, str(model_file)],
        ["export", "--model-dir", folder, "--output", str(tmp_path / "out.1bit")],
        ["train", "--data", str(text), "--output-dir", str(tmp_path / "run")],
        ["tokenizer", "train", "--data", str(text)],
        ["data", str(text)],
    ):
        done = subprocess.run([sys.executable, "-c", blocked, *args], capture_output=True, text=True, timeout=60)
        assert done.returncode == 2, (args, done.stderr)
        errors = [line for line in done.stderr.splitlines() if not line.startswith("exporting")]
        assert len(errors) == 1, (args, done.stderr)
        assert "pip install 'onebit[train]'" in errors[0], args
    assert not (tmp_path / "run").exists()


def _folder_with_config(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("flags", [["--lookup"], ["--draft"], ["--lookup", "--draft", "--speculate-tokens", "2"]])
def test_speculation_changes_no_greedy_text(model_file: Path, capsys: Capture, flags: list[str]) -> None:
    flags = [part for flag in flags for part in ([flag, str(model_file)] if flag == "--draft" else [flag])]
    plain = generate(capsys, model_file, "--temperature", 0)
    assert generate(capsys, model_file, "--temperature", 0, *flags) == plain
    record = json.loads(generate(capsys, model_file, "--temperature", 0, "--json", *flags))
    assert record["stats"]["passes"] + record["stats"]["accepted"] == record["stats"]["new_tokens"] - 1
    assert 0 <= record["stats"]["acceptance"] <= 1
