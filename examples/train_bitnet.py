"""The gradual-lambda recipe under its own name and defaults: `onebit sft` does the work.

python examples/train_bitnet.py --base_model MODEL --dataset training_data.jsonl --out_dir trained \
    --steps 1000 --lambda_warmup_frac 0.4

Its defaults are 1000 steps at a rate of 5e-5 with cosine decay, 2 rows in each of 8 batches a step, gradient
checkpointing, an RMSNorm after each attention, and float16 where there is a GPU; any flag of `onebit sft` replaces one.
"""

from __future__ import annotations

import sys

from onebit.cli.main import run

DEFAULTS = {"--steps": "1000", "--lambda-warmup-frac": "0.4", "--rmsnorm-post-attn": "1"}
DEFAULTS |= {"--bsz": "2", "--grad-accum": "8", "--lr": "5e-5"}
SWITCHES = ["--gradient-checkpointing"]


def command(argv: list[str]) -> list[str]:
    """The `onebit sft` command line; of an option that is given twice the later one counts."""
    import torch

    is_half = torch.cuda.is_available() and "--bf16" not in argv
    switches = [*SWITCHES, "--fp16"] if is_half else SWITCHES
    return ["sft", *(part for pair in DEFAULTS.items() for part in pair), *switches, *argv]


if __name__ == "__main__":
    run(command(sys.argv[1:]))
