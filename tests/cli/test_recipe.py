"""Recipes: mistakes are found before anything runs, what is up to date is skipped, what stops goes on there."""

from __future__ import annotations

import json
import sys
import types
from html.parser import HTMLParser
from json import dumps
from pathlib import Path
from typing import Annotated

import pytest
import typer

import onebit.cli.main as cli
from onebit.cli.recipe_file import read_recipe
from onebit.cli.recipe_stages import REPORT_NAME, STATE_NAME
from onebit.errors import ConfigError, OnebitError

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[2]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two commands: `join` writes what it read, `count` prints figures. What ran, in order."""
    ran: list[str] = []

    def join(
        texts: Annotated[list[Path], typer.Argument()],
        output: Annotated[Path, typer.Option("--output")],
        mark: Annotated[str, typer.Option("--mark")] = "",
        fail: Annotated[str, typer.Option("--fail")] = "",
        upper_case: Annotated[bool, typer.Option("--upper-case/--lower-case")] = False,
        cache_dir: Annotated[Path | None, typer.Option("--cache-dir")] = None,
        resume: Annotated[bool, typer.Option()] = True,
        strict: Annotated[bool, typer.Option("--strict")] = False,
    ) -> None:
        ran.append(f"join {mark}" if resume else f"join {mark} anew")
        state = json.loads(next(Path().rglob(STATE_NAME)).read_text())["stages"]
        assert any(record["status"] == "running" for record in state.values())
        output.parent.mkdir(exist_ok=True, parents=True)
        if strict and resume and output.exists() and not output.read_text().endswith(mark):
            raise OnebitError("holds another run")
        if cache_dir is not None:
            cache_dir.mkdir(exist_ok=True)
            (cache_dir / str(len(ran))).touch()
        problem = Path("problem")
        if problem.exists() and fail:
            if fail == "interrupt":
                output.write_text("half")
                raise KeyboardInterrupt
            if fail == "bug":
                raise RuntimeError("ours")
            if fail == "exit":
                raise typer.Exit(143)
            if fail == "mistake":
                raise OnebitError("cannot join <these>")
        if fail != "writes nothing":
            output.write_text("".join(path.read_text() for path in texts if path.is_file()) + mark)

    def count(text: Annotated[Path, typer.Argument()], json: Annotated[bool, typer.Option("--json")] = False) -> None:
        ran.append("count")
        typer.echo(dumps({"characters": len(text.read_text()), "of": {"file": 1.5, "name": "x", "good": True}}))

    for function in (join, count):
        module = types.ModuleType(f"onebit.cli.{function.__name__}")
        setattr(module, function.__name__, function)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(cli.COMMANDS, function.__name__, cli.CommandLine("Start", "A probe."))
    Path("a.txt").write_text("a")
    Path("b.txt").write_text("b")
    return ran


def write(stages: str) -> Path:
    Path("r.yaml").write_text(f"output_dir: out\nstages:\n{stages}")
    return Path("r.yaml")


CHAIN = """
  - join: {texts: [a.txt, b.txt], output: out/ab.txt, mark: first}
  - join: {texts: [out/ab.txt], output: out/abc.txt, mark: second, fail: FAIL}
  - count: {text: out/abc.txt}
"""


def run(ran: list[str], expected: int = 0) -> list[str]:
    ran.clear()
    assert cli.execute(["recipe", "run", "r.yaml"]) == expected
    return list(ran)


def test_what_is_up_to_date_is_skipped(ran: list[str], capsys: Capture) -> None:
    write(CHAIN)
    assert run(ran) == ["join first", "join second", "count"]
    assert Path("out/abc.txt").read_text() == "abfirstsecond"
    assert "characters 13" in capsys.readouterr().out
    assert run(ran) == []
    assert capsys.readouterr().out.count("up to date") == 3


def test_a_changed_input_runs_what_follows_from_it(ran: list[str], capsys: Capture) -> None:
    write(CHAIN)
    run(ran)
    Path("b.txt").write_text("B")
    capsys.readouterr()
    assert run(ran) == ["join first anew", "join second anew", "count"]
    assert "input b.txt is another" in capsys.readouterr().out
    Path("b.txt").write_bytes(Path("b.txt").read_bytes())  # another time, the same content
    assert run(ran) == []


def test_a_stage_that_gives_the_same_again_ends_the_chain(ran: list[str]) -> None:
    write(CHAIN)
    run(ran)
    Path("out/ab.txt").unlink()
    assert run(ran) == ["join first"]


def test_a_changed_flag_and_version_are_reasons(
    ran: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(CHAIN)
    run(ran)
    write(CHAIN.replace("second", "third"))
    capsys.readouterr()
    assert run(ran) == ["join third anew", "count"]
    assert "[2/3] join-2: flag mark is another" in capsys.readouterr().out
    monkeypatch.setattr("onebit.cli.recipe_inputs.__version__", "9.9")
    assert len(run(ran)) == 3
    assert "onebit was 0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("fail", "code", "says"),
    [("mistake", 2, "cannot join <these>"), ("interrupt", 130, ""), ("exit", 143, ""), ("writes nothing", 1, "")],
)
def test_a_stage_that_stops_ends_the_run_with_its_code_and_goes_on_there(
    ran: list[str], capsys: Capture, fail: str, code: int, says: str
) -> None:
    write(CHAIN.replace("FAIL", fail))
    Path("problem").touch()
    assert run(ran, code) == ["join first", "join second"]
    captured = capsys.readouterr()
    assert f"stopped with exit code {code}" in captured.out
    assert says in captured.err
    page = Path("out", REPORT_NAME).read_text()
    assert f"exit code {code}" in page
    assert "not reached" in page
    assert "<these>" not in page
    Path("problem").unlink()
    if fail == "writes nothing":
        assert "did not write out/abc.txt" in page
        write(CHAIN)
    assert run(ran) == [f"join second{' anew' * (fail == 'writes nothing')}", "count"]


def test_a_bug_keeps_its_traceback_and_the_stage_is_not_done(ran: list[str]) -> None:
    write(CHAIN.replace("FAIL", "bug"))
    Path("problem").touch()
    with pytest.raises(RuntimeError, match="ours"):
        cli.execute(["recipe", "run", "r.yaml"])
    Path("problem").unlink()
    assert run(ran) == ["join second", "count"]


def test_half_an_output_does_not_count_when_the_old_flags_come_back(ran: list[str]) -> None:
    write(CHAIN.replace("FAIL", "interrupt"))
    run(ran)
    Path("problem").touch()
    write(CHAIN.replace("FAIL", "interrupt").replace("second", "other"))
    run(ran, 130)
    assert Path("out/abc.txt").read_text() == "half"
    Path("problem").unlink()
    assert run(ran) == ["join other", "count"]  # goes on with what it had started over
    write(CHAIN.replace("FAIL", "interrupt").replace("second", "third"))
    Path("problem").touch()
    run(ran, 130)
    Path("problem").unlink()
    write(CHAIN.replace("FAIL", "interrupt").replace("second", "other"))
    assert run(ran) == ["join other anew"]
    assert Path("out/abc.txt").read_text() == "abfirstother"


def test_a_stage_killed_before_it_could_start_over_does_so_later(ran: list[str], capsys: Capture) -> None:
    stage = "  - join: {texts: a.txt, output: x, mark: MARK, strict: true, fail: bug}"
    write(stage.replace("MARK", "one"))
    run(ran)
    write(stage.replace("MARK", "two"))
    Path("problem").touch()
    for _ in range(2):  # killed twice
        with pytest.raises(RuntimeError, match="ours"):
            cli.execute(["recipe", "run", "r.yaml"])
    Path("problem").unlink()
    assert run(ran) == ["join two", "join two anew"]
    assert "starting over" in capsys.readouterr().out
    assert Path("x").read_text() == "atwo"
    assert run(ran) == []


def test_a_stage_goes_on_with_other_flags_only_when_told(ran: list[str]) -> None:
    write("  - join: {texts: a.txt, output: x, mark: one, resume: true}")
    run(ran)
    write("  - join: {texts: a.txt, output: x, mark: two, resume: true}")
    assert run(ran) == ["join two"]


def test_a_stage_killed_at_work_is_run_again(ran: list[str]) -> None:
    write(CHAIN)
    run(ran)
    state = Path("out", STATE_NAME)
    content = json.loads(state.read_text())
    content["stages"]["join-2"]["status"] = "running"  # as the file is while a stage works
    state.write_text(json.dumps(content))
    assert run(ran) == ["join second"]


def test_what_is_written_into_a_folder_that_is_read_is_no_input(ran: list[str]) -> None:
    Path("folder/inner").mkdir(parents=True)
    Path("folder/inner/x.txt").write_text("x")
    write("""
  - join: {texts: [folder], output: folder/made.txt, cache_dir: folder/cache}
  - join: {texts: [folder/inner, a.txt], output: folder/inner/made.txt, mark: inner}
""")
    assert run(ran) == ["join ", "join inner"]
    (Path("folder") / "cache").rename("cache")
    assert run(ran) == []
    Path("folder/inner/x.txt").write_text("y")
    assert run(ran) == ["join  anew", "join inner anew"]
    Path("folder/inner/z.txt").write_text("")
    assert run(ran) == ["join  anew", "join inner anew"]


def test_the_recipes_own_files_are_no_input(ran: list[str]) -> None:
    Path("out").mkdir()
    write("  - join: {texts: [out, a.txt], output: joined.txt}")
    run(ran)
    assert run(ran) == []


def test_flags_become_a_command_line(ran: list[str]) -> None:
    path = write("""
  - join: {texts: a.txt, output: x, upper_case: true}
  - join: {texts: [a.txt, -b], --output: y, upper-case: false, mark: null}
  - count: {text: x, json: false}
""")
    argv = [stage.argv for stage in read_recipe(path).stages]
    assert argv == [
        ["join", "--output", "x", "--upper-case", "--", "a.txt"],
        ["join", "--output", "y", "--lower-case", "--", "a.txt", "-b"],
        ["count", "--", "x"],
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("stages: []", "expected a list of stages"),
        ("- a", "expected 'stages:'"),
        ("stage:\n- join", "'stage' is no part of a recipe; did you mean 'stages'?"),
        ("stages:\n- jion: {}", "stage 1: no command 'jion'; did you mean 'join'?"),
        ("stages:\n- recipe: {}", "no command 'recipe'"),
        ("stages:\n- join: {}\n  count: {}", "stage 1: expected one command with its flags"),
        ("stages:\n- count: [a]", "the flags of 'count' must be pairs"),
        ("stages:\n- count: {text: a}\n- join: {out: a}", "stage 2 (join): no flag 'out'; did you mean 'output'?"),
        ("stages:\n- join: {texts: a}", "stage 1 (join): Missing option '--output'"),
        ("stages:\n- join", "stage 1 (join): Missing argument 'texts'"),
        ("stages:\n- join: {texts: a, output: {b: c}}", "output must be a value or a list of values"),
        ("stages:\n- eval: {model: a, data: b, context: many}", "stage 1 (eval): Invalid value for '--context'"),
        ("stages:\n- join: {texts: a, output: b, output: c}", "line 2: 'output' stands here a second time"),
        ("stages:\n- join: {texts: a", "line 2: not YAML"),
        ("stages: !!python/object/apply:os.system [exit]", "not YAML: could not determine a constructor"),
        ("stages:\n- join: {texts: [a, b], output: ./b}", "stage 'join' reads b, which itself writes"),
        (
            "stages:\n- join: {texts: b, output: c}\n- join: {texts: a, output: b}",
            "reads b, which stage 'join-2' writes only then",
        ),
    ],
)
def test_mistakes_are_one_line_before_anything_runs(ran: list[str], capsys: Capture, text: str, says: str) -> None:
    Path("r.yaml").write_text(text)
    assert run(ran, 2) == []
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not Path("runs").exists()


def test_a_missing_recipe_and_a_damaged_state_are_one_line(ran: list[str], capsys: Capture) -> None:
    assert run(ran, 2) == []
    assert "r.yaml: No such file" in capsys.readouterr().err
    write(CHAIN)
    run(ran)
    Path("out", STATE_NAME).write_text('{"stages": {"join": {"what": 1}}}')
    assert run(ran, 2) == []
    assert "remove it to run every stage again" in capsys.readouterr().err


class Links(HTMLParser):
    """Everything a page would fetch, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found += [f"{tag} {value}" for name, value in attributes if name in {"src", "href", "srcset"}]

    def handle_data(self, data: str) -> None:
        self.text += data + " "


def test_the_report_stands_alone_and_tells_figures_times_and_commands(ran: list[str]) -> None:
    write(CHAIN)
    run(ran)
    page = Path("out", REPORT_NAME).read_text(encoding="utf-8")
    links = Links()
    links.feed(page)
    assert not links.found
    assert "http" not in page
    for part in (
        "All 3 stages are done",
        "join-2",
        "onebit count --json -- out/abc.txt",
        "characters",
        "13",
        "of.file",
    ):
        assert part in links.text, part
    run(ran)
    assert Path("out", REPORT_NAME).read_text(encoding="utf-8").count("up to date</span>") == 3


def test_the_output_folder_can_be_given(ran: list[str]) -> None:
    write(CHAIN)
    assert cli.execute(["recipe", "run", "r.yaml", "--output-dir", "elsewhere"]) == 0
    assert Path("elsewhere", REPORT_NAME).is_file()
    assert not Path("out", REPORT_NAME).exists()


def test_flags_of_trl_are_checked_too(capsys: Capture) -> None:
    pytest.importorskip("trl")
    sft = "{model_name_or_path: m, dataset_name: d.jsonl, output_dir: o, %s}"
    (stage,) = read_recipe(write("  - sft: " + sft % "warmup_steps: 3, packing: true, lr: 1e-4")).stages
    assert stage.argv[stage.argv.index("--warmup_steps") + 1] == "3"
    assert stage.outputs == ("o",)
    with pytest.raises(ConfigError, match=r"stage 1 \(sft\): no option --warmup_stepz.*did you mean '--warmup-steps'"):
        read_recipe(write("  - sft: " + sft % "warmup_stepz: 3"))


@pytest.mark.parametrize("path", sorted(ROOT.glob("examples/*.yaml")), ids=lambda path: path.stem)
def test_the_examples_are_right_for_the_commands_there_are(path: Path) -> None:
    assert len(read_recipe(path).stages) > 2


def tiny_llama(folder: Path) -> None:
    """A random model whose answers are 60 tokens of 150 words."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<end>", *(f"word{i}" for i in range(150))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)
    torch.manual_seed(0)
    ends = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=151, max_position_embeddings=128, **shape, **ends)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)


def test_a_model_writes_data_learns_from_it_and_is_compressed(capsys: Capture) -> None:
    pytest.importorskip("trl")
    tiny_llama(Path("model"))
    Path("prompts.txt").write_text("word1 word2\nword3\n")
    write("""
  - selfgen:
      model_path: model
      out: out/data.jsonl
      prompts: prompts.txt
      num: 6
      max_new_tokens: 60
      device: cpu
  - sft:
      model_name_or_path: model
      dataset_name: out/data.jsonl
      output_dir: out/sft
      steps: 2
      bsz: 2
      group_size: 64
      device: cpu
  - compress: {source: out/sft, output: out/model.safetensors}
""")
    assert cli.execute(["recipe", "run", "r.yaml"]) == 0, capsys.readouterr().err
    state = json.loads(Path("out", STATE_NAME).read_text())["stages"]
    assert state["selfgen"]["figures"]["samples"] == 6
    assert state["sft"]["figures"]["training_steps"] == 2
    assert state["compress"]["figures"]["layers"] == 7
    capsys.readouterr()
    assert cli.execute(["recipe", "run", "r.yaml"]) == 0
    assert capsys.readouterr().out.count("up to date") == 3


def test_a_model_is_trained_exported_and_scored(capsys: Capture) -> None:
    pytest.importorskip("transformers")
    Path("text.txt").write_text("".join(f"line {i} of a text about the sea and the wind\n" for i in range(200)))
    write("""
  - tokenizer: {action: train, data: text.txt, vocab_size: 300, output: out/tokenizer.json}
  - train:
      data: text.txt
      output_dir: out/model
      tokenizer: out/tokenizer.json
      set: [vocab_size=300, hidden_size=32, num_layers=1, num_heads=2, intermediate_size=64, max_seq_len=32]
      max_steps: 3
      batch_size: 2
      lr: 1e-3
      device: cpu
  - export: {model_dir: out/model, output: out/model/m.1bit}
  - eval: {model: out/model/m.1bit, data: text.txt, max_tokens: 100}
""")
    assert cli.execute(["recipe", "run", "r.yaml"]) == 0, capsys.readouterr().err
    state = json.loads(Path("out", STATE_NAME).read_text())["stages"]
    assert state["train"]["figures"]["training_steps"] == 3
    assert state["export"]["figures"]["file_bytes"] == Path("out/model/m.1bit").stat().st_size
    assert state["eval"]["figures"]["tokens"] == 100
    capsys.readouterr()
    assert cli.execute(["recipe", "run", "r.yaml"]) == 0
    assert capsys.readouterr().out.count("up to date") == 4
    Path("r.yaml").write_text(Path("r.yaml").read_text().replace("max_steps: 3", "max_steps: 2"))
    assert cli.execute(["recipe", "run", "r.yaml"]) == 0, capsys.readouterr().err
    state = json.loads(Path("out", STATE_NAME).read_text())["stages"]
    assert state["train"]["figures"]["training_steps"] == 2
    assert capsys.readouterr().out.count("up to date") == 1
    with pytest.raises(ConfigError, match="no flag 'contxt'; did you mean 'context'"):
        read_recipe(write("  - eval: {model: m, data: d, contxt: 3}"))
