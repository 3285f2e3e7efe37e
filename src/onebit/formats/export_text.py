"""The text side of an export: tokenizer and chat template, as JSON and Jinja for Python and compiled for C."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from onebit.errors import ConfigError, DataError, FormatError
from onebit.formats.chat_strings import ChatStrings, compile_template
from onebit.formats.description import ModelDescription
from onebit.formats.onebit_file import OneBitFile

__all__ = ["binary_of", "chat_strings_of", "json_of", "what_stayed_behind"]


def json_of(tokenizer: Any) -> str | None:
    """The JSON text of a tokenizer: a ``tokenizers.Tokenizer``, a fast transformers tokenizer, or the text itself.

    A text loses its indentation, with which transformers saves it: more than half of its bytes.
    """
    if tokenizer is None:
        return None
    if isinstance(tokenizer, str):
        try:
            return json.dumps(json.loads(tokenizer), ensure_ascii=False, separators=(",", ":"))
        except ValueError:
            return tokenizer  # `binary_of` says what is wrong
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(backend, "to_str"):
        raise DataError(f"a {type(tokenizer).__name__} has no JSON form; use a fast tokenizer (tokenizer.json)")
    text: str = backend.to_str()
    return text


def binary_of(tokenizer_json: str | None, description: ModelDescription) -> bytes | None:
    """The C tokenizer, None where there is none or its kind is one that only Python has."""
    if tokenizer_json is None:
        return None
    from tokenizers import Tokenizer

    try:
        size = Tokenizer.from_str(tokenizer_json).get_vocab_size(with_added_tokens=True)
    except Exception as error:  # the library raises bare Exception
        raise DataError(f"the tokenizer cannot be loaded: {error}") from None
    if size > description.vocab_size:
        raise ConfigError(f"vocab_size is {description.vocab_size}, but the tokenizer has {size} tokens")
    try:
        return _compile(tokenizer_json)
    except FormatError:
        return None


def chat_strings_of(
    template: str | None, tokenizer_json: str | None, description: ModelDescription
) -> ChatStrings | None:
    """The compiled template, None where it is more than prefixes and suffixes (then only Python chats)."""
    if template is None:
        return None
    try:
        return compile_template(template, *(_token_text(tokenizer_json, i) for i in (description.bos, description.eos)))
    except FormatError:
        return None


def _token_text(tokenizer_json: str | None, token: int | None) -> str:
    if tokenizer_json is None or token is None:
        return ""
    from tokenizers import Tokenizer

    return Tokenizer.from_str(tokenizer_json).id_to_token(token) or ""


def what_stayed_behind(file: OneBitFile) -> list[str]:
    """Why tokenizer or chat template could not be compiled for C, in words; empty when all is there."""
    notes = []
    if file.tokenizer_json is None:
        notes.append("no tokenizer.json: the file takes and gives token ids only")
    elif file.tokenizer_binary is None:
        reason = _reason(lambda: _compile(file.tokenizer_json or ""))
        notes.append(f"the tokenizer stays JSON, so only Python reads text with this file: {reason}")
    if file.chat_template is not None and file.chat_strings is None:
        reason = _reason(lambda: compile_template(file.chat_template or ""))
        notes.append(f"the chat template stays Jinja, so only Python chats with this file: {reason}")
    return notes


def _reason(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except FormatError as error:
        return str(error)
    return "it was written without"


def _compile(tokenizer_json: str) -> bytes:
    from onebit.formats.tokenizer_binary import compile_tokenizer

    return compile_tokenizer(tokenizer_json)
