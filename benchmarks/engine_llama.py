"""Speed of a GGUF file in llama.cpp; run by engine.py with a Python that has llama-cpp-python. Prints JSON lines.

python benchmarks/engine_llama.py model.gguf THREADS NEW_TOKENS PROMPT_LENGTH...

What llama-bench does: tokens of no meaning, decode from an empty context, each prompt in micro-batches of 512.
"""

from __future__ import annotations

import ctypes
import json
import random
import sys
import time

import llama_cpp as lc


def forward(context: lc.llama_context_p, tokens: list[int]) -> None:
    array = (lc.llama_token * len(tokens))(*tokens)
    if lc.llama_decode(context, lc.llama_batch_get_one(array, len(tokens))):
        sys.exit("llama_decode failed")
    lc.llama_synchronize(context)


def main() -> None:
    path, threads, new_tokens, *lengths = sys.argv[1], *map(int, sys.argv[2:])
    quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
    lc.llama_log_set(quiet, None)
    lc.llama_backend_init()
    model = lc.llama_model_load_from_file(path.encode(), lc.llama_model_default_params())
    options = lc.llama_context_default_params()
    options.n_ctx = max([*lengths, new_tokens]) + 64
    options.n_batch = max([*lengths, 512])
    options.n_threads = options.n_threads_batch = threads
    context = lc.llama_init_from_model(model, options)
    if not context:
        sys.exit(f"llama.cpp cannot load {path}")
    memory = lc.llama_get_memory(context)
    vocab = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(model))
    ids = [random.Random(0).randrange(vocab) for _ in range(options.n_ctx)]
    forward(context, ids[:4])
    lc.llama_memory_clear(memory, True)
    forward(context, ids[:1])
    started = time.perf_counter()
    for token in ids[1 : new_tokens + 1]:
        forward(context, [token])
    print(json.dumps({"what": "decode", "tokens": new_tokens, "rate": new_tokens / (time.perf_counter() - started)}))
    for length in lengths:
        lc.llama_memory_clear(memory, True)
        started = time.perf_counter()
        forward(context, ids[:length])
        rate = length / (time.perf_counter() - started)
        print(json.dumps({"what": "prefill", "tokens": length, "rate": rate}), flush=True)


if __name__ == "__main__":
    main()
