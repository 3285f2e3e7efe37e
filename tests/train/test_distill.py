"""`onebit distill`: the teacher runs once, its answers are its own, and a killed run goes on wherever it was."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, TrainerCallback

from onebit.cli.main import execute
from onebit.errors import ConfigError, FormatError
from onebit.models.converted import load_converted
from onebit.train import distill as recipe
from onebit.train import sft as shared
from onebit.train import teacher_cache
from onebit.train.attention_taps import AttentionTap, states_up_to
from onebit.train.distill import distill
from onebit.train.distill_settings import DistillSettings
from onebit.train.distill_trainer import DistillTrainer
from onebit.train.metrics_log import read_metrics

from .fine_tuning import TEXT, make_base, samples, small_run, write_rows

_SPEEDS = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "draw_loss_curve", lambda folder: [])


@pytest.fixture
def run(base: Path, tmp_path: Path) -> DistillSettings:
    return DistillSettings(
        **small_run(base, write_rows(tmp_path / "rows.jsonl", samples()), tmp_path / "run"),
        teacher_name_or_path=str(base),
        teacher_cache_dir=tmp_path / "teacher",
        relation_heads=2,
    )


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[DistillTrainer]:
    """The trainers that were made."""
    made: list[DistillTrainer] = []

    class Watched(DistillTrainer):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            made.append(self)

    monkeypatch.setattr(recipe, "DistillTrainer", Watched)
    return made


def losses(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in entry.items() if k not in _SPEEDS} for entry in read_metrics(folder)]


@pytest.mark.parametrize("packing", [False, True])
def test_a_student_that_still_is_its_teacher_has_nothing_to_learn(run: DistillSettings, packing: bool) -> None:
    # At lambda 0 the student computes in float, so all three losses but the hard one are those of equal models.
    distill(replace(run, packing=packing, relation_weight=1.0, token_scaled=True, max_steps=2, lambda_warmup_frac=1.0))
    first, second = (entry for entry in read_metrics(run.output_dir) if "loss" in entry)
    assert abs(first["kl"]) < 2e-3  # float16 of the kept log-probabilities
    assert abs(first["relation_loss"]) < 1e-6
    assert second["kl"] > 10 * abs(first["kl"])
    assert second["relation_loss"] > 1e-4


@pytest.mark.parametrize("packing", [False, True])
def test_kept_answers_are_the_teachers_own(
    run: DistillSettings, base: Path, watched: list[DistillTrainer], packing: bool
) -> None:
    distill(replace(run, packing=packing, top_k=7, temperature=2.0, max_steps=1))
    (trainer,) = watched
    teacher = AutoModelForCausalLM.from_pretrained(base).eval()
    rows: Any = trainer.train_dataset
    assert trainer.answers is not None
    for number in (0, len(rows) - 1):
        told = trainer.answers.read([number])
        begin = 0
        for length in rows[number].get("seq_lengths") or [len(rows[number]["input_ids"])]:
            ids = torch.tensor([rows[number]["input_ids"][begin : begin + length]])
            with torch.no_grad():
                logits_LV = teacher(input_ids=ids).logits[0].double()
            log_p, tokens = torch.log_softmax(logits_LV / 2.0, -1).topk(7)
            span = slice(begin, begin + length)
            assert torch.allclose(told.log_p_NK[span].double(), log_p, rtol=1e-3, atol=1e-4)
            assert torch.equal(told.token_NK[span], tokens)
            expected = -torch.log_softmax(logits_LV, -1)[torch.arange(length - 1), ids[0, 1:]]
            assert torch.allclose(told.loss_N[span][:-1].double(), expected, rtol=1e-4, atol=1e-4)
            begin += length


def test_the_logged_loss_is_the_mix_of_its_parts(run: DistillSettings) -> None:
    distill(replace(run, hard_label_weight=0.3, relation_weight=0.5, lambda_warmup_frac=0.0))
    for entry in read_metrics(run.output_dir):
        if "loss" in entry:
            expected = 0.3 * entry["hard_loss"] + 0.7 * entry["kl"] + 0.5 * entry["relation_loss"]
            assert entry["loss"] == pytest.approx(expected, rel=1e-4)


def test_a_step_of_two_batches_is_that_of_one_large_batch(run: DistillSettings, tmp_path: Path) -> None:
    whole = replace(run, hard_label_weight=0.5, relation_weight=1.0, token_scaled=True)
    parts = replace(whole, output_dir=tmp_path / "parts", per_device_train_batch_size=2, gradient_accumulation_steps=2)
    distill(whole)
    distill(parts)
    for one, two in zip(losses(whole.output_dir), losses(parts.output_dir), strict=True):
        for name in {"loss", "grad_norm"} & one.keys():
            assert two[name] == pytest.approx(one[name], rel=1e-3), (one["step"], name)


def test_the_teacher_runs_once_for_all_runs_over_the_same_rows(
    run: DistillSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distill(run)
    (kept,) = (tmp_path / "teacher").iterdir()
    asked: list[str] = []
    load = recipe._load_teacher

    def counted(settings: DistillSettings, *rest: Any) -> Any:
        asked.append(settings.teacher_name_or_path)
        return load(settings, *rest)

    monkeypatch.setattr(recipe, "_load_teacher", counted)
    distill(replace(run, output_dir=tmp_path / "other", learning_rate=5e-4, quantizer="binary", token_scaled=True))
    assert asked == []
    distill(replace(run, output_dir=tmp_path / "third", top_k=3))  # other answers
    assert len(asked) == 1
    assert len(list((tmp_path / "teacher").iterdir())) == 2
    (kept / "loss.f32").write_bytes(b"cut off")
    with pytest.raises(FormatError, match="delete its folder"):
        distill(replace(run, output_dir=tmp_path / "fourth"))


def test_a_kill_while_the_teacher_answers_goes_on_with_the_next_rows(
    run: DistillSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_cache, "_ROWS_BETWEEN_NOTES", 8)
    distill(replace(run, teacher_cache_dir=tmp_path / "whole"))
    write, rows_asked = teacher_cache._write_row, []

    def killed_at(cache: Any, row: int, *rest: Any) -> None:
        rows_asked.append(row)
        if len(rows_asked) == 20:
            raise KeyboardInterrupt
        write(cache, row, *rest)

    monkeypatch.setattr(teacher_cache, "_write_row", killed_at)
    again = replace(run, output_dir=tmp_path / "again")
    with pytest.raises(KeyboardInterrupt):
        distill(again)
    assert distill(again).complete
    assert rows_asked[20] == 16  # 16 rows were noted when it died
    folders = [next((tmp_path / name).iterdir()) for name in ("whole", "teacher")]
    assert folders[0].name == folders[1].name
    for name in ("log_p.f16", "token.i32", "loss.f32"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    assert losses(run.output_dir) == losses(again.output_dir)


def test_sigterm_saves_and_the_same_call_goes_on_bit_for_bit(
    run: DistillSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
            if state.global_step == 4:
                os.kill(os.getpid(), signal.SIGTERM)

    class Stopped(DistillTrainer):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.add_callback(Stop())

    whole = replace(
        run, output_dir=tmp_path / "whole", relation_weight=0.5, gradient_checkpointing=True, logging_steps=2
    )
    distill(whole)
    broken = replace(whole, output_dir=tmp_path / "broken")
    with monkeypatch.context() as patch:
        patch.setattr(recipe, "DistillTrainer", Stopped)
        assert distill(broken).signal == signal.SIGTERM
    assert distill(broken).complete
    assert losses(broken.output_dir) == losses(whole.output_dir)
    latents = [settings.output_dir / "model.safetensors" for settings in (broken, whole)]
    assert latents[0].read_bytes() == latents[1].read_bytes()


def test_distilling_brings_a_student_nearer_to_its_teacher(run: DistillSettings, base: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    settings = replace(
        run, dataset_name=str(text), max_steps=40, learning_rate=3e-3, max_length=32, hard_label_weight=0.0
    )
    distill(settings)
    teacher = AutoModelForCausalLM.from_pretrained(base).eval()
    rounded = replace(settings, output_dir=tmp_path / "rounded", max_steps=1, learning_rate=0.0)
    distill(rounded)
    ids = torch.tensor([AutoTokenizer.from_pretrained(base)(TEXT[:150])["input_ids"][:48]])
    divergences = []
    with torch.no_grad():
        log_p = torch.log_softmax(teacher(input_ids=ids).logits.double(), -1)
        for folder in (settings.output_dir, rounded.output_dir):
            log_q = torch.log_softmax(load_converted(folder).eval()(input_ids=ids).logits.double(), -1)
            divergences.append(float((log_p.exp() * (log_p - log_q)).sum(-1).mean()))
    assert divergences[0] < 0.8 * divergences[1]


def test_a_converted_folder_is_a_student_and_another_size_a_teacher(
    run: DistillSettings, base: Path, tmp_path: Path
) -> None:
    larger = make_base(tmp_path / "larger", seed=1, hidden_size=64, intermediate_size=96, vocab_size=320)
    distill(run)
    again = replace(
        run,
        model_name_or_path=str(run.output_dir),
        teacher_name_or_path=str(larger),
        output_dir=tmp_path / "again",
        relation_weight=1.0,
        relation_layer=0,
    )
    assert distill(again).complete
    about = json.loads((again.output_dir / "training_manifest.json").read_text())
    assert about["settings"]["teacher_name_or_path"] == str(larger)


def test_taps_hear_queries_keys_and_values_and_spare_the_layers_above() -> None:
    torch.manual_seed(0)
    config = GPT2Config(n_embd=32, n_layer=3, n_head=2, vocab_size=50, n_positions=16)
    model = GPT2LMHeadModel(config).eval()
    ids = torch.arange(12).reshape(1, 12)
    calls: list[int] = []
    for number, block in enumerate(model.transformer.h):
        block.mlp.register_forward_hook(lambda *_, number=number: calls.append(number))
    states = states_up_to(AttentionTap(model, 1), model, {"input_ids": ids})
    assert calls == [0]
    hidden = model(input_ids=ids, output_hidden_states=True).hidden_states[1]
    block = model.transformer.h[1]
    expected = block.attn.c_attn(block.ln_1(hidden)).split(32, dim=-1)
    assert all(torch.equal(state, want) for state, want in zip(states, expected, strict=True))
    with pytest.raises(ConfigError, match="3 layers: 0 to 2"):
        AttentionTap(model, 3)
    with pytest.raises(ConfigError, match="no known queries"):
        AttentionTap(torch.nn.Sequential(torch.nn.Linear(2, 2)), 0)


def test_wrong_input_is_one_line_that_names_the_fix(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", samples())
    other = make_base(tmp_path / "other")
    told = json.loads((other / "tokenizer.json").read_text())
    vocabulary = told["model"]["vocab"]
    a, b = list(vocabulary)[100:102]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    (other / "tokenizer.json").write_text(json.dumps(told))
    cases = [
        (other, [], "differ in 2 of 300 tokens"),
        (tmp_path / "none", [], "no folder"),
        (base, ["--hard-label-weight", "1"], "that is onebit sft"),
        (base, ["--hard-label-weight", "2"], "--hard-label-weight is 2.0; it must be in [0, 1]"),
        (base, ["--temperature", "0"], "--temperature is 0.0"),
        (base, ["--relation-weight", "1", "--relation-layer", "7"], "--relation-layer is 7"),
        (base, ["--relation-weight", "1", "--relation-heads", "3"], "does not divide a width of 32"),
    ]
    for teacher, flags, message in cases:
        out = tmp_path / "never"
        argv = ["distill", "--teacher", teacher, "--student", base, "--dataset", rows, "--output_dir", out, *flags]
        code = execute([*map(str, argv), "--device", "cpu", "--max_steps", "1", "--quiet"])
        error = capsys.readouterr().err
        assert code == 2, (flags, error)
        assert message in error
        assert not out.exists(), error


def test_flags_reach_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[DistillSettings] = []

    def keep(settings: DistillSettings) -> Any:
        seen.append(settings)
        return type("Result", (), {"signal": None})

    monkeypatch.setattr(recipe, "distill", keep)
    argv = (
        "distill --teacher t --dataset d --out_dir o --top_k 9 --temperature 2 --hard_label_weight 0.2 --token_scaled"
    )
    argv += " --relation_weight 3 --relation_layer 4 --relation_heads 8 --teacher_dtype float32 --teacher_revision r"
    argv += " --weight_decay 0.1 --exclude a --exclude b"
    assert execute(argv.split()) == 0
    (settings,) = seen
    assert (settings.model_name_or_path, settings.model_revision) == ("t", "r")
    assert (settings.top_k, settings.temperature, settings.hard_label_weight) == (9, 2.0, 0.2)
    assert (settings.relation_weight, settings.relation_layer, settings.relation_heads) == (3.0, 4, 8)
    assert (settings.token_scaled, settings.teacher_dtype, settings.exclude) == (True, "float32", ("a", "b"))
    assert settings.trl == {"weight_decay": 0.1}
