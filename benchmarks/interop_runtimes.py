"""The programs that interop.py asks: each takes a form of a model and texts, and gives `Outputs`.

Shapes: S texts, T tokens, N new tokens, V vocabulary. New tokens follow the first half of each text, greedily.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from interop_wasm import answers, chromium
from onebit.engine import Model
from onebit.formats.convert import sizes_of
from onebit.formats.web_folder import MODEL_NAME

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Outputs:
    """What a runtime gave: logits [S, T, V], greedy tokens [S, N], bytes of its file."""

    logits: np.ndarray
    greedy: np.ndarray
    file_bytes: int


def engine(path: Path, texts_ST: np.ndarray, new_tokens: int, kv: str) -> Outputs:
    """The native engine; `kv`: how keys and values are kept, "default" as users have it."""
    model = Model(path, threads=1)
    logits, greedy = [], []
    for text_T in texts_ST:
        logits.append(model.logits(text_T, kv=kv))
        session = model.session(kv=kv)
        last_V = session.prefill([int(token) for token in text_T[: len(text_T) // 2]])
        ids: list[int] = []
        while len(ids) < new_tokens:
            ids.append(int(last_V.argmax()))
            last_V = session.decode(ids[-1])
        greedy.append(ids)
    ids_SN = np.array(greedy, np.int32).reshape(len(texts_ST), new_tokens)
    return Outputs(np.stack(logits), ids_SN, path.stat().st_size)


def transformers(folder: Path, texts_ST: np.ndarray, new_tokens: int) -> Outputs:
    """Stock transformers: from_pretrained and generate."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    ids_ST = torch.from_numpy(texts_ST.astype(np.int64))
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):  # its layers compile themselves otherwise
        logits = np.concatenate([model(row_T[None]).logits.float().numpy() for row_T in ids_ST])
        if not new_tokens:
            return Outputs(logits, np.zeros((len(texts_ST), 0), np.int32), sizes_of(folder))
        half = texts_ST.shape[1] // 2
        prompt = ids_ST[:, :half]
        greedy = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            eos_token_id=None,
            pad_token_id=0,
        )
    return Outputs(logits, greedy[:, half:].numpy(), sizes_of(folder))


def wasm(folder: Path, texts_ST: np.ndarray, new_tokens: int, variant: str) -> Outputs:
    """The model of a web folder, in headless Chromium."""
    path = folder / MODEL_NAME
    return Outputs(*answers(path, variant, texts_ST, new_tokens), path.stat().st_size)


def chromium_version() -> str:
    with chromium({}) as page:
        return str(page.context.browser.version)


def llama_cpp(path: Path, texts_ST: np.ndarray, new_tokens: int, python: str) -> Outputs:
    with tempfile.TemporaryDirectory() as folder:
        ids, out = Path(folder) / "ids.npy", Path(folder) / "out.npz"
        np.save(ids, texts_ST)
        command = [python, str(HERE / "interop_llama.py"), str(path), str(ids), str(new_tokens), str(out)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode:
            sys.exit(f"llama.cpp: {(run.stderr or run.stdout).strip()[-500:]}")
        with np.load(out) as found:
            return Outputs(found["logits"], found["greedy"], path.stat().st_size)


def llama_tokens(path: Path, text: str, python: str) -> list[int]:
    """The tokens that llama.cpp makes of a text with the tokenizer in a GGUF file."""
    code = "import sys, json, llama_cpp\n" + (
        "model = llama_cpp.Llama(sys.argv[1], vocab_only=True, verbose=False)\n"
        "print(json.dumps(model.tokenize(sys.stdin.buffer.read(), add_bos=False, special=False)))"
    )
    run = subprocess.run([python, "-c", code, str(path)], input=text.encode(), capture_output=True, check=True)
    ids: list[int] = json.loads(run.stdout)
    return ids


def llama_version(python: str) -> str:
    code = "import llama_cpp; print(llama_cpp.__version__)"
    return "llama-cpp-python " + subprocess.check_output([python, "-c", code], text=True).strip()
