"""What does it cost to store embedding and head in fewer bits, and to let the head read int8?

    python benchmarks/head_levels.py --runs-dir DIR           train the demo's model for five minutes, then measure
    python benchmarks/head_levels.py --model-dir CHECKPOINT   measure on a checkpoint, on the text it held out

Every level that `onebit export` offers is measured as an export measures it: the held-out text goes through the torch
model with its tables as trained and as the file would store them, and the two losses are compared token by token.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "src")]

CHOICES = (
    ("float16", "none"),
    ("float16", "int8"),
    ("int8", "none"),
    ("int8", "int8"),
    ("int4", "none"),
    ("int4", "int8"),
)
VALIDATION_SHARE = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-dir", type=Path, help="a checkpoint [default: train one in --runs-dir]")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/head_levels"))
    parser.add_argument("--minutes", type=float, default=5.0, help="of training")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=16_384)
    arguments = parser.parse_args()

    import torch

    torch.set_num_threads(arguments.threads)
    folder = arguments.model_dir or trained(arguments)
    figures, config = measure(folder, arguments.tokens)

    from record import write_result

    print(f"written: {write_result('head_levels', config, figures)}")


def trained(arguments: argparse.Namespace) -> Path:
    """The demo's model on the standard library; a finished one in the folder is taken as it is."""
    from onebit.cli.demo import SHAPE, VOCABULARY
    from onebit.train import TrainSettings, train

    folder = Path(arguments.runs_dir)
    if (folder / "training_manifest.json").is_file():
        return folder
    outcome = train(
        TrainSettings(
            data="stdlib",
            output_dir=folder,
            preset="bitnet",
            overrides=dict(SHAPE),
            vocab_size=VOCABULARY,
            val_fraction=VALIDATION_SHARE,
            batch_size=4,
            max_minutes=arguments.minutes,
            optimizer="muon",
            lr=4e-3,
            lr_decay="linear",
            lr_warmup_steps=40,
            log_every=20,
            save_every=200,
            keep_checkpoints=1,
            threads=arguments.threads,
            device="cpu",
        )
    )
    if not outcome.complete:
        sys.exit("stopped; the same command goes on from there")
    return folder


def measure(folder: Path, tokens: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Loss as trained and what each choice adds to it; the table is printed as it grows."""
    from onebit.eval.forms import open_checkpoint
    from onebit.eval.stored_tables import StoredTables
    from onebit.eval.tables_cost import held_out_text, measure_tables
    from onebit.formats.checkpoint import from_checkpoint

    form = open_checkpoint(folder)
    file = from_checkpoint(folder)
    settings = (file.manifest or {}).get("settings") or {}
    text, name = held_out_text(settings, characters=6 * tokens)
    figures: dict[str, float] = {}
    print(f"{'level':<8} {'head reads':<10} {'nats':>9} {'error':>8} {'%':>8} {'tables MB':>10}")
    for level, inputs in CHOICES:
        stored = from_checkpoint(folder, embedding_level=level, head_activation=inputs)
        tables = StoredTables.of(stored.tensors.values())
        cost = measure_tables(form, tables, text, name, max_tokens=tokens, seconds=math.inf)
        assert cost is not None
        megabytes = sum(
            t.stored_bytes for t in stored.tensors.values() if t.name.removesuffix(".weight") in tables.levels
        )
        figures |= {
            f"{level}_head_{inputs}_nats": cost.nats,
            f"{level}_head_{inputs}_standard_error": cost.standard_error,
            f"{level}_head_{inputs}_percent": cost.percent,
            f"{level}_tables_mb": megabytes / 1e6,
            "loss_as_trained": cost.loss_as_trained,
            "tokens": cost.tokens,
        }
        print(
            f"{level:<8} {inputs:<10} {cost.nats:>9.5f} {cost.standard_error:>8.5f} {cost.percent:>8.3f}"
            f" {megabytes / 1e6:>10.3f}",
            flush=True,
        )
    return figures, _config(form.model.config, settings, name)


def _config(config: Any, settings: dict[str, Any], name: str) -> dict[str, Any]:
    shape = ("hidden_size", "num_layers", "num_heads", "intermediate_size", "vocab_size", "tie_word_embeddings")
    training = ("data", "optimizer", "lr", "max_steps", "max_minutes", "batch_size", "val_fraction")
    return {
        "text": name,
        "shape": {field: getattr(config, field) for field in shape},
        "training": {field: settings.get(field) for field in training},
    }


if __name__ == "__main__":
    main()
