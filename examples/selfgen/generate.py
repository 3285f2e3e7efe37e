"""Instruction data from the model itself, under the gradual-lambda recipe's own name: `onebit selfgen` does the work.

python examples/selfgen/generate.py --model_path MODEL --out data.jsonl --num 500
"""

from __future__ import annotations

import sys

from onebit.cli.main import run

if __name__ == "__main__":
    run(["selfgen", *sys.argv[1:]])
