"""Compiles a Hugging Face ``tokenizer.json`` into TOKBIN, the tables that the C engine reads in place.

Two requirements shaped this module: the C side has no parser and no regex engine, so every choice becomes a number
here; and a tokenizer that C would treat differently from the ``tokenizers`` library is refused with the feature's name,
since a silently different split ruins a model's answers. engine/src/ob_tokenizer.h documents the byte layout.
"""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from onebit.errors import FormatError
from onebit.formats.tokenizer_pipeline import BYTE_LEVEL, METASPACE, SENTENCEPIECE, Pipeline, read_pipeline

__all__ = ["compile_tokenizer"]

MAGIC, VERSION, HEADER_BYTES = 0x424B4F54, 1, 128
NO_TOKEN = 0xFFFFFFFF
MAX_VOCAB = 1 << 24
MAX_AROUND = 16  # tokens before or after a text
SPECIAL, EXISTS = 1, 2  # token flags
STRIP_LEFT, STRIP_RIGHT = 1, 2  # added-token flags


def byte_characters() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes: printable Latin-1 for itself, the others from U+0100 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTE_OF_CHARACTER = byte_characters()


@dataclass
class Tables:
    """The parts of a TOKBIN section, before they are laid out. Token ids index ``decoded`` and ``flags``."""

    decoded: list[bytes]
    flags: bytearray
    merges: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)  # (left, right) -> (rank, result)
    byte_ids: list[int] = field(default_factory=lambda: [NO_TOKEN] * 256)
    chars: list[tuple[int, int]] = field(default_factory=list)
    sorted_ids: list[int] = field(default_factory=list)
    added_raw: dict[bytes, tuple[int, int]] = field(default_factory=dict)  # content -> id, flags
    added_normal: dict[bytes, tuple[int, int]] = field(default_factory=dict)


def compile_tokenizer(tokenizer_json: str | bytes) -> bytes:
    """Return the TOKBIN section for the text of a ``tokenizer.json``.

    Raises:
        FormatError: not a tokenizer.json, or it uses a feature that the C tokenizer does not have (named).
    """
    try:
        description = json.loads(tokenizer_json)
    except ValueError as error:
        raise FormatError(f"tokenizer.json is not JSON: {error}") from error
    if not isinstance(description, dict) or not isinstance(description.get("model"), dict):
        raise FormatError("not a tokenizer.json: it has no 'model'; save it with tokenizers.Tokenizer.save()")
    try:
        pipeline = read_pipeline(description)
        return lay_out(*read_tables(description, pipeline), pipeline)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise FormatError(f"tokenizer.json is damaged: {type(error).__name__} {error}; save it again") from error


def read_tables(description: dict[str, Any], pipeline: Pipeline) -> tuple[Tables, int]:
    """All tables and the unknown token's id (NO_TOKEN: none)."""
    vocab: dict[str, int] = description["model"]["vocab"]
    added: list[dict[str, Any]] = description.get("added_tokens") or []
    tables = read_tokens(vocab, added, pipeline)
    read_merges(tables, vocab, description["model"]["merges"])
    read_first_symbols(tables, vocab, pipeline)
    if pipeline.ignore_merges:
        pieces = {token_id: as_bytes(token) for token, token_id in vocab.items()}
        tables.sorted_ids = [i for _, i in sorted((piece, i) for i, piece in pieces.items() if piece)]
    for token in added:
        read_added(tables, token, pipeline)
    unknown = description["model"].get("unk_token")
    if unknown is not None and unknown not in vocab:
        raise FormatError(f"unk_token {unknown!r} is not in the vocabulary; add it or set it to null")
    return tables, NO_TOKEN if unknown is None else vocab[unknown]


def as_bytes(token: str) -> bytes | None:
    """The bytes that a byte-level token stands for; None when it has a character that stands for no byte."""
    values = [BYTE_OF_CHARACTER.get(character, -1) for character in token]
    return None if -1 in values else bytes(values)


def decoded_token(token: str, pipeline: Pipeline) -> bytes:
    """What the decoder makes of one token."""
    if pipeline.model == BYTE_LEVEL:
        value = as_bytes(token)
        return token.encode("utf-8", errors="replace") if value is None else value
    if pipeline.decodes_bytes and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes([int(token[3:5], 16)])
        except ValueError:
            pass
    return token.replace(METASPACE, " ").encode("utf-8", errors="replace")


def read_tokens(vocab: dict[str, int], added: list[dict[str, Any]], pipeline: Pipeline) -> Tables:
    tokens: dict[int, str] = {token_id: token for token, token_id in vocab.items()}
    tokens.update((entry["id"], entry["content"]) for entry in added)
    if not tokens or min(tokens) < 0 or max(tokens) >= MAX_VOCAB:
        raise FormatError(f"token ids must lie in 0..{MAX_VOCAB - 1} and there must be at least one")
    size = max(tokens) + 1
    tables = Tables(decoded=[b""] * size, flags=bytearray(size))
    for token_id, token in tokens.items():
        tables.decoded[token_id] = decoded_token(token, pipeline)
        tables.flags[token_id] = EXISTS
    for entry in added:
        tables.flags[entry["id"]] |= SPECIAL if entry.get("special") else 0
    return tables


def read_merges(tables: Tables, vocab: dict[str, int], merges: list[Any]) -> None:
    for rank, merge in enumerate(merges):
        pair: list[str] = merge.split(" ", 1) if isinstance(merge, str) else merge
        left, right = pair
        for token in (left, right, left + right):
            if token not in vocab:
                raise FormatError(f"merge {rank} needs the token {token!r}, which is not in the vocabulary")
        tables.merges[vocab[left], vocab[right]] = (rank, vocab[left + right])


def read_first_symbols(tables: Tables, vocab: dict[str, int], pipeline: Pipeline) -> None:
    """What a text consists of before the first merge: bytes, or characters with bytes to fall back on."""
    if pipeline.model == SENTENCEPIECE:
        tables.chars = sorted((ord(token), token_id) for token, token_id in vocab.items() if len(token) == 1)
    fallback = [f"<0x{byte:02X}>" in vocab for byte in range(256)]
    if pipeline.byte_fallback and any(fallback) and (not all(fallback) or pipeline.model == BYTE_LEVEL):
        raise FormatError("byte_fallback needs all tokens <0x00> to <0xFF> and no ByteLevel pre-tokenizer")
    pipeline.byte_fallback = pipeline.byte_fallback and all(fallback)
    if pipeline.model == BYTE_LEVEL:
        for character, byte in BYTE_OF_CHARACTER.items():
            tables.byte_ids[byte] = vocab.get(character, NO_TOKEN)
    elif pipeline.byte_fallback:
        tables.byte_ids = [vocab[f"<0x{byte:02X}>"] for byte in range(256)]


def read_added(tables: Tables, token: dict[str, Any], pipeline: Pipeline) -> None:
    if token.get("single_word"):
        raise FormatError(f"added token {token['content']!r} with single_word=true is not supported; set it to false")
    given: str = token["content"]
    if (
        pipeline.model == SENTENCEPIECE
        and not pipeline.replaces_spaces
        and token.get("normalized")
        and (" " in given or METASPACE in given)
    ):  # Metaspace replaces spaces only after these tokens are found, the C side before
        raise FormatError(f"added token {given!r} with a space and normalized=true is not supported; set it to false")
    content = (pipeline.normalize(given) if token.get("normalized") else given).encode("utf-8", errors="replace")
    if len(content) > 255:
        raise FormatError(f"added token {given[:40]!r}... is {len(content)} bytes long; at most 255 are supported")
    flags = (STRIP_LEFT if token.get("lstrip") else 0) | (STRIP_RIGHT if token.get("rstrip") else 0)
    if content:
        (tables.added_normal if token.get("normalized") else tables.added_raw)[content] = (token["id"], flags)


def packed(values: Iterable[int]) -> bytes:
    listed = list(values)
    return struct.pack(f"<{len(listed)}I", *listed)


def lay_out(tables: Tables, unknown: int, pipeline: Pipeline) -> bytes:
    """Header, tables in the header's order, blob; each table 4-byte aligned."""
    size = len(tables.decoded)
    if max(len(pipeline.prefix), len(pipeline.suffix)) > MAX_AROUND:
        raise FormatError(f"the post-processor adds more than {MAX_AROUND} tokens on one side of a text")
    if any(token_id >= size for token_id in (*pipeline.prefix, *pipeline.suffix)):
        raise FormatError("the post-processor adds a token that is not in the vocabulary")
    merges = sorted((left, right, rank, result) for (left, right), (rank, result) in tables.merges.items())
    merge_counts = [0] * size
    for left, *_ in merges:
        merge_counts[left] += 1
    blob = bytearray(b"".join(tables.decoded))
    added = []
    for group in (tables.added_raw, tables.added_normal):
        for content, (token_id, flags) in sorted(group.items()):
            added.append((token_id, len(blob), len(content), flags))
            blob += content
    parts = [
        packed(itertools.accumulate(map(len, tables.decoded), initial=0)),
        bytes(tables.flags),
        packed(itertools.accumulate(merge_counts, initial=0)),
        packed(itertools.chain.from_iterable(merge[1:] for merge in merges)),
        packed(tables.byte_ids),
        packed(itertools.chain.from_iterable(tables.chars)),
        packed(tables.sorted_ids),
        packed(itertools.chain.from_iterable(added)),
        packed(pipeline.prefix),
        packed(pipeline.suffix),
        bytes(blob),
    ]
    body = bytearray()
    offsets = []
    for part in parts:
        offsets.append(HEADER_BYTES + len(body))
        body += part + bytes(-len(part) % 4)
    header = [
        MAGIC, VERSION, HEADER_BYTES + len(body), pipeline.model, pipeline.split, pipeline.flags, pipeline.prepend,
        pipeline.strip, unknown, size, len(merges), len(tables.chars), len(tables.sorted_ids), len(added),
        len(tables.added_raw), len(pipeline.prefix), len(pipeline.suffix), len(blob), *offsets, 0, 0, 0,
    ]  # fmt: skip
    return packed(header) + bytes(body)
