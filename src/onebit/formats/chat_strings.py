"""A chat template as eight strings, for programs without Jinja: C, WebAssembly, a microcontroller.

A Jinja template is compiled by probing: conversations of marked messages are rendered, and what stands between the
marks are the prefixes and suffixes of each role. The result is then held against the template on other conversations;
a template that is more than prefixes and suffixes (one that moves the system message, numbers the turns, ...) is
refused, never approximated. The section's bytes are described in docs/format.md, CHATSTR.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from onebit.errors import FormatError

__all__ = ["ChatStrings", "compile_template", "template_renderer"]

Message = dict[str, str]
Render = Callable[[Sequence[Message], bool], str]

_HEADER = struct.Struct("<4I")
_ENTRY = struct.Struct("<2I")
_VERSION = 1
_STRIPS, _SYSTEM = 1, 2


@dataclass(frozen=True, kw_only=True)
class ChatStrings:
    """What stands around messages. ``opening`` starts a conversation without a system message; with one, the
    conversation starts with ``system_prefix``. ``generation_prefix`` comes last and asks for an answer."""

    opening: str
    system_prefix: str
    system_suffix: str
    user_prefix: str
    user_suffix: str
    assistant_prefix: str
    assistant_suffix: str
    generation_prefix: str
    strips_content: bool = False
    has_system: bool = True

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The prompt for a conversation; a system message may only come first."""
        parts = [] if messages and messages[0]["role"] == "system" else [self.opening]
        for index, message in enumerate(messages):
            role = message["role"]
            if role not in ("system", "user", "assistant") or (role == "system" and (index or not self.has_system)):
                raise FormatError(f"chat: a message of role {role!r} cannot stand at place {index} with this template")
            content = message["content"].strip() if self.strips_content else message["content"]
            parts += [getattr(self, f"{role}_prefix"), content, getattr(self, f"{role}_suffix")]
        return "".join(parts) + (self.generation_prefix if add_generation_prompt else "")

    def to_bytes(self) -> bytes:
        """The CHATSTR section."""
        texts = [getattr(self, name).encode() for name in _STRINGS]
        flags = _STRIPS * self.strips_content | _SYSTEM * self.has_system
        table, body = b"", b""
        start = _HEADER.size + _ENTRY.size * len(texts)
        for text in texts:
            table += _ENTRY.pack(start + len(body), len(text))
            body += text + b"\0"
        return _HEADER.pack(_VERSION, flags, len(texts), 0) + table + body

    @classmethod
    def from_bytes(cls, raw: bytes) -> ChatStrings:
        """Read and check the section."""
        start = _HEADER.size + _ENTRY.size * len(_STRINGS)
        if len(raw) < start:
            raise FormatError(f"section CHATSTR has {len(raw)} bytes, expected at least {start}")
        version, flags, count, zero = _HEADER.unpack_from(raw)
        if (version, count, zero) != (_VERSION, len(_STRINGS), 0) or flags & ~(_STRIPS | _SYSTEM):
            raise FormatError(f"section CHATSTR: version {version} with {count} strings is unknown to this onebit")
        texts = {}
        for index, name in enumerate(_STRINGS):
            offset, size = _ENTRY.unpack_from(raw, _HEADER.size + index * _ENTRY.size)
            if offset < start or offset + size >= len(raw) or raw[offset + size]:
                raise FormatError(f"section CHATSTR: string {name} ({size} bytes at {offset}) does not lie within it")
            try:
                texts[name] = raw[offset : offset + size].decode("utf-8")
            except UnicodeDecodeError as error:
                raise FormatError(f"section CHATSTR: string {name} is not UTF-8: {error}") from None
        return cls(**texts, strips_content=bool(flags & _STRIPS), has_system=bool(flags & _SYSTEM))


_STRINGS = tuple(field.name for field in fields(ChatStrings) if field.type == "str")


def template_renderer(template: str, bos_token: str = "", eos_token: str = "") -> Render:
    """Render a Jinja chat template as transformers does: sandboxed, blocks trimmed, no clock and no files."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise FormatError(f"chat template: {message}")

    try:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        compiled = environment.from_string(template)
    except TemplateError as error:
        raise FormatError(f"chat template is not valid Jinja: {error}") from None

    def render(messages: Sequence[Message], add_generation_prompt: bool) -> str:
        values: dict[str, Any] = {"bos_token": bos_token, "eos_token": eos_token, "raise_exception": refuse}
        try:
            return compiled.render(messages=list(messages), add_generation_prompt=add_generation_prompt, **values)
        except FormatError:
            raise
        except Exception as error:  # a template may do anything inside the sandbox; every failure is the template's
            raise FormatError(f"chat template cannot be rendered: {error}") from None

    return render


def compile_template(template: str, bos_token: str = "", eos_token: str = "") -> ChatStrings:
    """Find the strings of a Jinja chat template; FormatError when prefixes and suffixes are not all it does."""
    render = template_renderer(template, bos_token, eos_token)
    before, suffix = _around(render, [_user(0)], False)
    _, suffix_and_generation = _around(render, [_user(0)], True)
    first, between, between_answer, _ = _split(render, [_user(0), _assistant(0), _user(1)], False)
    assistant_suffix = _split(render, [_user(0), _assistant(0)], False)[-1]
    user_prefix = _without(between_answer, assistant_suffix, "what follows an answer")
    if first != before or not first.endswith(user_prefix):
        raise _too_clever("the first user message starts unlike later ones")
    strings = {
        "opening": first[: len(first) - len(user_prefix)],
        "user_prefix": user_prefix,
        "user_suffix": suffix,
        "assistant_prefix": _without(between, suffix, "what follows a question"),
        "assistant_suffix": assistant_suffix,
        "generation_prefix": _without(suffix_and_generation, suffix, "the generation prompt"),
    }
    system = _system_strings(render, user_prefix)
    strips = _strips(render)
    has_system = system is not None
    prefix, end = system or ("", "")
    found = ChatStrings(
        **strings, system_prefix=prefix, system_suffix=end, strips_content=strips, has_system=has_system
    )
    _check(found, render)
    return found


def _user(index: int) -> Message:
    return {"role": "user", "content": f"QzUser{index}Zq"}


def _assistant(index: int) -> Message:
    return {"role": "assistant", "content": f"QzAnswer{index}Zq"}


_SYSTEM_MESSAGE: Message = {"role": "system", "content": "QzSystemZq"}


def _too_clever(what: str) -> FormatError:
    return FormatError(f"chat template is more than prefixes and suffixes: {what}")


def _without(text: str, prefix: str, what: str) -> str:
    if not text.startswith(prefix):
        raise _too_clever(f"{what} depends on what comes next")
    return text[len(prefix) :]


def _split(render: Render, messages: Sequence[Message], generate: bool) -> list[str]:
    """Render and cut at the messages' contents."""
    rest, parts = render(messages, generate), []
    for message in messages:
        before, mark, rest = rest.partition(message["content"])
        if not mark or message["content"] in rest:
            raise _too_clever(f"a {message['role']} message is left out, moved or repeated")
        parts.append(before)
    return [*parts, rest]


def _around(render: Render, messages: Sequence[Message], generate: bool) -> tuple[str, str]:
    before, after = _split(render, messages, generate)
    return before, after


def _system_strings(render: Render, user_prefix: str) -> tuple[str, str] | None:
    """(prefix, suffix) of a system message, None when the template refuses or ignores it."""
    try:
        prefix, between, _ = _split(render, [_SYSTEM_MESSAGE, _user(0)], False)
    except FormatError:
        return None
    if not between.endswith(user_prefix):
        raise _too_clever("a question after a system message starts unlike others")
    return prefix, between[: len(between) - len(user_prefix)]


def _strips(render: Render) -> bool:
    text = render([{"role": "user", "content": "  QzUser0Zq  "}], False)
    return "  QzUser0Zq  " not in text


def _check(found: ChatStrings, render: Render) -> None:
    """Hold the strings against the template on conversations that were not used to find them."""
    tail = [_user(0), _assistant(0), _user(1), _assistant(1), _user(2)]
    odd = [{"role": "user", "content": " a\n<b> "}, {"role": "assistant", "content": "\nc d\n"}, _user(1)]
    conversations: list[list[Message]] = [tail, tail[:4], tail[:2], odd]
    if found.has_system:
        conversations += [[_SYSTEM_MESSAGE, *conversation] for conversation in conversations]
    for conversation in conversations:
        for generate in (False, True):
            if found.render(conversation, generate) != render(conversation, generate):
                raise _too_clever(f"{len(conversation)} messages render in a way of their own")
