"""What a chat sends to the model: the turns so far, as its template writes them, within its context window.

With a chat template (Jinja, in a sandbox: it comes out of a downloaded file) every turn is rendered. Without one there
are no turns to tell apart: the model continues the text typed so far.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from onebit.errors import OnebitError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from onebit.engine.model import Model

__all__ = ["Conversation", "encoder_of", "named_specials", "render_template", "specials_of"]

Encode = Callable[[str], list[int]]


def render_template(
    template: str, messages: list[dict[str, str]], specials: dict[str, str], add_generation_prompt: bool = True
) -> str:
    """Render a Hugging Face chat template, asking for the assistant's turn unless told otherwise.

    Raises OnebitError when the template does not compile or refuses the messages.
    """
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> NoReturn:
        raise TemplateError(message)

    def to_json(value: Any, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=False, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = to_json
    environment.globals |= {"raise_exception": refuse, "strftime_now": datetime.now().strftime}
    try:
        compiled = environment.from_string(template)
        return compiled.render(messages=messages, add_generation_prompt=add_generation_prompt, **specials)
    except TemplateError as problem:
        raise OnebitError(f"the model's chat template fails: {problem}") from problem


def specials_of(model: Model) -> dict[str, str]:
    """What a template may name, of a model's own tokenizer."""
    about = model.description
    return named_specials(model.tokenizer, about.bos, about.eos, about.pad)


def named_specials(tokenizer: Tokenizer, bos: int | None, eos: int | None, pad: int | None) -> dict[str, str]:
    """What a template may name: bos_token, eos_token, pad_token, as far as the model has them."""
    tokens = {"bos_token": bos, "eos_token": eos, "pad_token": pad}
    return {name: tokenizer.id_to_token(token) or "" for name, token in tokens.items() if token is not None}


def encoder_of(model: Model) -> Encode:
    """Text that a template wrote, special tokens included, to token ids."""
    tokenizer: Any = model.tokenizer
    return lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)


@dataclass
class Conversation:
    """Turns of a chat. `context` tokens hold the prompt and room for `reserve` new ones."""

    encode: Encode
    context: int
    reserve: int
    template: str | None = None
    specials: dict[str, str] = field(default_factory=dict)
    system: str | None = None
    messages: list[dict[str, str]] = field(default_factory=list)

    def add(self, role: str, text: str) -> None:
        self.messages.append({"role": role, "content": text})

    def reset(self) -> None:
        self.messages.clear()

    def prompt(self) -> tuple[list[int], int]:
        """Token ids to feed and how many of the oldest turns (tokens, without a template) had to be dropped."""
        room = self.context - min(self.reserve, self.context // 2)
        if self.template is None:
            ids = self.encode(self._running_text())
            dropped = max(0, len(ids) - room)
            return ids[dropped:], dropped
        dropped = 0
        while len(ids := self.encode(self._rendered())) > room and len(self.messages) > 1:
            first_kept = next(
                (i for i, m in enumerate(self.messages[1:], 1) if m["role"] == "user"), len(self.messages) - 1
            )
            dropped += first_kept
            del self.messages[:first_kept]
        if len(ids) > room:  # a single message longer than the window: its end counts
            ids = ids[len(ids) - room :]
            dropped += 1
        return ids, dropped

    def _rendered(self) -> str:
        assert self.template is not None
        system = [{"role": "system", "content": self.system}] if self.system else []
        return render_template(self.template, system + self.messages, self.specials)

    def _running_text(self) -> str:
        """Everything said so far in order; a line typed after an answer begins a line of its own."""
        text = f"{self.system}\n" if self.system else ""
        for message in self.messages:
            if message["role"] == "user" and text and not text.endswith("\n"):
                text += "\n"
            text += message["content"]
        return text

    def save(self, path: Path) -> None:
        """Write the turns as JSON, in the shape that chat templates and training data use."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        text = json.dumps({"messages": system + self.messages}, indent=2, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")
