"""A run of self-generation with a tiny model: the same samples however often it is killed, in the form TRL takes."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

import torch
import transformers

from onebit.cli.main import execute
from onebit.data.selfgen import SEED_PROMPTS, judge, prompts_of_batch, read_prompts, selfgen
from onebit.data.selfgen_filters import REASONS, content_hash, drop_reason
from onebit.data.selfgen_model import Answer, AnsweringModel, Sampling
from onebit.data.selfgen_settings import SelfgenSettings, summary_path
from onebit.errors import ConfigError, DataError

ROOT = Path(__file__).parents[2]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def word_tokenizer(template: str | None) -> Any:
    """A token for each of 150 words, so that a random model's answers have words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    names = ["<pad>", "<end>", "<user>", "<assistant>", "<unk>", *(f"word{i}" for i in range(150))]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", unk_token="<unk>"
    )
    fast.chat_template = template
    return fast


def make_model(folder: Path, template: str | None = TEMPLATE) -> Path:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=155,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
        initializer_range=0.2,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    word_tokenizer(template).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def plain_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("plain"), None)


@pytest.fixture
def settings(model: Path, tmp_path: Path) -> SelfgenSettings:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("# some\n" + "".join(f"word{i} word{i + 1}\n" for i in range(7)))
    return SelfgenSettings(
        model_path=str(model),
        out=tmp_path / "data.jsonl",
        num=12,
        max_new_tokens=24,
        batch_size=4,
        temperature=1.5,
        top_p=1.0,
        prompts=prompts,
        device="cpu",
    )


def samples(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_samples_are_good_answers_to_the_prompts_as_messages(settings: SelfgenSettings) -> None:
    result = selfgen(settings)
    assert result.status == "complete"
    found = samples(settings.out)
    assert len(found) == result.samples == 12
    asked = set(read_prompts(settings.prompts))
    seen: set[str] = set()
    for sample in found:
        (question,), (answer,) = sample["prompt"], sample["completion"]
        assert question["role"] == "user"
        assert question["content"] in asked
        assert answer["role"] == "assistant"
        assert drop_reason(answer["content"], seen) is None
        assert "<" not in answer["content"].replace("<unk>", "").replace("<user>", "").replace("<assistant>", "")
        seen.add(content_hash(answer["content"]))
        assert sample["source"] == "selfgen"
    summary = json.loads(summary_path(settings.out).read_text())
    assert summary["asked"] >= summary["samples"] + sum(summary["dropped"].values()) - settings.batch_size
    assert list(summary["dropped"]) == list(REASONS)
    assert summary["settings"]["seed"] == 42


def test_a_run_cut_anywhere_goes_on_to_the_same_file(settings: SelfgenSettings) -> None:
    whole = selfgen(settings)
    expected = settings.out.read_bytes()
    journal = settings.out.with_name("data.jsonl.journal")
    written = journal.read_bytes()
    cuts = random.Random(0).sample(range(len(written)), 5)
    for cut in [0, 5, *cuts, len(written) - 1]:  # 5: within the first line
        journal.write_bytes(written[:cut])
        settings.out.unlink()
        again = selfgen(settings)
        assert settings.out.read_bytes() == expected, cut
        assert journal.read_bytes() == written
        assert replace(again, seconds=0) == replace(whole, seconds=0)


def test_a_killed_process_goes_on_to_the_same_file(settings: SelfgenSettings, tmp_path: Path) -> None:
    selfgen(settings)
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from onebit.data.selfgen_settings import SelfgenSettings\n"
        "from onebit.data.selfgen import selfgen\n"
        "def progress(done, total):\n"
        "    if done >= 4: os.kill(os.getpid(), signal.SIGKILL)\n"
        "out, prompts, model = sys.argv[1:]\n"
        "selfgen(SelfgenSettings(model_path=model, out=Path(out), num=12, max_new_tokens=24, batch_size=4,\n"
        "    temperature=1.5, top_p=1.0, prompts=Path(prompts), device='cpu'), progress)\n"
    )
    out = tmp_path / "killed.jsonl"
    command = [sys.executable, "-c", code, str(out), str(settings.prompts), settings.model_path]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert killed.returncode == -9, killed.stderr
    assert not out.exists()
    selfgen(replace(settings, out=out))
    assert out.read_bytes() == settings.out.read_bytes()


def test_ctrl_c_keeps_what_is_there(settings: SelfgenSettings) -> None:
    whole = selfgen(replace(settings, out=settings.out.with_name("whole.jsonl")))

    def interrupt(done: int, total: int) -> None:
        if done >= 4:
            raise KeyboardInterrupt

    result = selfgen(settings, interrupt)
    assert result.status == "interrupted"
    assert 4 <= result.samples < 12
    assert samples(settings.out) == samples(whole.out)[: result.samples]
    assert selfgen(settings).status == "complete"
    assert settings.out.read_bytes() == whole.out.read_bytes()


def test_more_samples_go_on_from_those_there_are(settings: SelfgenSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    selfgen(replace(settings, num=5))
    five = samples(settings.out)
    selfgen(settings)
    assert samples(settings.out)[:5] == five
    with monkeypatch.context() as patch:  # fewer need no model
        patch.setattr(AnsweringModel, "__init__", None)
        selfgen(replace(settings, num=5))
    assert samples(settings.out) == five


def test_a_run_may_write_into_the_models_folder(settings: SelfgenSettings, tmp_path: Path) -> None:
    inside = replace(settings, model_path=str(make_model(tmp_path / "own")), out=tmp_path / "own" / "data.jsonl", num=2)
    selfgen(inside)
    selfgen(inside)
    (tmp_path / "own" / "generation_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="another run's journal \\(model"):
        selfgen(inside)


@pytest.mark.parametrize(("change", "value"), [("seed", 1), ("batch_size", 3), ("temperature", 0.7)])
def test_another_runs_journal_is_refused(settings: SelfgenSettings, change: str, value: Any) -> None:
    selfgen(replace(settings, num=2))
    other = replace(settings, **{change: value})
    with pytest.raises(ConfigError, match=f"another run's journal \\({change} .* there, {value} here\\)"):
        selfgen(other)
    before = settings.out.read_bytes()
    selfgen(replace(other, resume=False))
    assert settings.out.read_bytes() != before


def test_a_file_of_the_users_is_not_replaced(settings: SelfgenSettings) -> None:
    settings.out.write_text("mine\n")
    with pytest.raises(ConfigError, match="is there and no run's"):
        selfgen(settings)
    assert settings.out.read_text() == "mine\n"


def test_a_batch_is_its_prompts_and_seed_and_padding_changes_nothing(model: Path) -> None:
    sampling = Sampling(max_new_tokens=12, temperature=0.0, top_p=1.0, thinking=False)
    answering = AnsweringModel(model, dtype="float32")
    long, short = "word1 word2 word3 word4 word5 word6 word7", "word8"
    state = torch.get_rng_state()
    together = answering.answer([long, short], sampling, 0)
    assert together == [answering.answer([prompt], sampling, 0)[0] for prompt in (long, short)]
    drawn = Sampling(max_new_tokens=12, temperature=1.5, top_p=1.0, thinking=False)
    assert answering.answer([long, short], drawn, 7) == answering.answer([long, short], drawn, 7)
    assert answering.answer([long, short], drawn, 7) != answering.answer([long, short], drawn, 8)
    assert torch.equal(torch.get_rng_state(), state)


def test_greedy_answers_are_those_of_the_model_alone(model: Path) -> None:
    answering = AnsweringModel(model, dtype="float32")
    prompt = "word3 word4"
    answer = answering.answer([prompt], Sampling(max_new_tokens=10, temperature=0.0, top_p=1.0, thinking=False), 0)[0]
    tokenizer = word_tokenizer(None)
    net = transformers.LlamaForCausalLM.from_pretrained(model)
    ids = tokenizer(f"<user> {prompt} <end> <assistant>")["input_ids"]
    start = len(ids)
    while len(ids) < start + 10 and ids[-1] != 1:
        ids.append(int(net(torch.tensor([ids])).logits[0, -1].argmax()))
    finished = ids[-1] == 1
    assert answer == Answer(text=tokenizer.decode(ids[start:], skip_special_tokens=True), finished=finished)


def test_a_converted_model_answers_with_its_quantised_layers(model: Path, tmp_path: Path) -> None:
    from onebit.models.converted import Conversion, convert_model
    from onebit.nn import bit_layers

    net = convert_model(transformers.LlamaForCausalLM.from_pretrained(model), Conversion(group_size=64))
    net.save_pretrained(tmp_path / "converted")
    word_tokenizer(None).save_pretrained(tmp_path / "converted")
    answering = AnsweringModel(tmp_path / "converted")
    assert len(list(bit_layers(answering._model))) == 14
    greedy = Sampling(max_new_tokens=1, temperature=0.0, top_p=1.0, thinking=False)
    (answer,) = answering.answer(["word1 word2"], greedy, 0)
    tokenizer = word_tokenizer(None)
    with torch.no_grad():
        first = net.eval()(torch.tensor([tokenizer("word1 word2")["input_ids"]])).logits[0, -1].argmax()
    assert answer.text == tokenizer.decode(first, skip_special_tokens=True)


def test_a_model_without_template_gives_text(settings: SelfgenSettings, plain_model: Path) -> None:
    selfgen(replace(settings, model_path=str(plain_model), num=3))
    for sample in samples(settings.out):
        assert sample["prompt"].strip("\n") in read_prompts(settings.prompts)
        assert sample["prompt"].endswith("\n")
        assert isinstance(sample["completion"], str)


@pytest.mark.parametrize("template", [TEMPLATE, None])
def test_sft_trainer_takes_the_file_and_masks_the_prompt(
    settings: SelfgenSettings, model: Path, plain_model: Path, tmp_path: Path, template: str | None
) -> None:
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    selfgen(replace(settings, model_path=str(model if template else plain_model), num=3))
    data = datasets.load_dataset("json", data_files=str(settings.out), split="train", cache_dir=str(tmp_path / "cache"))
    trainer = trl.SFTTrainer(
        model=transformers.AutoModelForCausalLM.from_pretrained(model),
        args=trl.SFTConfig(output_dir=str(tmp_path / "run"), report_to="none", use_cpu=True, shuffle_dataset=False),
        train_dataset=data,
        processing_class=word_tokenizer(template),
    )
    for row, sample in zip(trainer.train_dataset, samples(settings.out), strict=True):
        answer = sample["completion"][0]["content"] if template else sample["completion"]
        learnt = [token for token in row["labels"] if token != -100]
        assert 0 < len(learnt) < len(row["labels"])
        assert trainer.processing_class.decode(learnt, skip_special_tokens=True).strip() == answer


def test_every_prompt_is_asked_once_a_turn_and_each_turn_in_another_order() -> None:
    prompts = [str(i) for i in range(10)]
    asked = [prompt for batch in range(10) for prompt in prompts_of_batch(prompts, batch, 3, seed=1)]
    assert sorted(asked[:10]) == sorted(asked[10:20]) == sorted(prompts)
    assert asked[:10] != asked[10:20]
    assert asked[:3] != prompts_of_batch(prompts, 0, 3, seed=2)


def test_judging_counts_reasons_and_duplicates_within_a_batch() -> None:
    good = "one two three four five six seven eight nine ten"
    answers = [Answer(text=text, finished=False) for text in (good, good.upper(), "short")]
    batch = judge(["a", "b", "c"], answers, set(), as_messages=False)
    assert [sample["prompt"] for sample in batch.kept] == ["a\n"]
    assert batch.dropped == {"duplicate": 1, "length": 1}
    assert batch.cut_off == 1


def test_the_seed_prompts_are_many_and_different() -> None:
    prompts = read_prompts(None)
    assert 60 <= len(prompts) == len(set(prompts)) <= 120
    assert SEED_PROMPTS.parent == Path(ROOT, "src/onebit/data")


def test_prompts_from_other_files(tmp_path: Path) -> None:
    rows = tmp_path / "p.jsonl"
    rows.write_text('{"prompt": "one"}\n{"prompt": " two "}\n')
    assert read_prompts(rows) == ["one", "two"]
    rows.write_text('{"question": "one"}\n')
    with pytest.raises(DataError, match="no column 'prompt'"):
        read_prompts(rows)
    empty = tmp_path / "empty.txt"
    empty.write_text("# nothing\n\n")
    with pytest.raises(DataError, match="holds no prompt"):
        read_prompts(empty)
    with pytest.raises(DataError, match="cannot read"):
        read_prompts(tmp_path / "none.txt")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--num", "0"], "--num is 0; it must be at least 1"),
        (["--dtype", "float23"], "did you mean 'float32'?"),
        (["--top-p", "0"], "--top-p is 0.0"),
        (["--out", "x.txt"], "give the name of a .jsonl file: x.jsonl"),
        (["--model-path", "no/such folder"], "no folder here"),
        (["--max-new-tokens", "64"], "64 positions; give at most"),
        (["--max-new-tokens", "2"], "none of 24 answers"),
        (["--device", "gpu"], "--device is 'gpu'"),
    ],
)
def test_mistakes_are_one_line(
    settings: SelfgenSettings, capsys: pytest.CaptureFixture[str], flags: list[str], says: str
) -> None:
    given = {
        "--model-path": settings.model_path,
        "--out": str(settings.out),
        "--prompts": str(settings.prompts),
        "--num": "2",
        "--max-new-tokens": "24",
        "--device": "cpu",
        **dict([flags]),
    }
    assert execute(["selfgen", *(part for pair in given.items() for part in pair)]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not settings.out.exists()


def test_the_example_takes_the_seeds_flags(settings: SelfgenSettings, tmp_path: Path) -> None:
    out = tmp_path / "example.jsonl"
    command = [sys.executable, str(ROOT / "examples/selfgen/generate.py"), "--model_path", settings.model_path]
    command += ["--out", str(out), "--num", "3", "--max_new_tokens", "24", "--seed", "7", "--temperature", "1.5"]
    command += ["--prompts", str(settings.prompts), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["samples"] == len(samples(out)) == 3
