"""What a chat sends to the model, without a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onebit.engine.conversation import Conversation, render_template
from onebit.errors import OnebitError

TEMPLATE = (
    "{% for m in messages %}[{{ m.role[0] }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[a]{% endif %}"
)


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def said(conversation: Conversation) -> str:
    return "".join(map(chr, conversation.prompt()[0]))


def test_a_template_renders_every_turn_and_asks_for_the_next() -> None:
    chat = Conversation(letters, context=100, reserve=10, template=TEMPLATE, system="S")
    chat.add("user", "hi")
    assert said(chat) == "[s]S[u]hi[a]"
    chat.add("assistant", "ho")
    chat.add("user", "and?")
    assert said(chat) == "[s]S[u]hi[a]ho[u]and?[a]"
    chat.reset()
    chat.add("user", "new")
    assert said(chat) == "[s]S[u]new[a]"


def test_the_oldest_turns_are_dropped_whole_and_counted() -> None:
    chat = Conversation(letters, context=40, reserve=10, template=TEMPLATE, system="S")
    for turn in range(4):
        chat.add("user", f"question{turn}")
        chat.add("assistant", f"answer{turn}")
    chat.add("user", "last")
    ids, dropped = chat.prompt()
    text = "".join(map(chr, ids))
    assert len(ids) <= 30
    assert text == "[s]S[u]last[a]" or text.startswith("[s]S[u]question")
    assert text.endswith("[u]last[a]")
    assert dropped == 9 - len(chat.messages)
    assert dropped % 2 == 0
    assert chat.prompt()[1] == 0  # said once


def test_one_message_longer_than_the_window_keeps_its_end() -> None:
    chat = Conversation(letters, context=20, reserve=10, template=TEMPLATE)
    chat.add("user", "x" * 50 + "END")
    ids, dropped = chat.prompt()
    assert "".join(map(chr, ids)).endswith("END[a]")
    assert (len(ids), dropped) == (10, 1)


def test_without_a_template_the_text_goes_on() -> None:
    chat = Conversation(letters, context=100, reserve=10)
    chat.add("user", "def f(x):")
    chat.add("assistant", " return x")
    chat.add("user", "def g(x):")
    assert said(chat) == "def f(x): return x\ndef g(x):"


def test_without_a_template_the_oldest_tokens_are_dropped() -> None:
    chat = Conversation(letters, context=20, reserve=4)
    chat.add("user", "0123456789" * 3)
    ids, dropped = chat.prompt()
    assert (len(ids), dropped) == (16, 14)


def test_a_reserve_larger_than_the_context_leaves_half_of_it() -> None:
    chat = Conversation(letters, context=20, reserve=1000)
    chat.add("user", "y" * 30)
    assert len(chat.prompt()[0]) == 10


def test_templates_run_in_a_sandbox() -> None:
    with pytest.raises(OnebitError, match="chat template fails"):
        render_template("{{ ''.__class__.__mro__[1].__subclasses__() }}", [], {})
    with pytest.raises(OnebitError, match="no system"):
        render_template("{{ raise_exception('no system') }}", [], {})
    with pytest.raises(OnebitError, match="chat template fails"):
        render_template("{% for %}", [], {})


def test_templates_know_what_hugging_face_ones_use() -> None:
    text = render_template(
        "{{ bos_token }}{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}"
        "{{ m | tojson }}{% endfor %}",
        [{"role": "user"}, {"role": "ü"}],
        {"bos_token": "<s>"},
    )
    assert text == '<s>{"role": "ü"}'
    assert len(render_template("{{ strftime_now('%Y') }}", [], {})) == 4


def test_saved_conversations_are_messages(tmp_path: Path) -> None:
    chat = Conversation(letters, context=20, reserve=4, system="S")
    chat.add("user", "ü")
    chat.save(tmp_path / "c.json")
    saved = json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))
    assert saved == {"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "ü"}]}
