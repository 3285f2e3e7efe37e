"""A Hugging Face ``tokenizer.json`` in the keys of a GGUF file, and back.

llama.cpp reads tokens, merges or scores, and the name of a split that it knows; the whole tokenizer.json lies beside
them in ``tokenizer.huggingface.json``, a key of GGUF's own specification, and is what is read back when it is there.
"""

from __future__ import annotations

import json
from typing import Any

from onebit.errors import FormatError
from onebit.formats.description import ModelDescription
from onebit.formats.tokenizer_pipeline import (
    BYTE_LEVEL,
    METASPACE,
    SPLIT_GPT2,
    SPLIT_LLAMA3,
    SPLIT_QWEN2,
    SPLITS,
    Pipeline,
    read_pipeline,
)

__all__ = ["HUGGINGFACE_JSON", "tokenizer_json_of", "tokenizer_metadata"]

HUGGINGFACE_JSON = "tokenizer.huggingface.json"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

_PRE = {SPLIT_GPT2: "gpt-2", SPLIT_LLAMA3: "llama-bpe", SPLIT_QWEN2: "qwen2"}
_SPLIT_OF = {
    **dict.fromkeys(("gpt-2", "phi-2"), SPLIT_GPT2),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3"), SPLIT_LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), SPLIT_QWEN2),
}
_REGEX_OF = {split: regex for regex, split in reversed(SPLITS.items())}


def tokenizer_metadata(tokenizer_json: str | None, description: ModelDescription) -> tuple[dict[str, Any], list[str]]:
    """(keys and values, what llama.cpp will not know, in words) of a tokenizer."""
    if tokenizer_json is None:
        return {"tokenizer.ggml.model": "no_vocab"}, ["no tokenizer: the file takes and gives token ids only"]
    whole: dict[str, Any] = json.loads(tokenizer_json)
    kept = {HUGGINGFACE_JSON: tokenizer_json}
    try:
        pipeline = read_pipeline(whole)
    except FormatError as error:
        reason = f"llama.cpp gets no tokenizer, only token ids: {error}"
        return {"tokenizer.ggml.model": "no_vocab", **kept}, [reason]
    tokens, types = _tokens(whole, pipeline, description.vocab_size)
    metadata: dict[str, Any] = {}
    notes: list[str] = []
    if pipeline.model == BYTE_LEVEL:
        pre = "smollm" if pipeline.digits else _PRE.get(pipeline.split)
        if pre is None:
            notes.append("the tokenizer does not split texts, which llama.cpp has no name for: it splits as GPT-2 does")
        metadata["tokenizer.ggml.model"] = "gpt2"
        metadata["tokenizer.ggml.pre"] = pre or "gpt-2"
        metadata["tokenizer.ggml.merges"] = [_merge(entry) for entry in whole["model"]["merges"]] or [""]
    else:
        metadata["tokenizer.ggml.model"] = "llama"
        metadata["tokenizer.ggml.pre"] = "default"
        metadata["tokenizer.ggml.scores"] = _scores(whole, tokens)
        metadata["tokenizer.ggml.add_space_prefix"] = bool(pipeline.prepend)
    metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"] = tokens, types
    unknown = whole["model"].get("unk_token")
    if unknown in whole["model"]["vocab"]:
        metadata["tokenizer.ggml.unknown_token_id"] = whole["model"]["vocab"][unknown]
    return metadata | kept, notes


def _tokens(whole: dict[str, Any], pipeline: Pipeline, size: int) -> tuple[list[str], list[int]]:
    """Every token of the vocabulary and its type; rows of the table without a token are unused."""
    tokens, types = [f"[PAD{i}]" for i in range(size)], [UNUSED] * size
    for token, index in whole["model"]["vocab"].items():
        is_byte = pipeline.decodes_bytes and len(token) == 6 and token.startswith("<0x")
        tokens[index], types[index] = token, BYTE if is_byte else NORMAL
    for entry in whole.get("added_tokens") or []:
        tokens[entry["id"]], types[entry["id"]] = entry["content"], CONTROL if entry["special"] else USER_DEFINED
    unknown = whole["model"].get("unk_token")
    if unknown in whole["model"]["vocab"] and pipeline.model != BYTE_LEVEL:
        types[whole["model"]["vocab"][unknown]] = UNKNOWN
    return tokens, types


def _merge(entry: Any) -> str:
    return entry if isinstance(entry, str) else f"{entry[0]} {entry[1]}"


def _scores(whole: dict[str, Any], tokens: list[str]) -> list[float]:
    """SentencePiece's scores: what is merged earlier is worth more."""
    rank: dict[str, int] = {}
    for i, entry in enumerate(whole["model"]["merges"]):
        rank.setdefault(_merge(entry).replace(" ", "", 1), i)
    return [-float(rank.get(token, 0)) for token in tokens]


def tokenizer_json_of(metadata: dict[str, Any]) -> str | None:
    """The tokenizer.json of a GGUF file: the one it carries, or one made of its tokens; None when it has none that
    onebit knows how to split."""
    whole = metadata.get(HUGGINGFACE_JSON)
    if isinstance(whole, str):
        return whole
    tokens, types = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.token_type")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        return None
    kinds = [NORMAL] * len(tokens) if types is None else [int(kind) for kind in types]
    if len(kinds) != len(tokens):
        raise FormatError(f"{len(tokens)} tokens have {len(kinds)} types")
    kind = metadata.get("tokenizer.ggml.model")
    if kind == "gpt2" and metadata.get("tokenizer.ggml.pre") in _SPLIT_OF:
        model, steps = _byte_level(metadata, tokens)
    elif kind == "llama" and metadata.get("tokenizer.ggml.scores") is not None:
        model, steps = _sentencepiece(metadata, tokens)
    else:
        return None
    added = [
        {
            "id": index,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kinds[index] == CONTROL,
        }
        for index, token in enumerate(tokens)
        if kinds[index] in (CONTROL, USER_DEFINED)
    ]
    described = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, **steps, "model": model}
    return json.dumps(described, ensure_ascii=False)


def _vocabulary(tokens: list[str]) -> dict[str, int]:
    vocab: dict[str, int] = {}
    for index, token in enumerate(tokens):
        vocab.setdefault(token, index)
    return vocab


def _byte_level(metadata: dict[str, Any], tokens: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(model, steps around it) of a GPT-2-like tokenizer."""
    vocab = _vocabulary(tokens)
    merges = [merge.split(" ", 1) for merge in metadata.get("tokenizer.ggml.merges") or [] if " " in merge]
    split = _SPLIT_OF[metadata["tokenizer.ggml.pre"]]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    pattern = {"type": "Split", "pattern": {"Regex": _REGEX_OF[split]}, "behavior": "Isolated", "invert": False}
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": split == SPLIT_LLAMA3,
        "vocab": vocab,
        "merges": [pair for pair in merges if all(part in vocab for part in (*pair, "".join(pair)))],
    }
    steps = {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [pattern, byte_level]},
        "post_processor": None,
        "decoder": {**byte_level, "use_regex": True},
    }
    return model, steps


def _sentencepiece(metadata: dict[str, Any], tokens: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(model, steps around it) of a SentencePiece BPE: every split of a token into two is a merge, best score first."""
    vocab = _vocabulary(tokens)
    scores = [float(score) for score in metadata["tokenizer.ggml.scores"]]
    if len(scores) != len(tokens):
        raise FormatError(f"{len(tokens)} tokens have {len(scores)} scores")
    merges = []
    for token in sorted(vocab, key=lambda token: -scores[vocab[token]]):
        pairs = [(token[:at], token[at:]) for at in range(1, len(token))]
        found = [pair for pair in pairs if pair[0] in vocab and pair[1] in vocab]
        merges += sorted(found, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
    unknown = metadata.get("tokenizer.ggml.unknown_token_id")
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": tokens[unknown] if isinstance(unknown, int) and unknown < len(tokens) else None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": "<0x0A>" in vocab,
        "ignore_merges": False,
        "vocab": vocab,
        "merges": merges,
    }
    prepend = (
        [{"type": "Prepend", "prepend": METASPACE}] if metadata.get("tokenizer.ggml.add_space_prefix", True) else []
    )
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": METASPACE}
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prepend else []
    back = {"type": "Replace", "pattern": {"String": METASPACE}, "content": " "}
    steps = {
        "normalizer": {"type": "Sequence", "normalizers": [*prepend, replace]},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
    }
    return model, steps
