"""Write tiny_greedy.json: what the model inside the package answers greedily, the same on every instruction set.

Run it after the model was trained anew, never to make a failing test pass.
"""

from __future__ import annotations

import json
from pathlib import Path

from onebit.cli.model_path import tiny_model_path
from onebit.engine import Model

PROMPT = "def read_lines(path):\n"
NEW_TOKENS = 64

if __name__ == "__main__":
    generation = Model(tiny_model_path(), isa="scalar").generate(PROMPT, max_new_tokens=NEW_TOKENS)
    text = "".join(generation)
    golden = {"prompt": PROMPT, "ids": generation.ids, "text": text}
    Path(__file__).with_name("tiny_greedy.json").write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")
