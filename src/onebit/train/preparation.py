"""What a run needs before its first step: the configuration, the tokenizer, the text in blocks, the model.

All that can be refused is refused before anything is written, and the tokenizer comes before the shape of the model:
its size is one of the model's fields.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from onebit.data import PreparedData, TextTokenizer, load_tokenizer, open_split, prepare, tokenizer_for
from onebit.errors import ConfigError, OnebitError
from onebit.models import OneBitConfig, OneBitForCausalLM
from onebit.models.bit_width_map import read_bit_width_map
from onebit.train.settings import TrainSettings

__all__ = ["fit_vocabulary", "make_model", "open_everything", "read_config"]

DEFAULT_PRESET = "bitnet"  # the shape that other runtimes can load too
# A tokenizer may be this much smaller than the model's table: tables are often rounded up to a round number.
_SPARE_ROWS = 1024


def open_everything(
    settings: TrainSettings, arguments: TrainingArguments, say: Callable[[str], None]
) -> tuple[OneBitConfig, PreparedData]:
    """Open text and tokenizer, settle the configuration, tokenise; the first process works, the others wait for it."""
    config = read_config(settings)
    if config.max_seq_len < 2:
        raise ConfigError("max_seq_len is 1, and nothing can be learnt from one token; training needs at least 2")
    split = open_split(
        settings.data,
        val_data=settings.val_data,
        val_fraction=settings.val_fraction,
        text_column=settings.text_column,
        streaming=settings.streaming,
    )
    given = settings.tokenizer or settings.init_from
    tokenizer = load_tokenizer(given) if given is not None else None
    if tokenizer is not None:
        config = fit_vocabulary(config, tokenizer, trained_here=False)
    if settings.eval_every and split.validation is None:
        raise ConfigError("--eval-every needs validation text: give --val-data or a --val-fraction above 0")
    with arguments.main_process_first(local=False), output_folder(settings.output_dir):
        if tokenizer is None:
            size = settings.vocab_size or config.vocab_size
            tokenizer = tokenizer_for(split.train, size, settings.cache, say)
            config = fit_vocabulary(config, tokenizer, trained_here=True)
        data = prepare(
            split,
            tokenizer,
            block_size=config.max_seq_len,
            cache=settings.cache,
            streaming=settings.streaming,
            seed=settings.seed,
            say=say,
        )
    return config, data


def read_config(settings: TrainSettings) -> OneBitConfig:
    """The model's configuration, from a file, an object, a checkpoint or a preset, with the overrides put in, and the
    bit-width map where one is given."""
    config = _config_of_model(settings)
    levels = settings.bit_width_map
    if levels is None:
        return config
    if not isinstance(levels, dict):
        levels = read_bit_width_map(Path(levels)).levels
    return OneBitConfig.from_dict({**config.to_dict(), "bit_width_map": levels})


def _config_of_model(settings: TrainSettings) -> OneBitConfig:
    if settings.init_from is not None:
        return OneBitConfig.from_json_file(settings.init_from / "config.json")
    if settings.config is None:
        return OneBitConfig.preset(settings.preset or DEFAULT_PRESET, **settings.overrides)
    if isinstance(settings.config, OneBitConfig):
        return OneBitConfig.from_dict({**settings.config.to_dict(), **settings.overrides})
    config = OneBitConfig.from_json_file(settings.config)
    if not settings.overrides:
        return config
    # From the file again: what the configuration derived from replaced fields must be derived anew.
    return OneBitConfig(**(json.loads(Path(settings.config).read_text("utf-8")) | settings.overrides))


def fit_vocabulary(config: OneBitConfig, tokenizer: TextTokenizer, *, trained_here: bool) -> OneBitConfig:
    """Check that the model's table and the tokenizer fit; a tokenizer trained here decides the size.

    Raises:
        ConfigError: they do not belong together.
    """
    size = tokenizer.vocab_size
    if trained_here:
        config.vocab_size = size
    elif not size <= config.vocab_size <= size + _SPARE_ROWS:
        raise ConfigError(
            f"the tokenizer has {size} tokens and the configuration's vocab_size is {config.vocab_size}; "
            f"they must match (--set vocab_size={size}, or another --tokenizer)"
        )
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if getattr(config, name) is None:
            setattr(config, name, tokenizer.eos_token_id)
    return config


def make_model(settings: TrainSettings, config: OneBitConfig) -> Any:
    """A fresh model, or the one of a checkpoint."""
    if settings.init_from is not None:
        model = OneBitForCausalLM.from_pretrained(settings.init_from, config=config, dtype=torch.float32)
    else:
        model = OneBitForCausalLM(config)
    if settings.gradient_checkpointing:
        # transformers 5 renamed it.
        enable: Any = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    return model


@contextmanager
def output_folder(folder: Path) -> Iterator[None]:
    """The folder of a run; one that was made here goes away again when what is given turns out to be unusable.

    One with a checkpoint stays: whatever failed then, the steps that were trained are worth more than tidiness.
    """
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output-dir: cannot make '{folder}': {error.strerror or error}") from None
    try:
        yield
    except OnebitError:
        if is_new and not any(folder.glob("checkpoint-*")):
            shutil.rmtree(folder, ignore_errors=True)
        raise
