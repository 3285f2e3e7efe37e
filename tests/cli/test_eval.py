"""`onebit eval` over every kind of model a user can name: figures, tasks, the page, and what cannot be measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.eval.harness_tasks import write_tasks

from onebit.cli.main import execute
from onebit.formats.convert import open_any, write_any
from onebit.formats.onebit_file import write
from onebit.formats.random_model import random_description, random_file

from .conftest import byte_tokenizer

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shared by the processes that measure, and gone after the tests."""
    monkeypatch.setenv("ONEBIT_CACHE", str(tmp_path_factory.getbasetemp() / "models"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.getbasetemp() / "datasets"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.getbasetemp() / "datasets"))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("def read(path):\n    return open(path).read()\n" * 8)
    return path


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    pytest.importorskip("lm_eval")
    folder = tmp_path / "tasks"
    folder.mkdir()
    return write_tasks(folder)


def record_of(capture: Capture, *args: object) -> Any:
    assert execute([*map(str, ("eval", *args)), "--json"]) == 0, capture.readouterr().err
    return json.loads(capture.readouterr().out)


def quality(record: dict[str, Any]) -> dict[str, Any]:
    """The figures that do not depend on the time it took or the form it lies in."""
    return {k: v for k, v in record["figures"].items() if k.startswith("task/") or k in ("loss", "tokens")}


def test_a_file_with_everything(model_file: Path, text: Path, tasks: Path, capsys: Capture) -> None:
    asked = ("--data", text, "--tasks", "pick_local,texts_local", "--task-path", tasks, "--limit", 3, "--speed")
    told = record_of(capsys, model_file, *asked)
    figures, config = told["figures"], told["config"]
    assert figures["size_bytes"] == model_file.stat().st_size
    assert figures["bits_per_weight"] == pytest.approx(8 * figures["size_bytes"] / figures["num_weights"])
    assert min(figures[k] for k in ("tokens_per_s_decode", "tokens_per_s_prefill", "memory_bytes", "loss")) > 0
    assert 0 <= figures["task/pick_local/acc"] <= 1
    assert figures["task/pick_local/acc_stderr"] > 0 or figures["task/pick_local/acc"] in (0, 1)
    assert config["higher_is_better"]["task/pick_local/acc"] is True
    assert (config["limit"], config["tasks"]) == (3, ["pick_local", "texts_local"])
    # A byte is a token here, and the text is scored the same way by the task.
    assert execute(["eval", *map(str, (model_file, *asked))]) == 0
    lines = capsys.readouterr().out
    for word in ("nats per token", "MB, ", "tokens/s written", "pick_local", "bits_per_byte"):
        assert word in lines


def test_every_form_of_a_model_is_the_same_model(text: Path, tasks: Path, tmp_path: Path, capsys: Capture) -> None:
    """A GGUF file and the page: each in a process of its own, and a record that was kept."""
    file, gguf, page, kept = (tmp_path / name for name in ("model.1bit", "model.gguf", "page.html", "kept.json"))
    sizes = {"vocab_size": 256, "hidden_size": 256, "head_dim": 64, "intermediate_size": 256, "max_seq_len": 64}
    description = random_description(**sizes, tied_head=False, bos=None, eos=None)
    write(file, random_file(description, tokenizer_json=byte_tokenizer().to_str()))
    write_any(gguf, open_any(file, lossy=True), "gguf", lossy=True)
    asked = ("--data", text, "--tasks", "pick_local", "--task-path", tasks)
    alone = record_of(capsys, file, *asked)
    kept.write_text(json.dumps(alone))
    first, second, third = record_of(capsys, file, gguf, kept, *asked, "--report", page)
    assert quality(first) == quality(alone) == quality(third)
    assert first["config"] == alone["config"]
    assert quality(second)["loss"] == pytest.approx(quality(first)["loss"], abs=0.02)  # embeddings become float16
    assert second["figures"]["size_bytes"] == gguf.stat().st_size
    html = page.read_text()
    for name in (file.name, gguf.name, "pick_local acc", "tokens/s written", "memory, MB"):
        assert name in html


def test_a_checkpoint_beside_its_file(checkpoint: Path, text: Path, tmp_path: Path, capsys: Capture) -> None:
    """Torch measures one, the engine the other; both say how much memory and time it took."""
    file = tmp_path / "exported.1bit"
    assert execute(["export", "--model-dir", str(checkpoint), "--output", str(file)]) == 0
    capsys.readouterr()
    ours, theirs = record_of(capsys, checkpoint, file, "--data", text, "--speed")
    assert (ours["config"]["runtime"], theirs["config"]["runtime"]) == ("torch", "engine")
    assert ours["figures"]["loss"] == pytest.approx(theirs["figures"]["loss"], abs=5e-3)  # int8 embedding and head
    assert ours["figures"]["num_weights"] == theirs["figures"]["num_weights"]
    assert ours["figures"]["size_bytes"] > 2 * theirs["figures"]["size_bytes"]
    for one in (ours, theirs):
        assert one["figures"]["tokens_per_s_decode"] > 0
        assert one["figures"]["memory_bytes"] > 0


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "nothing to measure: give --data FILE"),
        (["no/such", "--speed"], "no/such: no such file"),
        (["{text}.json", "--speed"], "text.txt.json: No such file"),
    ],
)
def test_what_means_nothing_is_said_at_once(
    model_file: Path, text: Path, tmp_path: Path, capsys: Capture, args: list[str], says: str
) -> None:
    page = tmp_path / "page.html"
    given = [arg.format(text=text) for arg in args]
    for report in [["--report", str(page)], []] if args else [[]]:
        assert execute(["eval", str(model_file), *given, *report]) == 2
        told = capsys.readouterr()
        assert told.err.startswith(f"error: {says}" if "json" not in says else "error: ")
        assert says in told.err
        assert told.out == ""
    assert not page.exists()


@pytest.mark.parametrize(
    ("model", "says"),
    [("{text}", "not a .1bit file"), ("http://127.0.0.1:9", "does not answer as a server of models does")],
)
def test_one_that_cannot_be_measured_is_left_out(
    model_file: Path, text: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], model: str, says: str
) -> None:
    """Its own process says why, in one line; the others are on the page, and the exit code is 2."""
    page, given = tmp_path / "page.html", model.format(text=text)
    assert execute(["eval", given, str(model_file), "--data", str(text), "--report", str(page)]) == 2
    told = capfd.readouterr()
    assert says in told.err
    assert f"{given} is left out" in told.err
    assert "Traceback" not in told.err
    assert model_file.name in page.read_text()
    assert "1 side by side" in told.out
    page.unlink()
    assert execute(["eval", given, "--data", str(text), "--report", str(page)]) == 2
    assert not page.exists()


def test_ctrl_c_keeps_what_was_measured(
    model_file: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Of three, the second is stopped: the first is on the page."""
    from onebit.cli import eval as command

    page, measured = tmp_path / "page.html", []
    apart = command._judged_apart

    def until_the_second(*args: Any) -> Any:
        measured.append(args)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return apart(*args)

    monkeypatch.setattr(command, "_judged_apart", until_the_second)
    names = [str(model_file), "tiny", str(model_file)]
    assert execute(["eval", *names, "--data", str(text), "--report", str(page)]) == 130
    assert f"stopped; not measured: tiny, {model_file}" in capsys.readouterr().err
    assert "<b>plain.1bit</b>" in page.read_text()
    assert "<b>tiny</b>" not in page.read_text()
