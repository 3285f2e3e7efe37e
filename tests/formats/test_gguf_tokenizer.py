"""Tokenizers in GGUF: ours comes back as it was, those of others split as their program does."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from onebit.errors import FormatError
from onebit.formats.gguf_tokenizer import HUGGINGFACE_JSON, tokenizer_json_of, tokenizer_metadata
from onebit.formats.random_model import random_description
from onebit.formats.tokenizer_pipeline import LLAMA3_REST, LLAMA3_START

TEXT = "The quick brown fox's 12345 jumps; über den faulen Hund.\n\nIt's  what'll do — naïve café! " * 20
LLAMA3 = LLAMA3_START + r"|\p{N}{1,3}" + LLAMA3_REST
QWEN2 = LLAMA3_START + r"|\p{N}" + LLAMA3_REST


def byte_level(split: str | None = None, digits: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    if split is not None:
        from tokenizers import Regex

        steps.append(pre_tokenizers.Split(Regex(split), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None))
    tokenizer.pre_tokenizer = steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"])
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer


def sentencepiece() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=[])
    tokenizer.train_from_iterator(TEXT.split("\n"), trainer)
    whole = json.loads(tokenizer.to_str())
    for byte in bytes_:
        whole["model"]["vocab"].setdefault(byte, len(whole["model"]["vocab"]))
    return Tokenizer.from_str(json.dumps(whole))


def metadata_of(tokenizer: Tokenizer) -> tuple[dict[str, Any], list[str]]:
    description = random_description(vocab_size=tokenizer.get_vocab_size() + 3)
    return tokenizer_metadata(tokenizer.to_str(), description)


@pytest.mark.parametrize(
    ("tokenizer", "pre"),
    [
        (byte_level(), "gpt-2"),
        (byte_level(LLAMA3), "llama-bpe"),
        (byte_level(QWEN2), "qwen2"),
        (byte_level(digits=True), "smollm"),
    ],
)
def test_byte_level_tokenizers_have_a_name_for_their_split(tokenizer: Tokenizer, pre: str) -> None:
    metadata, notes = metadata_of(tokenizer)
    assert notes == []
    assert metadata["tokenizer.ggml.model"] == "gpt2"
    assert metadata["tokenizer.ggml.pre"] == pre
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    assert tokens[:2] == ["<s>", "</s>"]
    assert types[:2] == [3, 3]
    assert types[-3:] == [5, 5, 5]
    assert tokenizer_json_of(metadata) == tokenizer.to_str()
    del metadata[HUGGINGFACE_JSON]
    if pre == "smollm":
        assert tokenizer_json_of(metadata) is None  # its digits are split apart, which we do not make anew
        return
    made = tokenizer_json_of(metadata)
    assert made is not None
    other = Tokenizer.from_str(made)
    assert other.encode(TEXT).ids == tokenizer.encode(TEXT).ids
    assert other.decode(other.encode(TEXT).ids) == TEXT
    assert other.encode("a</s>b").ids == tokenizer.encode("a</s>b").ids


def test_sentencepiece_is_made_of_its_scores() -> None:
    tokenizer = sentencepiece()
    metadata, notes = metadata_of(tokenizer)
    assert notes == []
    assert metadata["tokenizer.ggml.model"] == "llama"
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    assert types[tokens.index("<0x0A>")] == 6
    assert types[0] == 2
    del metadata[HUGGINGFACE_JSON]
    made = tokenizer_json_of({**metadata, "tokenizer.ggml.scores": np.array(metadata["tokenizer.ggml.scores"])})
    assert made is not None
    other = Tokenizer.from_str(made)
    for text in (TEXT.split("\n")[0], "naïve ☃ café"):
        assert other.encode(text).ids == tokenizer.encode(text).ids
        assert other.decode(other.encode(text).ids) == text


def test_what_llama_cpp_cannot_split_is_said() -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    metadata, notes = tokenizer_metadata(tokenizer.to_str(), random_description())
    assert metadata["tokenizer.ggml.model"] == "no_vocab"
    assert "only token ids: tokenizer model WordLevel" in notes[0]
    assert tokenizer_json_of(metadata) == tokenizer.to_str()
    assert tokenizer_metadata(None, random_description())[0] == {"tokenizer.ggml.model": "no_vocab"}


def test_lists_that_do_not_fit_are_refused() -> None:
    metadata, _ = metadata_of(byte_level())
    del metadata[HUGGINGFACE_JSON]
    with pytest.raises(FormatError, match="tokens have 2 types"):
        tokenizer_json_of({**metadata, "tokenizer.ggml.token_type": [1, 1]})
    other, _ = metadata_of(sentencepiece())
    del other[HUGGINGFACE_JSON]
    with pytest.raises(FormatError, match="tokens have 1 scores"):
        tokenizer_json_of({**other, "tokenizer.ggml.scores": [0.0]})
    assert tokenizer_json_of({**metadata, "tokenizer.ggml.pre": "unheard-of"}) is None
    assert tokenizer_json_of({}) is None
