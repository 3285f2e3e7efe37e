"""One trained ternary model and one binary, written in every form and run by the program that the form is for.

    python benchmarks/interop.py --data TEXT --llama-python PYTHON     trains both models first: about 8 minutes each
    python benchmarks/interop.py --data TEXT --work DIR ...            keeps the models in DIR, and trains only once

The models read 64,000 characters of TEXT until they know them by heart. The reference is the checkpoint itself, in
torch. Each runtime gives its logits on texts from there (teacher-forced) and its own greedy continuation of their first
halves, and its logits on text that no model has read:

- engine: the `.1bit` file; transformers: the packed folder, with each linear class, in stock transformers;
  transformers_bf16: codes times scale; llama_cpp: the GGUF file, once for each type that llama.cpp runs.
- wasm, wasm_plain: the web folder's model in headless Chromium, by the build that a page takes there (relaxed SIMD) and
  by the other; asked for by --chromium. How fast it is there is interop_wasm.py's question.
- Another runtime is a function in interop_runtimes.py that gives `Outputs`, added in `forms`.

--llama-python: a Python that has llama-cpp-python. Figures, for each runtime and model: top1_agreement (share of
positions with the reference's first choice), greedy_equal (share of continuations that equal the reference's, or part
first where its two best logits are nearer than NEAR_TIE of the largest), greedy_identical, unseen_top1_agreement,
logits_median and logits_p99 (differences as shares of the largest logit, unseen text), file_mb. tokens_equal_llama_cpp:
whether its tokenizer gives our tokens. WebAssembly is held to the native engine with the same keys and values (float16;
the row "engine" has float32, as the reference): greedy_equal is the share of continuations that are exactly the native
engine's, logits_equal whether all logits are, to the bit.

Shapes: S texts, T tokens, N new tokens, V vocabulary.
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from interop_runtimes import (
    Outputs,
    chromium_version,
    engine,
    llama_cpp,
    llama_tokens,
    llama_version,
    transformers,
    wasm,
)
from onebit.eval.forms import TorchForm, open_checkpoint
from onebit.formats.checkpoint import from_checkpoint
from onebit.formats.convert import write_any
from onebit.formats.onebit_file import OneBitFile
from onebit.formats.web_folder import MODEL_NAME
from onebit.train import TrainSettings, train

TEXTS, LENGTH, NEW_TOKENS = 16, 256, 64
NEAR_TIE = 0.01
# Rounding turns a choice where two are nearly as good. A small model has such near ties on a fiftieth of unseen text;
# of text that it knows by heart it is sure, so that what is left there are mistakes. Both are figures.
KNOWN_CHARACTERS, UNSEEN_CHARACTERS = 64_000, 24_000
VOCABULARY = 1024
MODELS = {"ternary": "absmean", "binary": "binary"}
WASM = {"wasm": "relaxed", "wasm_plain": "plain"}  # runtime -> build of the engine
GGUF_TYPES = {"ternary": ("TQ2_0", "TQ1_0", "Q2_0"), "binary": ("Q1_0", "Q2_0")}
# Widths that every type's blocks divide.
SHAPE: dict[str, Any] = {
    "hidden_size": 256,
    "num_layers": 4,
    "num_heads": 4,
    "intermediate_size": 768,
    "max_seq_len": 256,
    "tie_word_embeddings": True,
}


def texts(data: str, work: Path) -> tuple[Path, Path]:
    """Two files of text, to be trained on and not, cut from the beginning of `data`; made once."""
    from onebit.data import open_source

    known, unseen = work / "known.txt", work / "unseen.txt"
    if not (known.exists() and unseen.exists()):
        text = ""
        for piece in open_source(data, streaming=True).pieces():
            text += piece.text + "\n"
            if len(text) >= KNOWN_CHARACTERS + UNSEEN_CHARACTERS:
                break
        known.write_text(text[:KNOWN_CHARACTERS], encoding="utf-8")
        unseen.write_text(text[KNOWN_CHARACTERS:][:UNSEEN_CHARACTERS], encoding="utf-8")
    return known, unseen


def trained(model: str, known: Path, unseen: Path, folder: Path, steps: int) -> Path:
    """The folder of a trained model; made once."""
    settings = TrainSettings(
        data=str(known),
        val_data=str(unseen),
        output_dir=folder,
        preset="llama",
        overrides={**SHAPE, "quantizer": MODELS[model]},
        vocab_size=VOCABULARY,
        optimizer="muon",
        lr=0.02,
        batch_size=4,
        max_steps=steps,
        save_every=100,
        keep_checkpoints=1,
        log_every=50,
        threads=1,
    )
    if not train(settings).complete:
        sys.exit("stopped; the same command goes on from there")
    return folder


def tokens_of(folder: Path, text: Path) -> np.ndarray:
    """Token ids [S, T] of the beginning of a text."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = np.array(tokenizer.encode(text.read_text(encoding="utf-8")).ids, np.int32)
    if len(ids) < TEXTS * LENGTH:
        sys.exit(f"{text} has {len(ids)} tokens, {TEXTS * LENGTH} are needed; give more text")
    return ids[: TEXTS * LENGTH].reshape(TEXTS, LENGTH)


def forms(
    file: OneBitFile, model: str, work: Path, llama_python: str | None, chromium: bool
) -> dict[str, Callable[..., Outputs]]:
    """Runtime -> function of texts and new tokens; the file of each is written here. Another runtime is added here."""
    made: dict[str, Callable[..., Outputs]] = {}

    def add(name: str, path: Path, form: str, run: Callable[..., Outputs], **options: Any) -> None:
        if not path.exists():
            print(write_any(path, file, form, **options).text, flush=True)
        made[name] = lambda texts_ST, new_tokens: run(path, texts_ST, new_tokens)

    add("engine", work / f"{model}.1bit", "1bit", functools.partial(engine, kv="float32"))
    for linear_class in ("bitlinear", "autobitlinear"):
        name = "transformers" if linear_class == "bitlinear" else "transformers_auto"
        add(name, work / f"{model}-{linear_class}", "hf", transformers, linear_class=linear_class)
    add("transformers_bf16", work / f"{model}-bf16", "bf16", transformers)
    if chromium:
        for name, variant in WASM.items():
            add(name, page_folder(work, model), "web", functools.partial(wasm, variant=variant))
    if llama_python is not None:
        for i, kind in enumerate(GGUF_TYPES[model]):
            name = "llama_cpp" if i == 0 else f"llama_cpp_{kind.lower()}"
            path = work / f"{model}-{kind}.gguf"
            add(name, path, "gguf", functools.partial(llama_cpp, python=llama_python), gguf_type=kind)
    return made


def page_folder(work: Path, model: str) -> Path:
    return work / f"{model}-page"


def agreement(expected_STV: np.ndarray, found_STV: np.ndarray) -> float:
    """The share of positions with the same first choice."""
    return float((found_STV.argmax(-1) == expected_STV.argmax(-1)).mean())


def greedy_figures(reference: TorchForm, largest: float, texts_ST: np.ndarray, found: Outputs) -> dict[str, float]:
    """How the greedy continuations compare with what the reference chooses along them."""
    identical, equal = 0, 0
    for text_T, greedy_N in zip(texts_ST, found.greedy, strict=True):
        prompt = text_T[: LENGTH // 2]
        logits_NV = reference.logits(np.concatenate([prompt, greedy_N]))[len(prompt) - 1 : -1]
        parted = np.flatnonzero(logits_NV.argmax(-1) != greedy_N)
        identical += not len(parted)
        if len(parted):
            at_V = logits_NV[parted[0]]
            equal += bool(at_V.max() - at_V[greedy_N[parted[0]]] < NEAR_TIE * largest)
        else:
            equal += 1
    return {"greedy_equal": equal / len(texts_ST), "greedy_identical": identical / len(texts_ST)}


def native_figures(path: Path, given: list[tuple[np.ndarray, Outputs]]) -> dict[str, float]:
    """How another build of the engine compares with the native one on the same file; given: texts and its answers."""
    same, equal = [], []
    for texts_ST, found in given:
        native = engine(path, texts_ST, found.greedy.shape[1], kv="default")
        same.append(np.array_equal(native.logits.view(np.int32), found.logits.view(np.int32)))
        if found.greedy.shape[1]:
            equal += list((native.greedy == found.greedy).all(1))
    return {"greedy_equal": float(np.mean(equal)), "logits_equal": float(all(same))}


def measure(
    model: str, folder: Path, work: Path, known: Path, unseen: Path, python: str | None, chromium: bool
) -> dict[str, float]:
    """All figures of one model; python: of llama.cpp."""
    known_ST, unseen_ST = tokens_of(folder, known), tokens_of(folder, unseen)
    reference = open_checkpoint(folder)
    known_STV, unseen_STV = (np.stack([reference.logits(text_T) for text_T in ids]) for ids in (known_ST, unseen_ST))
    largest = float(np.abs(unseen_STV).max())
    file = from_checkpoint(folder, embedding_level="trained")
    figures: dict[str, float] = {}
    for runtime, run in forms(file, model, work, python, chromium).items():
        told, other = run(known_ST, NEW_TOKENS), run(unseen_ST, 0)
        difference = np.abs(other.logits - unseen_STV) / largest
        found = {
            "top1_agreement": agreement(known_STV, told.logits),
            **greedy_figures(reference, float(np.abs(known_STV).max()), known_ST, told),
            "unseen_top1_agreement": agreement(unseen_STV, other.logits),
            "logits_median": float(np.median(difference)),
            "logits_p99": float(np.percentile(difference, 99)),
            "file_mb": told.file_bytes / 1e6,
        }
        if runtime in WASM:
            found |= native_figures(page_folder(work, model) / MODEL_NAME, [(known_ST, told), (unseen_ST, other)])
        figures |= {f"{name}_{runtime}_{model}": value for name, value in found.items()}
        print(f"{model:8} {runtime:18}", " ".join(f"{name} {value:.4g}" for name, value in found.items()), flush=True)
    if python is not None:
        from tokenizers import Tokenizer

        text = unseen.read_text(encoding="utf-8")
        ours = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
        theirs = llama_tokens(work / f"{model}-{GGUF_TYPES[model][0]}.gguf", text, python)
        figures[f"tokens_equal_llama_cpp_{model}"] = float(ours == theirs)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="stdlib", help="text to train on, as of onebit train")
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--work", type=Path, help="folder for the models and their forms [default: a temporary one]")
    parser.add_argument("--llama-python", help="a Python that has llama-cpp-python")
    parser.add_argument("--chromium", action="store_true", help="WebAssembly too, in headless Chromium")
    parser.add_argument("--only", nargs="*", choices=list(MODELS), help="one of the two models")
    parser.add_argument("--quick", action="store_true", help="no result file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        figures: dict[str, float] = {}
        known, unseen = texts(arguments.data, work)
        for model in arguments.only or MODELS:
            folder = trained(model, known, unseen, work / model, arguments.steps)
            figures |= measure(model, folder, work, known, unseen, arguments.llama_python, arguments.chromium)
    if not arguments.quick:
        from record import write_result

        sizes = {"texts": TEXTS, "length": LENGTH, "new_tokens": NEW_TOKENS, "near_tie": NEAR_TIE}
        config = {
            "shape": SHAPE,
            "data": Path(arguments.data).name,
            "steps": arguments.steps,
            **sizes,
            "types": GGUF_TYPES,
            "llama": llama_version(arguments.llama_python) if arguments.llama_python else None,
            "chromium": chromium_version() if arguments.chromium else None,
        }
        print(write_result("interop", config, figures))


if __name__ == "__main__":
    main()
