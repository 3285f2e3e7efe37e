"""What a fine-tuning run starts from: tokenizer, rows, the converted model, and how rows become blocks.

Each is refused here, before anything is written, when it does not fit the others.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import set_seed

from onebit.data.instructions import Rows, is_conversation, open_rows
from onebit.errors import ConfigError, DataError
from onebit.models.bit_width_map import apply_bit_width_map, read_bit_width_map
from onebit.models.converted import Conversion, convert_model, load_converted, recorded_conversion
from onebit.models.pretrained import describe_model, load_causal_lm, load_tokenizer_of
from onebit.nn import Schedule
from onebit.train.checkpoints import last_checkpoint
from onebit.train.progress import ProgressLines
from onebit.train.sft_settings import SftSettings
from onebit.train.trained_rows import first_texts

__all__ = ["adapted", "open_tokenizer", "open_training_rows", "prepare_model", "settle_blocks"]

_ROWS_TO_FIT_NORMS = 16
_SAMPLE = 512  # tokens of a row that norms are fitted and layers calibrated to


def open_tokenizer(settings: SftSettings) -> Any:
    """The tokenizer of the model, which must have a token that ends a text."""
    tokenizer = load_tokenizer_of(
        settings.model_name_or_path, revision=settings.model_revision, allow_download=settings.allow_download
    )
    if tokenizer.eos_token is None and "eos_token" not in settings.trl:
        raise ConfigError(
            f"the tokenizer of '{settings.model_name_or_path}' has no end-of-text token; name one with --eos-token"
        )
    return tokenizer


def open_training_rows(settings: SftSettings, tokenizer: Any) -> Rows:
    """The rows to train and validate on; conversations need a chat template."""
    has_template = tokenizer.chat_template is not None or "chat_template_path" in settings.trl
    rows = open_rows(
        settings.dataset_name,
        cache=settings.cache,
        text_column=settings.trl.get("dataset_text_field", "text"),
        val_data=settings.val_data,
        val_fraction=settings.val_fraction,
        seed=settings.seed,
        with_messages=has_template,
        allow_download=settings.allow_download,
    )
    if is_conversation(next(iter(rows.train))) and not has_template:
        raise ConfigError(
            f"'{settings.dataset_name}' holds conversations, and the tokenizer of '{settings.model_name_or_path}' has "
            "no chat template; give one with --chat-template-path: a FILE.jinja, or a tokenizer's folder"
        )
    return rows


def prepare_model(settings: SftSettings, rows: Rows, tokenizer: Any, device: torch.device) -> Any:
    """The model with BitLinears and, when there is a warm-up, a schedule that it carries; fitted on the device."""
    name = settings.model_name_or_path
    where: dict[str, Any] = {"revision": settings.model_revision, "allow_download": settings.allow_download}
    config = describe_model(name, **where, takes_codes=settings.pure)
    set_seed(settings.seed)
    if config.model_type == "onebit":
        if any(value is not None for value in settings.conversion.values()):
            raise ConfigError(f"'{name}' was made by onebit train, quantised already; leave the conversion flags out")
        return _with_levels(load_causal_lm(name, config, dtype=settings.dtype), settings)
    if settings.bit_width_map is not None:
        raise ConfigError(
            f"--bit-width-map gives levels to a model that onebit train made, and '{name}' is a {config.model_type}; "
            "leave it out"
        )
    conversion = Conversion.of(config, **settings.conversion)
    # Adapters are trained over what is ternary already, and codes cannot be warmed up.
    is_soft = settings.lambda_warmup_frac > 0 and not settings.use_peft and not settings.pure
    schedule = Schedule(uses_lambda=True) if is_soft else None
    if recorded_conversion(config) is not None:
        if not Path(name).is_dir():
            raise DataError(f"'{name}' is a converted model in the cache; give the path of its folder")
        return load_converted(name, schedule=schedule, dtype=settings.dtype)
    model = load_causal_lm(name, config, dtype=settings.dtype, **where)
    if settings.resume and last_checkpoint(settings.output_dir) is not None:
        return convert_model(model, conversion, schedule=schedule)  # all weights come from the checkpoint
    has_norms = conversion.sub_norms or conversion.rmsnorm_post_attn
    count = settings.calibration_rows or (_ROWS_TO_FIT_NORMS if has_norms else 0)
    samples = [ids_BL.to(device) for ids_BL in _batches(rows, tokenizer, count)] if count else None
    calibrated = settings.calibration_rows > 0
    return convert_model(model.to(device), conversion, schedule=schedule, samples=samples, calibrated=calibrated)


def _with_levels(model: Any, settings: SftSettings) -> Any:
    """The model at the levels of the map, where one is given."""
    levels = settings.bit_width_map
    if levels is not None:
        if not isinstance(levels, dict):
            levels = read_bit_width_map(Path(levels)).levels
        apply_bit_width_map(model, levels)
    return model


def _batches(rows: Rows, tokenizer: Any, count: int) -> list[Tensor]:
    """The tokens of the first rows, [1, L] each."""
    texts = first_texts(rows.train, tokenizer, count)
    # Cut here: a tokenizer keeps what it is told of truncation, and its hash would depend on which rows were prepared.
    cut = (text[: 8 * _SAMPLE] for text in texts)
    return [tokenizer(text, return_tensors="pt", verbose=False)["input_ids"][:, :_SAMPLE] for text in cut]


def adapted(model: Any, settings: SftSettings) -> Any:
    """The model, frozen, with the adapters that are trained."""
    from onebit.train.lora import add_adapters

    form: Any = settings.lora_form
    return add_adapters(
        model,
        rank=settings.lora_r,
        alpha=settings.lora_alpha,
        dropout=settings.lora_dropout,
        target_modules=settings.lora_target_modules,
        form=form,
    )


def settle_blocks(arguments: Any, model: Any, rows: Rows, progress: ProgressLines) -> None:
    """How rows become blocks, as far as the data and the model leave a choice."""
    report = getattr(model, "conversion_report", None)
    if report is not None:
        progress.say(str(report).splitlines()[0])
    config = model.config.get_text_config()
    longest = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)
    if longest is not None and arguments.max_length is not None and arguments.max_length > longest:
        progress.say(f"--max-length is {longest}, all that the model has positions for")
        arguments.max_length = longest
    # Documents of any length would lose all but their beginning when cut at max_length; our own decoder does not take
    # a whole batch as one line, which is how the other strategies pack.
    if rows.is_text and not arguments.packing:
        arguments.packing, arguments.packing_strategy = True, "wrapped"
    elif arguments.packing and config.model_type == "onebit":
        arguments.packing_strategy = "wrapped"
