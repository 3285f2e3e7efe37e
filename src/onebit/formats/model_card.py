"""The README.md of a model on a hub: what it is, what was measured, how it runs, and how it was made.

Numbers come from the file and its manifest alone; what nobody measured is not there. Of paths in the manifest only the
last part is published: where a model's author keeps data is nobody's business.
"""

from __future__ import annotations

import json
from pathlib import PurePath
from typing import Any

from onebit import __version__
from onebit.formats.onebit_file import OneBitFile
from onebit.formats.statistics import summarise

__all__ = ["model_card", "without_paths"]

# Names of figures in a manifest's final_metrics, and what they are called in the card.
_MEASURED = {
    "eval_loss": "validation loss, nats a token",
    "eval_perplexity": "validation perplexity",
    "eval_bits_per_byte": "validation bits a byte",
    "loss": "training loss at the end, nats a token",
}


def model_card(
    file: OneBitFile, repo_id: str, files: dict[str, int], *, base_model: str | None = None, license: str | None = None
) -> str:
    """Markdown with the YAML that hubs read. files: name -> bytes of what lies beside the card."""
    levels = sorted({tensor.level for tensor in file.tensors.values() if tensor.level in ("binary", "ternary")})
    is_gguf = any(name.endswith(".gguf") for name in files)
    is_transformers = "config.json" in files
    base = base_model or (file.manifest or {}).get("base_model")
    header = {
        "library_name": "transformers" if is_transformers else "gguf" if is_gguf else "onebit",
        "tags": ["onebit", *levels, *(["bitnet"] if is_transformers else []), *(["gguf"] if is_gguf else [])],
        "pipeline_tag": "text-generation",
        **({"base_model": base} if base and not PurePath(str(base)).is_absolute() else {}),
        **({"license": license} if license else {}),
    }
    parts = [
        "---\n" + "".join(_yaml(key, value) for key, value in header.items()) + "---\n",
        f"# {repo_id.rpartition('/')[2]}\n",
        _about(file, levels),
        _numbers(file, files),
        _how_to_run(repo_id, files),
    ]
    if file.manifest is not None:
        manifest = json.dumps(without_paths(file.manifest), indent=2, ensure_ascii=False, sort_keys=True)
        parts.append(f"## How it was made\n\nThe manifest of its training:\n\n```json\n{manifest}\n```\n")
    parts.append(f"Written by onebit {__version__}.\n")
    return "\n".join(parts)


def _yaml(key: str, value: Any) -> str:
    if isinstance(value, list):
        return f"{key}:\n" + "".join(f"- {entry}\n" for entry in value)
    return f"{key}: {json.dumps(value, ensure_ascii=False)}\n"


def _about(file: OneBitFile, levels: list[str]) -> str:
    d = file.description
    kind = " and ".join(levels) or "float"
    return (
        f"A language model with {kind} weights: {d.num_layers} layers of width {d.hidden_size}, {d.num_heads} heads, "
        f"{d.vocab_size:,} tokens, a context of {d.max_seq_len:,}.\n"
    )


def _numbers(file: OneBitFile, files: dict[str, int]) -> str:
    totals = summarise(file)["totals"]
    rows = [
        ("weights", f"{totals['weights']:,}"),
        ("bits a weight, scales included", f"{totals['bits_per_weight']:.3f}"),
    ]
    metrics = (file.manifest or {}).get("final_metrics") or {}
    if isinstance(metrics, dict):
        rows += [(text, f"{metrics[name]:.4f}") for name, text in _MEASURED.items() if _is_number(metrics.get(name))]
    weights = {n: size for n, size in files.items() if n.endswith((".1bit", ".gguf", ".safetensors"))}
    rows += [(f"`{name}`", f"{size / 1e6:.2f} MB") for name, size in weights.items()]
    lines = "".join(f"| {name} | {value} |\n" for name, value in rows)
    return f"## Numbers\n\nMeasured when it was trained and written.\n\n| | |\n| --- | ---: |\n{lines}"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _how_to_run(repo_id: str, files: dict[str, int]) -> str:
    lines = ["## How to run it\n", "```python", "import onebit", f'model = onebit.from_pretrained("{repo_id}")']
    lines += ['print("".join(model.generate("Once", max_new_tokens=50)))', "```\n"]
    if "config.json" in files:
        lines += [
            "```python",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            f'tokenizer = AutoTokenizer.from_pretrained("{repo_id}")',
            f'model = AutoModelForCausalLM.from_pretrained("{repo_id}", dtype="auto")',
            "```\n",
        ]
    for name in files:
        if name.endswith(".gguf"):
            lines += [f"```text\nllama-cli -m {name}\n```\n"]
    return "\n".join(lines)


def without_paths(value: Any) -> Any:
    """A manifest with the last part of every absolute path alone."""
    if isinstance(value, dict):
        return {key: without_paths(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [without_paths(entry) for entry in value]
    if (isinstance(value, str) and value.startswith(("/", "~", "\\"))) or _has_drive(value):
        return PurePath(value.replace("\\", "/")).name
    return value


def _has_drive(value: Any) -> bool:
    return isinstance(value, str) and value[1:3] in (":\\", ":/") and value[0].isalpha()
