"""Train the tiny model that comes inside the package: 4 million ternary weights that complete Python code.

    python examples/train_tiny.py                      # as shipped: about an hour on one core with bfloat16
    python examples/train_tiny.py --steps 20 --output-dir /tmp/try

The text is the standard library of the Python that runs this, so nothing is downloaded. The model has seen code only:
no chat template is trained, it continues what it is given. A killed run goes on from its last checkpoint when started
again. The result is tiny.1bit (at most 1.5 MB, tokenizer inside) and tiny_manifest.json, which says how it was
made.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from onebit.cli.export import export
from onebit.errors import OnebitError
from onebit.train import TrainSettings, train

MAX_BYTES = 1_500_000
# BitNet's decoder with relu squared, without gates and sub-norms: the lowest loss per minute of the shapes that were
# tried (benchmarks/LOG.md). 5 layers of 786,432 ternary weights.
SHAPE: dict[str, Any] = {
    "hidden_size": 256,
    "num_layers": 5,
    "num_heads": 4,
    "intermediate_size": 1024,
    "use_swiglu": False,
    "use_sub_norm": False,
    "max_seq_len": 256,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/tiny"))
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--threads", type=int, default=None, help="processor threads [default: all]")
    arguments = parser.parse_args()
    try:
        make(arguments.output_dir, arguments.steps, arguments.threads)
    except OnebitError as error:
        sys.exit(f"error: {error}")


def make(folder: Path, steps: int, threads: int | None) -> Path:
    """Train, export, check the size; returns the path of tiny.1bit."""
    settings = TrainSettings(
        data="stdlib",
        output_dir=folder,
        preset="bitnet",
        overrides=SHAPE,
        vocab_size=2048,
        val_fraction=0.03,
        batch_size=4,
        max_steps=steps,
        optimizer="muon",
        lr=4e-3,
        lr_decay="linear",
        lr_warmup_steps=steps // 20,
        weight_decay=0.1,
        bf16=True,
        save_every=250,
        keep_checkpoints=1,
        log_every=50,
        eval_every=500,
        threads=threads,
    )
    result = train(settings)
    if not result.complete:
        sys.exit(f"stopped after step {result.steps}; the same command goes on from there")
    file = folder / "tiny.1bit"
    export(folder, file, pack_mode="ternary5", layout="run", emit_c_header=False, verify=True)
    if file.stat().st_size > MAX_BYTES:
        sys.exit(f"error: {file} has {file.stat().st_size} bytes, more than {MAX_BYTES}; choose a smaller vocabulary")
    shutil.copyfile(folder / "training_manifest.json", folder / "tiny_manifest.json")
    loss = json.loads((folder / "tiny_manifest.json").read_text(encoding="utf-8"))["final_metrics"].get("eval_loss")
    print(f"{file}: {file.stat().st_size} bytes, validation loss {loss}")
    return file


if __name__ == "__main__":
    main()
