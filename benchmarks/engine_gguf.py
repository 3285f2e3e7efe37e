"""Random-weight GGUF files for the peers of the engine benchmark; run by engine.py with a Python that has gguf.

python benchmarks/engine_gguf.py '{"hidden_size": ...}' TQ2_0|I2_S out.gguf

The body is TQ2_0 (llama.cpp) or I2_S (bitnet.cpp: one float32 scale a tensor, type 36, which the gguf package does not
know), embedding and head are one Q6_K tensor. Bytes are random but valid: speed does not depend on the values.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np

I2_S = 36
Q6_K = gguf.GGMLQuantizationType.Q6_K
BLOCK = 256
POOL = 1 << 16  # blocks

Tensor = tuple[str, tuple[int, ...], int, np.ndarray]  # name, shape as numpy has it, type, bytes


def pool(rng: np.random.Generator) -> dict[int, np.ndarray]:
    """Valid blocks of 256 weights of each type, [POOL, bytes of a block]."""
    digits = np.arange(81)[:, None] // 3 ** np.arange(4) % 3
    codes = (digits << 2 * np.arange(4)).sum(1).astype(np.uint8)  # bytes whose four pairs are 0, 1 or 2
    ternary = rng.choice(codes, (POOL, 64))
    scale = np.frombuffer(np.float16(0.02).tobytes(), np.uint8)
    six = rng.integers(0, 256, (POOL, 210)).astype(np.uint8)
    six[:, 192:208] = 1  # the scales of 16 weights
    six[:, 208:] = np.frombuffer(np.float16(0.05).tobytes(), np.uint8)
    tq2_0 = np.concatenate([ternary, np.broadcast_to(scale, (POOL, 2))], axis=1)
    return {gguf.GGMLQuantizationType.TQ2_0: tq2_0, I2_S: ternary, Q6_K: six}


def cut(blocks: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` blocks, flat, from random places of the pool."""
    parts, left = [], count
    while left:
        size = min(left, POOL // 2)
        begin = int(rng.integers(0, POOL - size))
        parts.append(blocks[begin : begin + size].reshape(-1))
        left -= size
    return np.concatenate(parts)


def tensors(shape: dict[str, Any], body: int, rng: np.random.Generator) -> Iterator[Tensor]:
    """Every tensor of the model, one at a time."""
    pools = pool(rng)
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    q, kv = (shape[name] * shape["head_dim"] for name in ("num_heads", "num_key_value_heads"))

    def matrix(name: str, rows: int, cols: int, kind: int = body) -> Tensor:
        data = cut(pools[kind], rows * cols // BLOCK, rng)
        if kind == I2_S:
            tail = np.zeros(8, np.float32)
            tail[0] = 0.02
            data = np.concatenate([data, tail.view(np.uint8)])
        return f"{name}.weight", (rows, cols), kind, data

    def norm(name: str, size: int) -> Tensor:
        data = np.ones(size, np.float32)
        return f"{name}.weight", (size,), gguf.GGMLQuantizationType.F32, data.view(np.uint8)

    yield matrix("token_embd", shape["vocab_size"], hidden, Q6_K)
    yield norm("output_norm", hidden)
    for i in range(shape["num_layers"]):
        yield norm(f"blk.{i}.attn_norm", hidden)
        yield norm(f"blk.{i}.ffn_norm", hidden)
        if shape["sub_norm"]:
            yield norm(f"blk.{i}.attn_sub_norm", q)
            yield norm(f"blk.{i}.ffn_sub_norm", inner)
        yield matrix(f"blk.{i}.attn_q", q, hidden)
        yield matrix(f"blk.{i}.attn_k", kv, hidden)
        yield matrix(f"blk.{i}.attn_v", kv, hidden)
        yield matrix(f"blk.{i}.attn_output", hidden, q)
        yield matrix(f"blk.{i}.ffn_gate", inner, hidden)
        yield matrix(f"blk.{i}.ffn_up", inner, hidden)
        yield matrix(f"blk.{i}.ffn_down", hidden, inner)


def describe(writer: gguf.GGUFWriter, shape: dict[str, Any]) -> None:
    """Architecture and a tokenizer of the right size: control and byte tokens, then words of no meaning."""
    writer.add_vocab_size(shape["vocab_size"])
    writer.add_context_length(shape["max_seq_len"])
    writer.add_embedding_length(shape["hidden_size"])
    writer.add_block_count(shape["num_layers"])
    writer.add_feed_forward_length(shape["intermediate_size"])
    writer.add_head_count(shape["num_heads"])
    writer.add_head_count_kv(shape["num_key_value_heads"])
    writer.add_rope_dimension_count(shape["head_dim"])
    writer.add_layer_norm_rms_eps(shape["norm_eps"])
    writer.add_rope_freq_base(shape["rope_theta"])
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    words = [f"word{i}" for i in range(shape["vocab_size"] - 259)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", *bytes_, *words])
    writer.add_token_scores([0.0] * 259 + [-float(i) for i in range(len(words))])
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * len(words))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def write(path: Path, shape: dict[str, Any], body: str) -> None:
    """Two passes over the same random numbers: the table first, then the bytes, so that no model is held in memory."""
    kind = I2_S if body == "I2_S" else gguf.GGMLQuantizationType.TQ2_0
    architecture = "llama" if not shape["sub_norm"] else "bitnet-b1.58" if body == "I2_S" else "bitnet"
    writer = gguf.GGUFWriter(path, architecture)
    describe(writer, shape)
    for name, dims, dtype, data in tensors(shape, kind, np.random.default_rng(0)):
        writer.add_tensor_info(name, dims, np.dtype(np.int8), data.nbytes, raw_dtype=dtype)  # type: ignore[arg-type]
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, _, _, data in tensors(shape, kind, np.random.default_rng(0)):
        writer.write_tensor_data(data)
    writer.close()


if __name__ == "__main__":
    write(Path(sys.argv[3]), json.loads(sys.argv[1]), sys.argv[2])
