"""A small random model with a byte-level tokenizer, as a checkpoint folder and as a `.1bit` file."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def byte_tokenizer() -> Tokenizer:
    """One token a byte, 256 of them, and an end token that a random model hardly ever says."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `.1bit` file without a chat template; needs no torch."""
    return _file(tmp_path_factory.mktemp("model") / "plain.1bit", None)


@pytest.fixture(scope="session")
def chat_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a chat template."""
    return _file(tmp_path_factory.mktemp("chat") / "chat.1bit", TEMPLATE)


def _file(path: Path, template: str | None) -> Path:
    from onebit.formats.onebit_file import write
    from onebit.formats.random_model import random_description, random_file

    description = random_description(vocab_size=256, max_seq_len=256, tied_head=False, bos=None, eos=None)
    write(path, random_file(description, tokenizer_json=byte_tokenizer().to_str(), chat_template=template))
    return path


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder as training leaves it."""
    torch = pytest.importorskip("torch")
    from onebit.models import OneBitConfig, OneBitForCausalLM

    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    config = OneBitConfig.preset(
        "bitnet",
        vocab_size=256,
        hidden_size=64,
        num_heads=4,
        num_layers=2,
        intermediate_size=96,
        max_seq_len=128,
        activation_quantizer="none",
    )
    OneBitForCausalLM(config).save_pretrained(folder)
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    return folder
