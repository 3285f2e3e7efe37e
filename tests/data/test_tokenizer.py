"""The byte-level BPE: exact round trip of any text, the same tokenizer twice, both written forms open again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onebit.data import END_OF_TEXT, TextTokenizer, load_tokenizer, train_tokenizer
from onebit.data.stdlib_corpus import stdlib_files
from onebit.errors import ConfigError, DataError

TEXTS = [path.read_text(encoding="utf-8") for name, path in stdlib_files() if name.startswith("json/")]
TOKENIZER = train_tokenizer(TEXTS, 600)


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=80))
def test_every_text_comes_back(text: str) -> None:
    ids = TOKENIZER.tokenizer.encode(text, add_special_tokens=False).ids
    assert TOKENIZER.tokenizer.decode(ids, skip_special_tokens=False) == text


def test_training_is_repeatable_and_sized() -> None:
    assert train_tokenizer(TEXTS, 600).json == TOKENIZER.json
    assert TOKENIZER.vocab_size == 600
    assert TOKENIZER.eos_token_id == TOKENIZER.tokenizer.token_to_id(END_OF_TEXT) == 0


def test_a_short_text_gives_fewer_tokens() -> None:
    assert train_tokenizer(["ab"], 5000).vocab_size == 257


def test_too_small_a_vocabulary_is_refused() -> None:
    with pytest.raises(ConfigError, match="--vocab-size is 100"):
        train_tokenizer(TEXTS, 100)


def test_saved_folder_opens_here_and_in_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    TOKENIZER.save(tmp_path)
    assert load_tokenizer(tmp_path).json == TOKENIZER.json
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "def größe(x):\n\treturn  x"
    assert theirs(text)["input_ids"] == TOKENIZER.tokenizer.encode(text).ids
    assert theirs.eos_token_id == TOKENIZER.eos_token_id


def test_the_configured_end_wins(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "a"}}))
    loaded: TextTokenizer = load_tokenizer(tmp_path)
    assert loaded.eos_token == "a"


@pytest.mark.parametrize("content", [None, "{", '{"version": "1.0"}'])
def test_what_is_no_tokenizer_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(DataError, match="--tokenizer") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match="no token that ends a document"):
        load_tokenizer(tmp_path)
