"""Small models, tokenizers and rows for the tests of fine-tuning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config

from onebit.data import END_OF_TEXT, train_tokenizer

TEXT = "".join(f"def f{i}(x, y):\n    return x * {i % 7} + y\n\n" for i in range(400))
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
_CONFIGS: dict[str, Any] = {
    "llama": LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    ),
    "qwen2": Qwen2Config(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    ),
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=64, resid_pdrop=0.0, attn_pdrop=0.0, embd_pdrop=0.0),
}


def make_base(folder: Path, kind: str = "llama", *, seed: int = 0, with_template: bool = True, **changes: Any) -> Path:
    """A folder with a float model of 300 tokens, its tokenizer and chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    train_tokenizer([TEXT], 300).save(folder)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), eos_token=END_OF_TEXT, pad_token=END_OF_TEXT
    )
    if with_template:
        tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    config = type(_CONFIGS[kind])(
        **{**_CONFIGS[kind].to_dict(), "vocab_size": 300, "eos_token_id": 0, "bos_token_id": 0, **changes}
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():  # larger than the usual start, so that quantisation is seen in the logits
        if parameter.ndim == 2:
            parameter.data.mul_(5.0)
    model.save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def small_run(base: Path, rows: Path, output_dir: Path) -> dict[str, Any]:
    """The settings that small runs share; a step takes milliseconds."""
    return {
        "model_name_or_path": str(base),
        "dataset_name": str(rows),
        "output_dir": output_dir,
        "max_steps": 6,
        "logging_steps": 1,
        "save_steps": 4,
        "per_device_train_batch_size": 4,
        "max_length": 64,
        "learning_rate": 1e-3,
        "device": "cpu",
        "quiet": True,
    }


def samples(count: int = 40) -> list[dict[str, Any]]:
    """What `onebit selfgen` writes for a model with a chat template."""
    return [
        {
            "prompt": [{"role": "user", "content": f"def f{i}"}],
            "completion": [{"role": "assistant", "content": f"return x * {i % 7} + y"}],
            "source": "selfgen",
        }
        for i in range(count)
    ]
