"""Logits and greedy tokens of a GGUF file in llama.cpp; run by interop.py with a Python that has llama-cpp-python.

python benchmarks/interop_llama.py model.gguf texts.npy NEW_TOKENS out.npz

texts.npy: int32 token ids [S, T]. out.npz: `logits` float32 [S, T, V] of each text from an empty context, `greedy`
int32 [S, NEW_TOKENS] continued from the first half of each text. The KV cache is float32, so that what differs is
llama.cpp's own rounding of activations.
"""

from __future__ import annotations

import ctypes
import sys

import llama_cpp as lc
import numpy as np

F32 = 0


def forward(context: lc.llama_context_p, ids: list[int], vocab: int) -> np.ndarray:
    """Logits [T, V] after each token."""
    batch = lc.llama_batch_init(len(ids), 0, 1)
    at = lc.llama_memory_seq_pos_max(lc.llama_get_memory(context), 0) + 1
    batch.n_tokens = len(ids)
    for i, token in enumerate(ids):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, at + i, 1, 1
        batch.seq_id[i][0] = 0
    if lc.llama_decode(context, batch):
        sys.exit("llama_decode failed")
    logits = np.stack([np.ctypeslib.as_array(lc.llama_get_logits_ith(context, i), (vocab,)) for i in range(len(ids))])
    lc.llama_batch_free(batch)
    return logits.copy()


def main() -> None:
    path, texts, new_tokens, out = sys.argv[1], np.load(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    messages: list[str] = []

    @ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
    def keep(level: int, text: bytes, _: object) -> None:
        messages.append(text.decode(errors="replace"))

    lc.llama_log_set(keep, None)
    lc.llama_backend_init()
    model = lc.llama_model_load_from_file(path.encode(), lc.llama_model_default_params())
    if not model:
        sys.exit("".join(messages[-6:]) or f"llama.cpp cannot load {path}")
    vocab = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(model))
    options = lc.llama_context_default_params()
    options.n_ctx = texts.shape[1] + new_tokens + 8
    options.n_batch = options.n_ubatch = texts.shape[1]
    options.n_threads = options.n_threads_batch = 1
    options.type_k = options.type_v = F32
    options.flash_attn_type = 0
    context = lc.llama_init_from_model(model, options)
    if not context:
        sys.exit("".join(messages[-6:]))
    logits, greedy = [], []
    for text in texts:
        lc.llama_memory_clear(lc.llama_get_memory(context), True)
        logits.append(forward(context, text.tolist(), vocab))
        lc.llama_memory_clear(lc.llama_get_memory(context), True)
        last = forward(context, text[: len(text) // 2].tolist(), vocab)[-1]
        ids: list[int] = []
        while len(ids) < new_tokens:
            ids.append(int(last.argmax()))
            last = forward(context, ids[-1:], vocab)[-1]
        greedy.append(ids)
    np.savez(out, logits=np.stack(logits), greedy=np.array(greedy, np.int32))


if __name__ == "__main__":
    main()
