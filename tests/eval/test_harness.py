"""lm-evaluation-harness over both forms of a model, beside the harness's own way to run a torch model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from onebit.errors import ConfigError, FormatError
from onebit.eval.forms import EngineForm, TorchForm, open_form
from onebit.eval.scoring import Pair, Prompt, asker_of
from onebit.eval.served import Server
from onebit.formats import onebit_file
from onebit.formats.export import from_model
from onebit.models import OneBitConfig, OneBitForCausalLM

from .harness_tasks import NAMES, write_tasks
from .tables import byte_tokenizer

pytest.importorskip("lm_eval")
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from onebit.eval.harness import OneBitLM, evaluate_tasks

CONTEXT = 64


def quiet(done: int, of: int) -> None:
    """No progress."""


TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}<assistant>"


@pytest.fixture(autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness's rows are cached where they do not outlive the tests."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.getbasetemp() / "datasets"))


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"))


def model_of(**changes: Any) -> OneBitForCausalLM:
    """A random model whose engine file computes what torch does: float activations."""
    torch.manual_seed(4)
    fields = {"activation_quantizer": "none", "quantizer": "absmean"}
    shape = {"vocab_size": 256, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 48}
    ends = {"bos_token_id": 7, "eos_token_id": 9, "pad_token_id": 9}
    model = OneBitForCausalLM(OneBitConfig(**(shape | fields | ends | {"max_seq_len": CONTEXT} | changes)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # else every token is as likely as the next
    return model.eval()


@pytest.fixture(scope="module", params=["with a BOS", "without"])
def forms(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[TorchForm, EngineForm]:
    model = model_of(bos_token_id=7 if request.param == "with a BOS" else None)
    path = tmp_path_factory.mktemp("harness") / "model.1bit"
    tokenizer = byte_tokenizer()
    file = from_model(model, tokenizer.to_str(), embedding_level="float32", chat_template=TEMPLATE)
    onebit_file.write(path, file)
    return TorchForm(model, "model", tokenizer, TEMPLATE), EngineForm(path, threads=1)


def test_scores_are_sums_of_log_probabilities(forms: tuple[TorchForm, EngineForm]) -> None:
    """Of both forms, against the logits in float64: shared beginnings, single tokens, what is too long."""
    rng = np.random.default_rng(0)
    before = tuple(rng.integers(10, 250, 20).tolist())
    pairs = [Pair(before, tuple(rng.integers(10, 250, n).tolist())) for n in (1, 3, 30)]
    pairs += [Pair(before[:3], before[3:]), Pair(before * 4, (5,)), Pair((1,), before * 4), Pair((1,), (2,))]
    for form in forms:
        found = asker_of(form).scores(pairs, quiet)
        for pair, (logprob, is_greedy) in zip(pairs, found, strict=True):
            ids = [*pair.before, *pair.text][-(CONTEXT - 1) :]
            first = max(len(ids) - len(pair.text), 1)
            logits_TV = forms[0].logits(np.array(ids)).astype(np.float64)
            logits_TV -= np.log(np.exp(logits_TV).sum(1, keepdims=True))
            rows = range(first, len(ids))
            # The engine keeps keys and values in float16.
            assert logprob == pytest.approx(sum(logits_TV[row - 1, ids[row]] for row in rows), rel=2e-3)
            assert is_greedy == all(logits_TV[row - 1].argmax() == ids[row] for row in rows)
    likeliest = int(forms[0].logits(np.array(before))[-1].argmax())
    for form in forms:
        told: list[tuple[int, int]] = []
        assert asker_of(form).scores([Pair(before, (likeliest,))], lambda *at, told=told: told.append(at))[0][1]
        assert told[-1] == (1, 1)


def test_answers_stop_where_they_should(forms: tuple[TorchForm, EngineForm]) -> None:
    ids = tuple(byte_tokenizer().encode("def f(x):").ids)
    alone, there = (asker_of(form).answers([Prompt(ids, 12)], quiet)[0] for form in forms)
    assert alone == there != ""
    stop = alone[4:6]
    for form in forms:
        cut = asker_of(form).answers([Prompt(ids, 12, (stop,)), Prompt(ids, 2)], quiet)
        assert cut == [alone[: alone.index(stop)], alone[:2]]


def test_it_tells_what_the_harness_itself_tells_of_a_torch_model(
    forms: tuple[TorchForm, EngineForm], tasks: Path
) -> None:
    """Its own class for transformers' models, with a tokenizer of transformers: BOS, windows, cuts and all."""
    from transformers import PreTrainedTokenizerFast

    torch_form, engine_form = forms
    ends: dict[str, Any] = {"eos_token": chr(0x100 + 9), "pad_token": chr(0x100 + 9)}
    named = PreTrainedTokenizerFast(tokenizer_object=torch_form.tokenizer, **ends)
    if torch_form.bos is not None:
        named.bos_token_id = torch_form.bos
        named.backend_tokenizer.post_processor = _puts_first(named)
    expected = {}
    for names, adds_bos in ((NAMES, None), (["texts_local"], False)):  # it would put two in front of a whole text
        # Its windows feed as many tokens as it is told; ours hold one less than the context with the token before.
        own = HFLM(pretrained=torch_form.model, tokenizer=named, max_length=CONTEXT - 2, add_bos_token=adds_bos)
        manager = TaskManager(include_path=str(tasks), include_defaults=False)
        expected |= simple_evaluate(model=own, tasks=list(names), task_manager=manager, log_samples=False)["results"]
    for form in (torch_form, engine_form):
        found, better = evaluate_tasks(form, NAMES, task_path=tasks)
        assert better["pick_local"]["acc"] is True
        assert better["texts_local"]["bits_per_byte"] is False
        assert set(found) == set(NAMES)
        for task, metrics in expected.items():
            for name, value in metrics.items():
                if isinstance(value, float):  # the engine's keys and values are float16
                    ours, theirs = (math.log(it) if "perplexity" in name else it for it in (found[task][name], value))
                    assert ours == pytest.approx(theirs, rel=1e-3), (form.runtime, task, name)


def _puts_first(tokenizer: Any) -> Any:
    from tokenizers.processors import TemplateProcessing

    symbol = tokenizer.convert_ids_to_tokens(tokenizer.bos_token_id)
    return TemplateProcessing(single=f"{symbol} $A", special_tokens=[(symbol, tokenizer.bos_token_id)])


def test_chat_templates(forms: tuple[TorchForm, EngineForm]) -> None:
    end = byte_tokenizer().id_to_token(9)
    turns = [{"role": "user", "content": "Hi"}]
    for form in forms:
        model = OneBitLM(form)
        assert model.apply_chat_template(turns) == f"<user>Hi{end}<assistant>"
        begun = [*turns, {"role": "assistant", "content": "Well"}]
        assert model.apply_chat_template(begun, add_generation_prompt=False) == f"<user>Hi{end}<assistant>Well"
    bare = TorchForm(forms[0].model, "bare", byte_tokenizer())
    with pytest.raises(FormatError, match="bare has no chat template"):
        OneBitLM(bare).apply_chat_template(turns)


def test_what_cannot_be_asked(forms: tuple[TorchForm, EngineForm], tasks: Path) -> None:
    with pytest.raises(ConfigError, match="no task 'pick_locl'; did you mean 'pick_local'"):
        evaluate_tasks(forms[1], ["pick_locl"], task_path=tasks)
    with pytest.raises(FormatError, match="no tokenizer"):
        OneBitLM(TorchForm(forms[0].model, "silent"))
    with pytest.raises(ConfigError, match="does not answer as a server of models does"):
        evaluate_tasks(Server("http://127.0.0.1:9"), NAMES, task_path=tasks)


def test_the_harness_knows_it_by_name(forms: tuple[TorchForm, EngineForm]) -> None:
    from lm_eval.api.registry import get_model

    model = get_model("onebit").create_from_arg_string(f"model={forms[1].name},threads=1")
    assert isinstance(model.form, EngineForm)
    assert json.dumps(model.tok_encode("a")) == json.dumps(OneBitLM(forms[1]).tok_encode("a"))
    assert open_form(forms[1].name).context == CONTEXT
