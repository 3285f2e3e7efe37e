"""onebit-run as CMake builds it, and model files with a tokenizer and a chat template inside."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from onebit.formats import onebit_file
from onebit.formats.chat_strings import ChatStrings
from onebit.formats.random_model import random_description, random_file
from onebit.formats.tokenizer_binary import compile_tokenizer

CHAT = ChatStrings(
    opening="", system_prefix="<|im_start|>system\n", system_suffix="<|im_end|>\n", user_prefix="<|im_start|>user\n",
    user_suffix="<|im_end|>\n", assistant_prefix="<|im_start|>assistant\n", assistant_suffix="<|im_end|>\n",
    generation_prefix="<|im_start|>assistant\n",
)  # fmt: skip


@pytest.fixture(scope="session")
def program(native_build: Path) -> Path:
    """onebit-run, up to date."""
    return native_build / "onebit-run"


@pytest.fixture(scope="session")
def run(program: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def call(*arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
        command = [program, *map(str, arguments)]
        done = subprocess.run(command, input=stdin.encode(), capture_output=True, timeout=60)
        return subprocess.CompletedProcess(command, done.returncode, *(
            raw.decode("utf-8", errors="replace") for raw in (done.stdout, done.stderr)))  # fmt: skip

    return call


def byte_level() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("\u0120", "the"), ("i", "n"), ("\u0120", "in"), ("\u00c3", "\u00a9")]
    vocab = {token: i for i, token in enumerate([*alphabet, *("".join(merge) for merge in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return tokenizer


def sentencepiece() -> Tokenizer:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"\u2581thein", "th", "the", "in"]
    model = models.BPE({piece: i for i, piece in enumerate(pieces)}, [("t", "h"), ("th", "e"), ("i", "n")],
                       unk_token="<unk>", byte_fallback=True)  # fmt: skip
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    """``make_model(kind, chat=..., **description)``: a random model; kind is "byte_level" or "sentencepiece"."""

    def make(kind: str = "byte_level", chat: bool = True, **fields: Any) -> Path:
        tokenizer = byte_level() if kind == "byte_level" else sentencepiece()
        description = random_description(vocab_size=tokenizer.get_vocab_size(), **({"bos": None, "eos": None} | fields))
        file = random_file(
            description, tokenizer_json=tokenizer.to_str(), tokenizer_binary=compile_tokenizer(tokenizer.to_str()),
            chat_strings=CHAT if chat else None, seed=3,
        )  # fmt: skip
        path = tmp_path / f"{kind}.1bit"
        onebit_file.write(path, file)
        return path

    return make
