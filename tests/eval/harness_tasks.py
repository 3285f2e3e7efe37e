"""Three tasks on local data, one of each kind of question that lm-evaluation-harness asks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NAMES = ("pick_local", "texts_local", "answers_local")

_KINDS: dict[str, dict[str, Any]] = {
    "pick_local": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "texts_local": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}, {"metric": "word_perplexity"}],
    },
    "answers_local": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"until": ["e", "\n"], "max_gen_toks": 7},
        "metric_list": [{"metric": "exact_match"}],
    },
}


def write_tasks(folder: Path) -> Path:
    """The tasks' YAML (JSON is YAML) and their data."""
    questions = [
        {"question": f"def f{i}(x):\n    return", "choices": [" x", " None", " self.x + 1"], "answer": i % 3}
        for i in range(6)
    ]
    texts = [{"text": "import os\n\ndef read(path):\n    return open(path).read()\n" * (4 * i + 1)} for i in range(3)]
    for name, rows in (("questions", questions), ("texts", texts)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for name, kind in _KINDS.items():
        data = folder / ("texts.jsonl" if name == "texts_local" else "questions.jsonl")
        source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
        task = {"task": name, **source, **kind, "metadata": {"version": 1}}
        (folder / f"{name}.yaml").write_text(json.dumps(task), encoding="utf-8")
    return folder
