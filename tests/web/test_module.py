"""onebit.js under node against the native engine: the same tokens, greedy and sampled, the same text, clear errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onebit.cli.model_path import tiny_model_path
from onebit.engine import Model
from onebit.formats import onebit_file

TINY = tiny_model_path()
GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "tiny_greedy.json").read_text(encoding="utf-8"))
Node = Callable[..., Any]


def test_greedy_and_sampled_tokens_are_those_of_the_native_engine(node: Node) -> None:
    model = Model(TINY)
    settings = [
        {"temperature": 0.9, "top_k": 40, "top_p": 0.95, "seed": 7},
        {"temperature": 1.3, "min_p": 0.05, "repetition_penalty": 1.2, "seed": 2**32 - 1},
    ]
    names = {"top_k": "topK", "top_p": "topP", "min_p": "minP", "repetition_penalty": "repetitionPenalty"}
    told = [{names.get(key, key): value for key, value in each.items()} | {"maxNewTokens": 80} for each in settings]
    greedy = [GOLDEN["prompt"], {"maxNewTokens": len(GOLDEN["ids"])}]
    answers = node(
        "module.mjs", {"model": TINY.as_uri(), "generate": [greedy, *(["import os", each] for each in told)]}
    )
    assert answers["generate"][0]["ids"] == GOLDEN["ids"]
    assert "".join(answers["generate"][0]["pieces"]) == GOLDEN["text"]
    for answer, each in zip(answers["generate"][1:], settings, strict=True):
        native = model.generate("import os", max_new_tokens=80, **each)
        assert "".join(answer["pieces"]) == "".join(native)
        assert answer["ids"] == native.ids


def test_tokens_of_any_text_and_of_a_conversation(node: Node, chat_model: Path) -> None:
    texts = ["", "naïve café 🙂 end", "a\n\n  b\t", "\u0000\u007f", "def f(x):\n    return x"]
    talk = [
        {"role": "user", "content": " hi "},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "so?"},
    ]
    talks = [talk[:1], talk, [{"role": "system", "content": "Be brief."}, *talk]]
    found = node("module.mjs", {"model": chat_model.as_uri(), "encode": texts, "chat": talks, "contextLength": 512})
    model = Model(chat_model)
    assert found["encode"] == [model.tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    strings = onebit_file.read(chat_model).chat_strings
    assert strings is not None
    expected = [strings.render(each) for each in talks]
    assert found["chat"] == [model.tokenizer.encode(text, add_special_tokens=False).ids for text in expected]
    assert found["contextLength"] == 512


def test_an_answer_ends_where_it_should(node: Node) -> None:
    whole = "".join(Model(TINY).generate("def fib(n):", max_new_tokens=60))
    stop = whole[20:25]
    jobs = [
        ["def fib(n):", {"maxNewTokens": 60, "stop": stop}],
        ["def fib(n):", {"maxNewTokens": 9}],
        ["def fib(n):", {"maxNewTokens": 10_000}],
        ["def fib(n):", {"maxNewTokens": 10_000}, 3],
    ]
    found = node("module.mjs", {"bytes": str(TINY), "generate": jobs})["generate"]
    assert "".join(found[0]["pieces"]) == whole[: whole.index(stop)]
    assert [each["stats"]["stoppedBy"] for each in found] == ["stop", "length", "context", "abort"]
    assert found[1]["stats"]["newTokens"] == 9
    assert found[2]["stats"]["contextUsed"] == found[2]["stats"]["contextLength"] == 256
    assert len(found[3]["ids"]) < 60


def test_a_long_conversation_loses_its_oldest_turns(node: Node, chat_model: Path) -> None:
    turns = [{"role": ("user", "assistant")[i % 2], "content": f"{i:03d}" * 20} for i in range(9)]
    talk = [{"role": "system", "content": "Be brief."}, *turns]
    asked = {"model": chat_model.as_uri(), "contextLength": 400, "generate": [[talk, {"maxNewTokens": 8}]]}
    stats = node("module.mjs", asked)["generate"][0]["stats"]
    strings = onebit_file.read(chat_model).chat_strings
    assert strings is not None
    kept = [talk[0], *turns[stats["droppedMessages"] :]]
    assert stats["droppedMessages"] > 0
    assert stats["promptTokens"] == len(strings.render(kept).encode()) <= 392
    assert kept[1]["role"] == "user"
    one_more = strings.render([talk[0], *turns[stats["droppedMessages"] - 2 :]])
    assert len(one_more.encode()) > 392


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw[: len(raw) // 2], "an incomplete copy"),
        (lambda raw: b"GGUF" + raw[4:], "not a .1bit file"),
        (lambda raw: raw[:-9] + bytes([raw[-9] ^ 1]) + raw[-8:], "damaged"),
    ],
)
def test_a_damaged_file_is_one_clear_error(
    node: Node, tmp_path: Path, damage: Callable[[bytes], bytes], message: str
) -> None:
    (tmp_path / "bad.1bit").write_bytes(damage(TINY.read_bytes()))
    assert message in node("module.mjs", {"bytes": str(tmp_path / "bad.1bit")})["error"]


def test_a_file_without_tokenizer_takes_tokens_alone(node: Node, tmp_path: Path) -> None:
    from dataclasses import replace

    onebit_file.write(tmp_path / "bare.1bit", replace(onebit_file.read(TINY), tokenizer_binary=None))
    asked = {"bytes": str(tmp_path / "bare.1bit"), "encode": ["a"]}
    assert "no tokenizer for the engine" in node("module.mjs", asked)["error"]
