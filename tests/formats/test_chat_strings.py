"""Chat templates of the field, compiled to strings and held against Jinja; and those that cannot be."""

from __future__ import annotations

import pytest

from onebit.errors import FormatError
from onebit.formats.chat_strings import ChatStrings, compile_template, template_renderer

GENERATE = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}" + GENERATE
)
DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}" + CHATML
)
HEADERS = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.first %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
INST = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set rest = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}{% for m in rest %}"
    "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' }}"
    "{% if loop.first and system %}{{ '<<SYS>>' + system + '<</SYS>>' }}"
    "{% endif %}{{ m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LONG = [
    {"role": "user", "content": " one "},
    {"role": "assistant", "content": "two\n"},
    {"role": "user", "content": "{{ three }}"},
    {"role": "assistant", "content": ""},
    {"role": "user", "content": "vier ü"},
]


@pytest.mark.parametrize(
    "template", [CHATML, DEFAULT_SYSTEM, HEADERS, NO_SYSTEM], ids=["chatml", "default", "headers", "gemma"]
)
def test_compiled_strings_render_as_jinja_does(template: str) -> None:
    compiled = compile_template(template, "<s>", "</s>")
    jinja = template_renderer(template, "<s>", "</s>")
    assert ChatStrings.from_bytes(compiled.to_bytes()) == compiled
    systems = [[], [{"role": "system", "content": "Talk like a pirate."}]] if compiled.has_system else [[]]
    for system in systems:
        for count in (1, 2, 3, 4, 5):
            for generate in (False, True):
                assert compiled.render(system + LONG[:count], generate) == jinja(system + LONG[:count], generate)


def test_what_was_found() -> None:
    found = compile_template(DEFAULT_SYSTEM)
    assert found.opening == "<|im_start|>system\nBe kind.<|im_end|>\n"
    assert found.system_prefix == "<|im_start|>system\n"
    assert (found.strips_content, found.has_system) == (False, True)
    assert compile_template(HEADERS, "<s>").opening == "<s>"
    assert compile_template(HEADERS, "<s>").strips_content
    assert not compile_template(NO_SYSTEM).has_system
    with pytest.raises(FormatError, match="system"):
        compile_template(NO_SYSTEM).render([{"role": "system", "content": "x"}])


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (INST, "more than prefixes and suffixes"),
        ("hello", "left out, moved or repeated"),
        ("{% for m in messages %}{{ loop.index }}{{ m.role }}{{ m.content }}{% endfor %}", "more than prefixes"),
        ("{% for m in messages %}{{ m.role }}{{ m.content }}{{ m.content }}{% endfor %}", "repeated"),
        ("{% for m in messages %}{{ m.role }}{{ m.content | upper }}{% endfor %}", "left out"),
        ("{% for %}", "not valid Jinja"),
        ("{{ messages[99].content }}", "cannot be rendered"),
        ("{{ ''.__class__.__mro__ }}", "cannot be rendered"),
    ],
)
def test_templates_that_are_more_are_refused(template: str, why: str) -> None:
    with pytest.raises(FormatError, match=why):
        compile_template(template, "<s>", "</s>")


def test_damaged_sections_are_refused() -> None:
    raw = compile_template(CHATML).to_bytes()
    assert raw[:16] == bytes([1, 0, 0, 0, 2, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0])
    for damaged in (
        b"",
        raw[:79],
        b"\2" + raw[1:],
        raw[:16] + b"\xff" * 8 + raw[24:],
        raw[:-1],
        raw[:20] + b"\1" + raw[21:],
    ):
        with pytest.raises(FormatError, match="CHATSTR"):
            ChatStrings.from_bytes(damaged)
