"""Write small valid files for the fuzzers to damage: one model a layout and architecture, one tokenizer a family.

python engine/tests/fuzz/make_seeds.py FOLDER      makes FOLDER/model and FOLDER/tokenizer
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from onebit.formats import onebit_file
from onebit.formats.random_model import random_description, random_file
from onebit.formats.tokenizer_binary import compile_tokenizer
from onebit.formats.tokenizer_pipeline import SPLITS

SIZES: dict[str, Any] = {
    "vocab_size": 24, "hidden_size": 16, "num_layers": 1, "num_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
    "intermediate_size": 72, "max_seq_len": 8,
}  # fmt: skip
LAYOUTS = ["float32", "float16", "int8", "int4", "binary", "ternary", "ternary5", "binary_t16", "ternary_t16",
           "ternary5_t16"]  # fmt: skip
ARCHITECTURES: list[dict[str, Any]] = [
    {"norm": "layernorm", "mlp": "gelu", "position": "learned", "tied_head": False},
    {"norm": "rmsnorm", "mlp": "relu2_glu", "sub_norm": True},
    {"norm": "rmsnorm", "mlp": "swiglu", "qk_norm": True, "num_layers": 2},
    {"norm": "rmsnorm", "mlp": "relu2", "residual_scale": 0.5},
]
TEXT = " 'LL don't stop  <s>\r\n\n x\u0323\u0307 e\u0301\uac00 123456 \u2581the\u00a0\U0001f600<pad> "


def write_models(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = byte_level("qwen2").to_str()
    for index, layout in enumerate(LAYOUTS):
        for granularity in ("per_tensor", "per_row", "per_group"):
            description = random_description(**SIZES | ARCHITECTURES[index % len(ARCHITECTURES)])
            sections = {"tokenizer_binary": compile_tokenizer(tokenizer)} if granularity == "per_tensor" else {}
            file = random_file(
                description, layout=layout, granularity=granularity, group_size=64, biases=index % 3 == 0,
                activation=("int8", "sign", "none")[index % 3],
                embedding_layout=("float16", "int8", "ternary_t16")[index % 3],
                hadamard_block=8 if granularity == "per_row" else 1, seed=index, **sections,
            )  # fmt: skip
            onebit_file.write(folder / f"{layout}_{granularity}.1bit", file)


def byte_level(split: str) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("\u0120", "the"), ("l", "l"), ("1", "2"), ("\u0120", "\u0120")]
    vocab = {token: i for i, token in enumerate([*alphabet, *("".join(merge) for merge in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=split == "llama3"))
    pattern = {kind: text for text, kind in SPLITS.items()}.get({"llama3": 2, "qwen2": 3}.get(split, 0))
    before = [pre_tokenizers.Split(Regex(pattern), "isolated")] if pattern else []
    steps = [*before, pre_tokenizers.ByteLevel(add_prefix_space=split == "gpt2", use_regex=split == "gpt2")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    if split == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_special_tokens(["<s>", AddedToken("<pad>", lstrip=True, rstrip=True)])
    tokenizer.add_tokens([AddedToken("<pa", normalized=True)])
    return tokenizer


def sentencepiece(kind: str) -> Tokenizer:
    pieces = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"\u2581the", "th", "the", "\u2581the"]
    merges = [("t", "h"), ("th", "e"), ("\u2581", "the")]
    model = models.BPE({piece: i for i, piece in enumerate(pieces)}, merges, unk_token="<unk>", fuse_unk=True,
                       byte_fallback=kind != "unknown")  # fmt: skip
    tokenizer = Tokenizer(model)
    if kind == "metaspace":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        tokenizer.decoder = decoders.Metaspace()
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
        steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
        tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(["<s>", AddedToken("<pad>", lstrip=True)])
    return tokenizer


def write_tokenizers(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for family in ("gpt2", "llama3", "qwen2", "none", "metaspace", "llama2", "unknown"):
        make = sentencepiece if family in ("metaspace", "llama2", "unknown") else byte_level
        section = compile_tokenizer(make(family).to_str())
        (folder / family).write_bytes(len(section).to_bytes(4, "little") + section + TEXT.encode())


if __name__ == "__main__":
    write_models(Path(sys.argv[1]) / "model")
    write_tokenizers(Path(sys.argv[1]) / "tokenizer")
