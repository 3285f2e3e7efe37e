"""Everything a search can be told, with the names of the command line's flags; checked before anything is read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from onebit.errors import ConfigError, nearest_name
from onebit.search.space import LEVELS, Grouping, check_levels

__all__ = ["STRATEGIES", "EvaluationSettings", "SearchSettings"]

STRATEGIES = ("sensitivity", "expander", "evolution", "random")


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """What a map is measured with: a checkpoint, and text that it was not trained on.

    checkpoint: a folder that onebit train wrote, or the model.safetensors in one. model_config, tokenizer: taken from
    the folder unless given. max_tokens: of the text, from its beginning. threads: of each evaluation; sums of other
    numbers of threads may differ in the last bits.
    """

    checkpoint: Path
    val_data: Path
    model_config: Path | None = None
    tokenizer: Path | None = None
    context: int | None = None
    max_tokens: int = 16384
    device: str = "cpu"
    threads: int = 1

    def __post_init__(self) -> None:
        _at_least(self, "max_tokens", 2)
        _at_least(self, "threads", 1)
        if self.context is not None:
            _at_least(self, "context", 1)


@dataclass(frozen=True, kw_only=True)
class SearchSettings(EvaluationSettings):
    """One search. MB are 10^6 bytes.

    output: the JSON to write; what else is written stands in a folder of its name that ends in .search, the cache of
    evaluations too unless `cache_dir` names another. finetune_steps: train the chosen map so long on `data`, which a
    healing needs.
    """

    output: Path = Path("search_result.json")
    max_size_mb: float | None = None
    min_accuracy: float = 0.0
    max_evaluations: int = 1000
    strategy: str = "sensitivity"
    levels: tuple[str, ...] = LEVELS
    units: Grouping = "matrix"
    seed: int = 42
    workers: int = 1
    address: str | None = None
    cache_dir: Path | None = None
    finetune_steps: int = 0
    data: str | None = None
    finetune_lr: float = 1e-3
    quiet: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, "max_evaluations", 1)
        _at_least(self, "workers", 1)
        _at_least(self, "finetune_steps", 0)
        check_levels(self.levels)
        if self.max_size_mb is not None and not (math.isfinite(self.max_size_mb) and self.max_size_mb > 0):
            raise ConfigError(f"--max-size-mb is {self.max_size_mb}; it must be a positive number")
        if not 0.0 <= self.min_accuracy <= 1.0:
            raise ConfigError(f"--min-accuracy is {self.min_accuracy}; it must be a share between 0 and 1")
        if self.strategy not in STRATEGIES:
            raise ConfigError(
                f"--strategy is '{self.strategy}', expected one of {', '.join(STRATEGIES)}"
                f"{nearest_name(self.strategy, STRATEGIES)}"
            )
        if self.units not in get_args(Grouping):
            raise ConfigError(f"--units is {self.units!r}, expected one of {', '.join(get_args(Grouping))}")
        if not self.finetune_lr > 0:
            raise ConfigError(f"--finetune-lr is {self.finetune_lr}; it must be a positive number")
        if self.finetune_steps and self.data is None:
            raise ConfigError("--finetune-steps trains the chosen map: give the text to train on with --data")
        if not self.output.parent.is_dir():
            raise ConfigError(f"--output: the folder {self.output.parent} does not exist; make it first")

    @property
    def folder(self) -> Path:
        """Where pictures, the Pareto front, the cache and a healed model go."""
        return self.output.with_suffix(".search")

    @property
    def cache(self) -> Path:
        """The folder of the cache of evaluations."""
        return self.cache_dir if self.cache_dir is not None else self.folder


def _at_least(settings: object, name: str, least: int) -> None:
    value = getattr(settings, name)
    if value < least:
        raise ConfigError(f"--{name.replace('_', '-')} is {value}; it must be at least {least}")
