"""Flags that are not ours: they pass to TRL's SFTConfig by name, and a name that it does not have is refused."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from transformers import HfArgumentParser

from onebit.errors import ConfigError, nearest_name
from onebit.train.sft_settings import SftSettings
from onebit.train.sharding import load_whole_models

__all__ = ["sft_config", "trl_options"]


def trl_options(arguments: Sequence[str], ours: Sequence[str] = ()) -> dict[str, Any]:
    """Read `--name value` pairs as fields of SFTConfig, of the field's type; hyphens and underscores alike.

    ours: names of the command's own flags, for the suggestion.

    Raises:
        ConfigError: no such field, or a value that is not of its type.
    """
    parser = _parser()
    known = {action.dest for action in parser._actions}
    spelled = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not name.startswith("--"):
            spelled.append(argument)
            continue
        field = name[2:].replace("-", "_")
        if field not in known and field.removeprefix("no_") not in known:
            flags = {f"--{other.replace('_', '-')}" for other in (*known, *ours)}
            raise ConfigError(
                f"no option {name}, here or in TRL's SFTConfig{nearest_name(name.replace('_', '-'), flags)}"
            )
        spelled.append(f"--{field}{equals}{value}")
    return dict(vars(parser.parse_args(spelled)))


def sft_config(settings: SftSettings, *, on_cpu: bool, distributed: bool) -> Any:
    """TRL's SFTConfig of a run; also joins the process group when torchrun started this process.

    Raises:
        ConfigError: TRL refuses a value.
    """
    from trl.trainer.sft_config import SFTConfig

    fields: dict[str, Any] = {
        "lr_scheduler_type": "cosine",
        "output_dir": str(settings.output_dir),
        "max_steps": settings.max_steps or -1,
        "use_cpu": on_cpu,
        "ddp_backend": "gloo" if on_cpu and distributed else None,
        "ddp_find_unused_parameters": False,
        "logging_nan_inf_filter": False,  # it waits for the device at each step; the log line checks instead
        "save_total_limit": settings.keep_checkpoints,
        "disable_tqdm": True,
        "dataloader_pin_memory": not on_cpu,
        "per_device_eval_batch_size": settings.per_device_train_batch_size,
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if settings.gradient_checkpointing else None,
        **settings.trl_fields,
    }
    try:
        with warnings.catch_warnings():
            # The field's new name is not the old one's alias for TRL, whose default is True.
            warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)
            arguments = SFTConfig(**fields)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"TRL's SFTConfig refuses this: {' '.join(str(error).split())}") from error
    load_whole_models()
    return arguments


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"an option for TRL's SFTConfig: {message}")


def _parser() -> _Parser:
    """A parser of SFTConfig's fields that returns only what was given."""
    from trl.trainer.sft_config import SFTConfig

    kinds: Any = SFTConfig
    parser = _Parser(kinds, allow_abbrev=False, add_help=False)
    for action in parser._actions:
        action.default = argparse.SUPPRESS
        action.required = False
    return parser
