"""Does a search find the bit-widths that are best, and does it beat random maps of the same size?

    python benchmarks/search.py --data stdlib
    python benchmarks/search.py --data-dir DIR [--runs-dir DIR] [--part small deep]

DIR holds `wikitext-2/{test,valid}.txt`; stdlib is the source of Python's library. Two float models are trained on
test.txt, once: later runs take them from --runs-dir, and so they do every evaluation.

small: two layers, eight units (all q_proj together and so on, embedding, head) at three levels. All 6,561 maps are
measured, so the true optimum at five budgets is known; each strategy may measure 5 % of them.
deep: eight layers, every matrix by itself, five levels. Maps are chosen on the first part of valid.txt and compared on
the next, which no search has seen: the found map beside uniform ternary at its size, and beside the best of as many
random maps, five seeds, at half-way sizes. Then uniform ternary and the found map are trained equally long.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "src")]

SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "num_heads": 4,
    "intermediate_size": 256,
    "max_seq_len": 64,
    # A float model without BitNet's additions, as others would bring it.
    "quantizer": "none",
    "use_swiglu": False,
    "use_sub_norm": False,
}
SHAPES = {
    "small": {**SHAPE, "num_layers": 2, "tie_word_embeddings": False},
    "deep": {**SHAPE, "num_layers": 8, "tie_word_embeddings": True},
}
VOCABULARY = 512
STEPS = {"small": 1000, "deep": 1000}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--data-dir", type=Path, help="folder with wikitext-2/")
    where.add_argument("--data", choices=("stdlib",))
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/search"))
    parser.add_argument("--part", nargs="+", choices=("small", "deep"), default=["small", "deep"])
    parser.add_argument("--tokens", type=int, default=2048, help="that a map is measured on")
    parser.add_argument("--evaluations", type=int, default=120, help="of one search of the deep model")
    parser.add_argument("--heal-steps", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()

    import torch

    torch.set_num_threads(arguments.threads)
    arguments.train, arguments.valid = texts(arguments)
    from search_deep import measure_deep
    from search_small import measure_small

    figures: dict[str, float] = {}
    samples: dict[str, Any] = {}
    for part in arguments.part:
        folder = trained(part, arguments)
        measure = measure_small if part == "small" else measure_deep
        found, samples[part] = measure(folder, arguments)
        figures |= found

    from record import write_result

    config = {
        "text": arguments.data or "WikiText-2: trained on test.txt, searched and compared on valid.txt",
        "shapes": SHAPES,
        "vocabulary": VOCABULARY,
        "steps": STEPS,
        **{name: getattr(arguments, name) for name in ("tokens", "evaluations", "heal_steps", "threads")},
    }
    print(f"written: {write_result('search', config, figures, {'samples': samples})}")


def texts(arguments: argparse.Namespace) -> tuple[Path, Path]:
    """The files to train on, and to search and compare on."""
    if arguments.data is None:
        folder = arguments.data_dir / "wikitext-2"
        return folder / "test.txt", folder / "valid.txt"
    from quality_texts import texts as texts_of

    files = arguments.runs_dir / "train.txt", arguments.runs_dir / "valid.txt"
    arguments.runs_dir.mkdir(parents=True, exist_ok=True)
    for file, text in zip(files, texts_of(arguments.data, None), strict=True):
        file.write_text(text, "utf-8")
    return files


def trained(name: str, arguments: argparse.Namespace) -> Path:
    """The float model of a shape; a finished one in the folder is taken as it is."""
    from onebit.train import TrainSettings, train

    folder = Path(arguments.runs_dir) / name
    if (folder / "training_manifest.json").is_file():
        return folder
    outcome = train(
        TrainSettings(
            data=str(arguments.train),
            val_fraction=0.0,
            output_dir=folder,
            cache_dir=folder.parent / "cache",
            preset="bitnet",
            overrides=SHAPES[name],
            vocab_size=VOCABULARY,
            batch_size=4,
            max_steps=STEPS[name],
            optimizer="muon",
            lr=4e-3,
            lr_decay="linear",
            lr_warmup_steps=40,
            log_every=100,
            save_every=200,
            keep_checkpoints=1,
            threads=arguments.threads,
            device="cpu",
        )
    )
    if not outcome.complete:
        sys.exit("stopped; the same command goes on from there")
    return folder


if __name__ == "__main__":
    main()
