"""What compile_tokenizer refuses, and what the C side refuses of damaged TOKBIN sections."""

from __future__ import annotations

import ctypes
import json
import random
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from onebit.errors import FormatError
from onebit.formats.tokenizer_binary import compile_tokenizer

from .conftest import FAMILIES, CTokenizer, tokenizer_of


def described(family: str = "gpt2", **changes: Any) -> str:
    description = json.loads(tokenizer_of(family).to_str())
    model = changes.pop("model", {})
    description["model"].update(model)
    description.update(changes)
    return json.dumps(description)


def step(name: str, **parameters: Any) -> dict[str, Any]:
    return {"type": name, **parameters}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "not JSON"),
        ("[]", "no 'model'"),
        (Tokenizer(models.WordPiece({"a": 0}, unk_token="a")).to_str(), "WordPiece"),
        (Tokenizer(models.Unigram([("a", 0.0)])).to_str(), "Unigram"),
        (Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).to_str(), "WordLevel"),
        (Tokenizer(models.BPE()).to_str(), "neither ByteLevel nor Metaspace"),
    ],
)
def test_other_models_are_refused_by_name(text: str, named: str) -> None:
    with pytest.raises(FormatError, match=named):
        compile_tokenizer(text)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"normalizer": step("NFKC")}, "normaliser NFKC"),
        ({"normalizer": step("Lowercase")}, "normaliser Lowercase"),
        ({"normalizer": step("Prepend", prepend="\u2581")}, "Prepend without Replace"),
        ({"pre_tokenizer": step("Whitespace")}, "pre-tokenizer Whitespace"),
        ({"pre_tokenizer": step("Sequence", pretokenizers=[
            step("Split", pattern={"Regex": r"\w+"}, behavior="Isolated", invert=False),
            step("ByteLevel", add_prefix_space=False, use_regex=False)])}, r"Split.*\\w\+"),
        ({"post_processor": step("RobertaProcessing", sep=["a", 1], cls=["b", 2])}, "post-processor RobertaProcessing"),
        ({"decoder": step("WordPiece", prefix="##", cleanup=True)}, "decoder .*WordPiece"),
        ({"model": {"dropout": 0.1}}, "dropout"),
        ({"model": {"end_of_word_suffix": "</w>"}}, "end_of_word_suffix"),
        ({"model": {"merges": ["zz qq"]}}, "merge 0 needs the token"),
        ({"model": {"vocab": {"a": -1}, "merges": []}}, "ids must lie"),
        ({"model": {"unk_token": "nowhere"}}, "unk_token"),
        ({"model": {"vocab": 3}}, "damaged"),
        ({"added_tokens": [{"id": 1, "content": "x", "single_word": True}]}, "single_word"),
        ({"added_tokens": [{"id": 1, "content": "x" * 300}]}, "300 bytes"),
    ],
)  # fmt: skip
def test_unsupported_steps_are_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(FormatError, match=named):
        compile_tokenizer(described(**changes))


def test_nfc_is_for_byte_level_only() -> None:
    with pytest.raises(FormatError, match="NFC normaliser in a SentencePiece"):
        compile_tokenizer(described("llama2", normalizer=step("Sequence", normalizers=[
            step("NFC"), step("Replace", pattern={"String": " "}, content="\u2581")])))  # fmt: skip


def test_merges_may_be_strings_or_pairs() -> None:
    merges = json.loads(tokenizer_of("gpt2").to_str())["model"]["merges"]
    pairs = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in merges]
    strings = [" ".join(pair) for pair in pairs]
    sections = [compile_tokenizer(described(model={"merges": merges})) for merges in (pairs, strings)]
    assert sections[0] == sections[1]


def test_the_header_is_as_documented() -> None:
    """Golden: the first 72 bytes of a two-byte alphabet, one merge and one added token, written out by hand."""
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_special_tokens(["<e>"])
    section = compile_tokenizer(tokenizer.to_str())
    words = [int.from_bytes(section[i : i + 4], "little") for i in range(0, 128, 4)]
    assert section[:4] == b"TOKB"
    assert words[1:18] == [1, len(section), 0, 1, 1, 0, 0, 0xFFFFFFFF, 4, 1, 0, 0, 1, 1, 0, 0, 10]
    assert section[words[28] : words[28] + 10] == b"abab<e><e>"
    assert section[words[21] : words[21] + 12] == bytes([1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0])


@pytest.mark.parametrize("family", ["llama3", "llama2"])
def test_damaged_sections_are_refused_or_harmless(library: ctypes.CDLL, family: str) -> None:
    """Every u32 of header and tables set to hostile values: an error, or a tokenizer that stays within bounds.

    The bounds themselves are checked under AddressSanitizer by engine/tests/fuzz.
    """
    section = compile_tokenizer(tokenizer_of(family).to_str())
    rng = random.Random(family)
    refused = 0
    for place in [*range(0, 128, 4), *(rng.randrange(32, len(section) // 4) * 4 for _ in range(300))]:
        for value in (0xFFFFFFFF, 0x7FFFFFFF, len(section), rng.getrandbits(32)):
            damaged = section[:place] + value.to_bytes(4, "little") + section[place + 4 :]
            try:
                ours = CTokenizer(library, damaged)
            except ValueError:
                refused += 1
                continue
            ids = ours.encode("def f(x):\n    return 'é 123' <think>")
            assert all(token < ours.handle.header[9] for token in ids)
            ours.decode(ids)
    assert refused > 300


@pytest.mark.parametrize("family", FAMILIES)
def test_truncated_sections_are_refused(library: ctypes.CDLL, family: str) -> None:
    section = compile_tokenizer(tokenizer_of(family).to_str())
    for size in (0, 1, 127, 128, 129, len(section) // 2, len(section) - 1):
        with pytest.raises(ValueError, match=r"truncated"):
            CTokenizer(library, section[:size])
