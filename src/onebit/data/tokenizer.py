"""Byte-level BPE: train one on a text source, or open one that exists, and write it as transformers expects it.

Byte-level, because every text then has tokens (no unknown) and the round trip is exact. The split is GPT-2's, which the
C engine's tokenizer speaks too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from onebit.errors import ConfigError, DataError

__all__ = ["END_OF_TEXT", "MIN_VOCAB_SIZE", "TextTokenizer", "load_tokenizer", "train_tokenizer"]

END_OF_TEXT = "<|endoftext|>"
MIN_VOCAB_SIZE = 257  # the 256 bytes and the end of a document
_KNOWN_ENDS = (END_OF_TEXT, "</s>", "<|end_of_text|>", "<eos>", "<|im_end|>", "[SEP]")


@dataclass(frozen=True, kw_only=True)
class TextTokenizer:
    """A `tokenizers.Tokenizer` and the id that ends a document."""

    tokenizer: Any
    eos_token: str
    eos_token_id: int

    @property
    def vocab_size(self) -> int:
        """One more than the largest id, added tokens included."""
        return int(max(self.tokenizer.get_vocab(with_added_tokens=True).values())) + 1

    @property
    def json(self) -> str:
        """The tokenizer in the `tokenizers` JSON form."""
        return str(self.tokenizer.to_str())

    @property
    def sha256(self) -> str:
        """Hash of the JSON form: what the manifest and the caches call this tokenizer."""
        return hashlib.sha256(self.json.encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, so that AutoTokenizer opens the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": self.eos_token,
            "eos_token": self.eos_token,
            "pad_token": self.eos_token,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 1_000_000_000,
        }
        (folder / "tokenizer.json").write_text(self.json, encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def train_tokenizer(texts: Iterable[str], vocab_size: int, *, show_progress: bool = False) -> TextTokenizer:
    """Train a byte-level BPE of at most `vocab_size` tokens; a short text may give fewer.

    Raises:
        ConfigError: `vocab_size` has no room for the 256 bytes and the end of a document.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise ConfigError(f"--vocab-size is {vocab_size}; byte-level BPE needs at least {MIN_VOCAB_SIZE}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=show_progress,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return _with_end(tokenizer, END_OF_TEXT)


def load_tokenizer(path: Path) -> TextTokenizer:
    """Open a tokenizer.json, or a folder that holds one (a Hugging Face model folder).

    The end of a document is the folder's `eos_token`, else the first usual name in the vocabulary.

    Raises:
        DataError: no such file, not a tokenizer, or no token that ends a document.
    """
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"--tokenizer: no tokenizer at '{path}'; give a tokenizer.json or a folder that holds one")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the Rust side raises plain Exception
        raise DataError(f"--tokenizer: '{file}' is not a tokenizer: {str(error).splitlines()[0]}") from None
    for name in (_configured_end(file.parent / "tokenizer_config.json"), *_KNOWN_ENDS):
        if name is not None and tokenizer.token_to_id(name) is not None:
            return _with_end(tokenizer, name)
    raise DataError(f"--tokenizer: '{file}' has no token that ends a document; looked for {', '.join(_KNOWN_ENDS)}")


def _with_end(tokenizer: Any, name: str) -> TextTokenizer:
    return TextTokenizer(tokenizer=tokenizer, eos_token=name, eos_token_id=int(tokenizer.token_to_id(name)))


def _configured_end(file: Path) -> str | None:
    try:
        name = json.loads(file.read_text(encoding="utf-8")).get("eos_token")
    except (OSError, ValueError, AttributeError):
        return None
    if isinstance(name, dict):
        name = name.get("content")
    return name if isinstance(name, str) else None
