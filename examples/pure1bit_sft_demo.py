"""Pure 1-bit fine-tuning from an empty folder to answers of the engine: offline, on a CPU, in about a minute.

    python examples/pure1bit_sft_demo.py                       # into runs/pure1bit_demo
    python examples/pure1bit_sft_demo.py --steps 20 --output-dir DIR

A small GPT-2 with random weights and a tokenizer are made on the spot and trained by `onebit sft --pure` on a few
questions with answers, until it knows them by heart: codes and counters are all that there is of its layers' weights.
Then the script says what that takes in memory beside training on latents, exports the model to one .1bit file, and
asks the engine, which has no torch in it, the questions.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, set_seed

from onebit import Model
from onebit.data import END_OF_TEXT, train_tokenizer
from onebit.errors import OnebitError
from onebit.formats.checkpoint import from_checkpoint
from onebit.formats.onebit_file import write
from onebit.models.quiet import quiet_transformers
from onebit.train.memory import memory_of
from onebit.train.memory_model import outline_of
from onebit.train.metrics_log import read_metrics
from onebit.train.sft import sft
from onebit.train.sft_settings import SftSettings

CAPITALS = {
    "France": "Paris",
    "Italy": "Rome",
    "Japan": "Tokyo",
    "Kenya": "Nairobi",
    "Peru": "Lima",
    "Norway": "Oslo",
    "Cuba": "Havana",
    "Ghana": "Accra",
}
QUESTION, ANSWER = "What is the capital of {}?", " It is {}."
ROWS = [(QUESTION.format(country), ANSWER.format(capital)) for country, capital in CAPITALS.items()]


def make_base(folder: Path) -> None:
    """A GPT-2 of random weights that transformers can load, with a tokenizer."""
    tokenizer = train_tokenizer((question + answer for question, answer in ROWS), 300)
    tokenizer.save(folder)
    wrapped = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), eos_token=END_OF_TEXT)
    wrapped.save_pretrained(folder)
    set_seed(0)
    ends = {"bos_token_id": wrapped.eos_token_id, "eos_token_id": wrapped.eos_token_id}
    config = GPT2Config(vocab_size=len(wrapped), n_embd=128, n_layer=2, n_head=4, n_positions=64, **ends)
    with quiet_transformers():
        GPT2LMHeadModel(config).save_pretrained(folder)


def compare_memory(folder: Path) -> None:
    """Print what weights, gradients and optimizer of the ternary layers take, trained with latents and without."""
    outline = outline_of(folder)
    for name in ("hybrid-fp32", "hybrid-bf16", "pure-int8", "pure-int4"):
        memory = memory_of(outline.parameters, name)
        print(f"  {name:12} {memory.bytes_per_weight:6.2f} bytes a weight")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/pure1bit_demo"))
    parser.add_argument("--steps", type=int, default=100)
    given = parser.parse_args(argv)
    try:
        demonstrate(given.output_dir, given.steps)
    except OnebitError as error:
        sys.exit(f"error: {error}")


def demonstrate(folder: Path, steps: int) -> None:
    """All of it, into `folder`."""
    base, run, file, rows = folder / "base", folder / "run", folder / "model.1bit", folder / "rows.jsonl"
    base.mkdir(parents=True, exist_ok=True)
    make_base(base)
    rows.write_text("".join(json.dumps({"prompt": prompt, "completion": answer}) + "\n" for prompt, answer in ROWS))
    sft(
        SftSettings(
            model_name_or_path=str(base),
            dataset_name=str(rows),
            output_dir=run,
            pure=True,
            learning_rate=2e-3,
            max_steps=steps,
            per_device_train_batch_size=len(ROWS),
            max_length=64,
            val_fraction=0.0,
            logging_steps=max(1, steps // 8),
            save_strategy="no",
            resume=False,
            device="cpu",
        )
    )
    losses = [entry["loss"] for entry in read_metrics(run) if "loss" in entry]
    print(f"loss fell from {losses[0]:.3f} to {losses[-1]:.3f} nats a token")
    print("what training takes of the ternary layers: weights, scales, gradients and optimizer")
    compare_memory(run)
    print(f"{file}: {write(file, from_checkpoint(run)):,} bytes")
    model = Model(file)
    right = 0
    for question, answer in ROWS:
        said = "".join(model.generate(question, max_new_tokens=16, temperature=0.0))
        right += said == answer
        print(f"  {question}{said}")
    print(f"the engine gave {right} of {len(ROWS)} answers")


if __name__ == "__main__":
    main()
