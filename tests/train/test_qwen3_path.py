"""A model of Qwen3's shape goes the whole way: calibrated and fine-tuned on chat, exported, asked in the C engine."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import AddedToken
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from onebit.cli.main import execute
from onebit.data import END_OF_TEXT, train_tokenizer
from onebit.engine import Model, library_path
from onebit.errors import EngineError
from onebit.models.converted import load_converted
from onebit.nn import bit_layers

from .fine_tuning import TEXT, write_rows

# As tests/formats/test_export_transformers.py: an int8 input may fall on the other side of a half, which moves a few
# logits by a step.
INT8_MEDIAN, INT8_MAX = 1e-4, 2e-2
# Qwen3's own, without tools: thinking that the template writes into the last answer, and a switch in the prompt.
TEMPLATE = """\
{%- for message in messages %}
    {%- if message.role == 'assistant' and loop.last %}
        {{- '<|im_start|>' + message.role + '\\n<think>\\n\\n</think>\\n\\n' + message.content + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
QUESTIONS = {
    "sum": "return x + y",
    "product": "return x * y",
    "difference": "return x - y",
    "quotient": "return x / y",
    "the larger": "return max(x, y)",
    "the smaller": "return min(x, y)",
}
NEW_TOKENS = 24


@dataclass(frozen=True)
class Walked:
    """What the commands left."""

    base: Path
    folder: Path
    file: Path


def make_qwen3(folder: Path) -> Path:
    """A float model with Qwen3's norms of queries and keys, heads wider than a share of the model, a tied head, and
    its tokens: no BOS in the tokenizer, one in the configuration, and answers that end with <|im_end|>."""
    folder.mkdir()
    train_tokenizer([TEXT], 300).save(folder)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), eos_token="<|im_end|>", pad_token=END_OF_TEXT
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.add_tokens([AddedToken(text, special=False) for text in ("<think>", "</think>")])
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=320,  # larger than the tokenizer, as in Qwen3
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=96,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Walked:
    try:
        library_path()
    except EngineError as problem:
        pytest.skip(str(problem))
    root = tmp_path_factory.mktemp("qwen3")
    base = make_qwen3(root / "base")
    turns = [
        {
            "prompt": [{"role": "system", "content": "code"}, {"role": "user", "content": question}],
            "completion": [{"role": "assistant", "content": answer}],
        }
        for question, answer in QUESTIONS.items()
    ]
    rows = write_rows(root / "rows.jsonl", 4 * turns)
    argv: list[object] = ["sft", "--model-name-or-path", base, "--dataset-name", rows, "--output-dir", root / "run"]
    argv += ["--calibration-rows", 16, "--max-steps", 120, "--learning-rate", 5e-3, "--max-length", 96]
    argv += ["--per-device-train-batch-size", 8, "--val-fraction", 0, "--save-strategy", "no", "--device", "cpu"]
    assert execute([*map(str, argv), "--quiet"]) == 0
    argv = ["export", "--model-dir", root / "run", "--output", root / "m.1bit", "--embedding-level", "float32"]
    assert execute([*map(str, argv), "--head-activation", "none"]) == 0
    return Walked(base, root / "run", root / "m.1bit")


def prompt_of(tokenizer: Any, question: str) -> list[int]:
    messages = [{"role": "system", "content": "code"}, {"role": "user", "content": question}]
    ids: list[int] = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    return ids


def torch_answer(model: Any, tokenizer: Any, question: str) -> list[int]:
    """The greedy answer of the torch model, its end included."""
    ids = prompt_of(tokenizer, question)
    out = model.generate(torch.tensor([ids]), max_new_tokens=NEW_TOKENS, do_sample=False)
    answer: list[int] = out[0, len(ids) :].tolist()
    return answer


def test_the_engine_answers_through_the_template_as_torch_does(
    done: Walked, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer = load_converted(done.folder).eval(), AutoTokenizer.from_pretrained(done.folder)
    engine = Model(done.file, threads=1)
    assert engine.chat_template == TEMPLATE
    answers = []
    for question, expected in QUESTIONS.items():
        ids = torch_answer(model, tokenizer, question)
        generation = engine.generate(prompt_of(tokenizer, question), max_new_tokens=NEW_TOKENS)
        text = "".join(generation)
        assert generation.stats.stopped_by == "eos"
        assert generation.ids == ids
        assert text == tokenizer.decode(ids[:-1])
        assert text == f"<think>\n\n</think>\n\n{expected}"  # it learnt what it was taught
        answers.append(text)

    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{question}\n/reset\n" for question in QUESTIONS)))
    argv: list[object] = ["chat", done.file, "--system", "code", "--temperature", 0, "--repetition-penalty", 1]
    capsys.readouterr()
    assert execute([*map(str, argv), "--max-new-tokens", str(NEW_TOKENS), "--threads", "1"]) == 0
    assert capsys.readouterr().out == "".join(f"{answer}\n" for answer in answers)


def test_logits_along_a_conversation_are_those_of_torch(done: Walked) -> None:
    model, tokenizer = load_converted(done.folder).eval(), AutoTokenizer.from_pretrained(done.folder)
    assert sum(1 for _ in bit_layers(model)) == 14
    engine = Model(done.file, threads=1)
    for question in QUESTIONS:
        ids = [*prompt_of(tokenizer, question), *torch_answer(model, tokenizer, question)]
        with torch.inference_mode():
            expected = model(torch.tensor([ids]), use_cache=False).logits[0].numpy()
        difference = np.abs(engine.logits(ids, kv="float32") - expected) / np.abs(expected).max()
        assert np.median(difference) <= INT8_MEDIAN
        assert difference.max() <= INT8_MAX


def test_only_the_answers_were_learnt(done: Walked) -> None:
    # Trained on all tokens, the model would know its six prompts by heart as well.
    model, tokenizer = load_converted(done.folder).eval(), AutoTokenizer.from_pretrained(done.folder)
    base = Qwen3ForCausalLM.from_pretrained(done.base).eval()
    told = {"prompt": [0.0, 0.0], "answer": [0.0, 0.0]}
    for question, answer in QUESTIONS.items():
        prompt = prompt_of(tokenizer, question)
        messages = [{"role": "system", "content": "code"}, {"role": "user", "content": question}]
        whole = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": answer}])["input_ids"]
        ids = torch.tensor([whole])
        for place, each in enumerate((base, model)):
            with torch.inference_mode():
                log_p_LV = torch.log_softmax(each(ids).logits[0, :-1].double(), -1)
            loss_L = -log_p_LV.gather(1, ids[0, 1:, None])[:, 0]
            told["prompt"][place] += float(loss_L[: len(prompt) - 1].mean()) / len(QUESTIONS)
            told["answer"][place] += float(loss_L[len(prompt) - 1 : -1].mean()) / len(QUESTIONS)
    assert told["answer"][1] < 0.1 * told["answer"][0], told
    assert told["prompt"][1] > 0.5 * told["prompt"][0], told


def test_the_file_says_what_the_tokenizer_says_of_its_tokens(done: Walked) -> None:
    # Qwen3's configuration names a BOS that its tokenizer never writes; in the file it would start every text.
    assert json.loads((done.base / "config.json").read_text())["bos_token_id"] == 0
    tokenizer = AutoTokenizer.from_pretrained(done.folder)
    description = Model(done.file, threads=1).description
    assert (description.bos, description.eos) == (None, tokenizer.eos_token_id)
    assert (description.qk_norm, description.tied_head, description.head_dim) == (True, True, 32)
