"""The C tokenizer built for these tests, and small tokenizers of every supported family trained on Python sources.

The C files are compiled here by themselves, which proves that the tokenizer needs nothing of the engine but errors.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from onebit.formats.tokenizer_binary import compile_tokenizer
from onebit.formats.tokenizer_pipeline import SPLITS

ENGINE = Path(__file__).resolve().parents[2] / "engine"
SOURCES = ["ob_tokenizer", "ob_tokenizer_encode", "ob_tokenizer_merge", "ob_tokenizer_split", "ob_unicode",
           "ob_unicode_tables", "ob_error"]  # fmt: skip
REGEX = {"llama3": 2, "qwen2": 3}  # name -> value in SPLITS
SENTENCEPIECE = ["llama2", "metaspace", "mistral", "gemma", "unknown"]
BYTE_LEVEL = ["gpt2", "gpt2_prefix_space", "llama3", "qwen2", "digits", "no_regex"]
FAMILIES = [*BYTE_LEVEL, *SENTENCEPIECE]


class Error(ctypes.Structure):
    _fields_ = [("status", ctypes.c_int32), ("message", ctypes.c_char * 252)]


class Handle(ctypes.Structure):
    _fields_ = [("image", ctypes.c_void_p), ("header", ctypes.c_uint32 * 32)]


class CTokenizer:
    """onebit.h's tokenizer functions; each encode gets buffers of exactly the promised sizes."""

    def __init__(self, library: ctypes.CDLL, section: bytes) -> None:
        self.library, self.section, self.handle, error = library, section, Handle(), Error()
        for name in ("ob_tokenizer_arena_bytes", "ob_tokenizer_max_tokens", "ob_utf8_complete"):
            getattr(library, name).restype = ctypes.c_size_t
        library.ob_tokenizer_token.restype = ctypes.c_void_p
        library.ob_tokenizer_find.restype = ctypes.c_uint32
        status = library.ob_tokenizer_open(
            ctypes.byref(self.handle), section, ctypes.c_size_t(len(section)), ctypes.byref(error)
        )
        if status:
            raise ValueError(error.message.decode())

    def encode(self, text: str | bytes, special: bool = False) -> list[int]:
        data = text if isinstance(text, bytes) else text.encode("utf-8")
        library, handle, size = self.library, ctypes.byref(self.handle), ctypes.c_size_t(len(data))
        capacity = library.ob_tokenizer_max_tokens(handle, size)
        arena_bytes = library.ob_tokenizer_arena_bytes(handle, size)
        arena = (ctypes.c_uint64 * (arena_bytes // 8 + 1))()
        ids, count, error = (ctypes.c_uint32 * capacity)(), ctypes.c_size_t(), Error()
        status = library.ob_tokenizer_encode(
            handle, data, size, ctypes.c_uint32(special), ids, ctypes.c_size_t(capacity), ctypes.byref(count), arena,
            ctypes.c_size_t(arena_bytes), ctypes.byref(error),
        )  # fmt: skip
        assert status == 0, error.message
        return ids[: count.value]

    def token(self, token_id: int, first: bool = False) -> bytes:
        size = ctypes.c_size_t()
        start = self.library.ob_tokenizer_token(
            ctypes.byref(self.handle), ctypes.c_uint32(token_id), int(first), ctypes.byref(size)
        )
        return ctypes.string_at(start, size.value)

    def is_special(self, token_id: int) -> bool:
        return bool(self.library.ob_tokenizer_is_special(ctypes.byref(self.handle), ctypes.c_uint32(token_id)))

    def find(self, content: str) -> int:
        data = content.encode()
        return int(self.library.ob_tokenizer_find(ctypes.byref(self.handle), data, ctypes.c_size_t(len(data))))

    def decode(self, ids: list[int]) -> bytes:
        return b"".join(self.token(token_id, first=i == 0) for i, token_id in enumerate(ids))


@pytest.fixture(scope="session")
def library(compiled: Callable[..., Path]) -> ctypes.CDLL:
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    name = f"tokenizer{sysconfig.get_config_var('SHLIB_SUFFIX') or '.so'}"
    files = [str(ENGINE / "src" / f"{name}.c") for name in SOURCES]
    flags = ["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-ffreestanding"]
    command = [compiler, *flags, f"-I{ENGINE / 'include'}", *files, "-o"]
    folder = compiled("tokenizer", command, lambda made: subprocess.run([*command, str(made / name)], check=True))
    return ctypes.CDLL(str(folder / name))


def corpus() -> list[str]:
    folder = Path(sysconfig.get_paths()["stdlib"])
    return [(folder / name).read_text("utf-8") for name in ("argparse.py", "typing.py", "ast.py", "json/decoder.py")]


def extra_text() -> list[str]:
    """Every Unicode plane in small amounts, so that some merges join the bytes of characters outside ASCII."""
    return ["naïve café — “déjà vu” … ½ ①②③ 東京は日本の首都です。 Привет, мир! مرحبا 안녕하세요 👩‍👩‍👧‍👦 🇩🇪 x²≈𝒳" * 20]  # noqa: RUF001


def trained(family: str) -> Tokenizer:
    """A tokenizer of one family with some 1,400 tokens, in the shape the family's models publish."""
    sentencepiece = family in SENTENCEPIECE
    tokenizer = sentencepiece_parts(family) if sentencepiece else byte_level_parts(family)
    special = ["<unk>", "<s>", "</s>"] if sentencepiece else ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    if sentencepiece and family != "unknown":
        special += [f"<0x{byte:02X}>" for byte in range(256)]
    alphabet = list("▁abcdefghijklmnopqrstuvwxyz") if sentencepiece else pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1400, special_tokens=special, initial_alphabet=alphabet, show_progress=False, limit_alphabet=400
    )
    published = json.loads(tokenizer.to_str())
    if published["pre_tokenizer"] is None or family in (
        "no_regex",
        "mistral",
    ):  # one text is one word: learn from words
        by_words = pre_tokenizers.Split(Regex("[ ▁]*[^ ▁]+|[ ▁]+"), "isolated")
        last = [] if sentencepiece else [tokenizer.pre_tokenizer]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([by_words, *last])
    tokenizer.train_from_iterator([*corpus(), *extra_text()], trainer)
    description = json.loads(tokenizer.to_str())
    description["pre_tokenizer"] = published["pre_tokenizer"]
    # byte tokens are plain vocabulary in published tokenizers, not added tokens
    description["added_tokens"] = [t for t in description["added_tokens"] if not t["content"].startswith("<0x")]
    if family == "llama3":
        description["model"]["ignore_merges"] = True
        description["model"]["vocab"]["Ġignored"] = len(description["model"]["vocab"])  # reached by no merge
    tokenizer = Tokenizer.from_str(json.dumps(description))
    if family == "llama3":
        template = processors.TemplateProcessing("<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    if family == "llama2":
        around = [("<s>", 1), ("</s>", 2)]
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=around)
    add_tokens(tokenizer, family)
    return tokenizer


def byte_level_parts(family: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    use_regex = family in ("gpt2", "gpt2_prefix_space", "digits")
    steps = [pre_tokenizers.ByteLevel(add_prefix_space=family == "gpt2_prefix_space", use_regex=use_regex)]
    if family in REGEX:
        pattern = next(text for text, kind in SPLITS.items() if kind == REGEX[family])
        steps.insert(0, pre_tokenizers.Split(Regex(pattern), "isolated"))
    if family == "digits":
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    if family == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def sentencepiece_parts(family: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=family != "unknown", fuse_unk=True))
    if family == "mistral":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        tokenizer.decoder = decoders.Sequence(steps)
        return tokenizer
    if family == "metaspace":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
        tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
        return tokenizer
    prepend = [] if family == "gemma" else [normalizers.Prepend("▁")]
    tokenizer.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", "▁")])
    strip = [] if family == "gemma" else [decoders.Strip(" ", 1, 0)]
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def add_tokens(tokenizer: Tokenizer, family: str) -> None:
    """Added tokens that share beginnings, eat white space or are found after normalising."""
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("<thin", normalized=False)])
    if family not in ("llama2", "unknown"):
        tokenizer.add_tokens([AddedToken("<café>", normalized=True)])
    tokenizer.add_tokens([AddedToken("<pad>", normalized=False, lstrip=True, rstrip=True)])


@cache
def tokenizer_of(family: str) -> Tokenizer:
    return trained(family)


@pytest.fixture(scope="session")
def pair(library: ctypes.CDLL) -> Callable[[str], tuple[Tokenizer, CTokenizer]]:
    """family -> (the tokenizers library's, ours in C)."""

    @cache
    def build(family: str) -> tuple[Tokenizer, CTokenizer]:
        tokenizer = tokenizer_of(family)
        return tokenizer, CTokenizer(library, compile_tokenizer(tokenizer.to_str()))

    return build
