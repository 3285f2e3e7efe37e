"""Everything a training run can be told, with the names of the command line's flags.

Validation happens here, before anything is read or written, and names the flag: bad input must leave nothing half-made.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from onebit.errors import ConfigError, nearest_name
from onebit.optim import Decay
from onebit.train.pure_options import PureOptions

__all__ = ["Device", "Optimizer", "Tracker", "TrainSettings"]

Device = Literal["auto", "cpu", "cuda", "mps"]
Tracker = Literal["none", "wandb", "tensorboard"]
Optimizer = Literal["adamw", "muon"]

_POSITIVE = ("batch_size", "accumulation_steps", "max_steps", "log_every")
_NOT_NEGATIVE = ("lr", "min_lr", "lr_warmup_steps", "save_every", "eval_every", "weight_decay", "grad_clip_max_norm")


@dataclass(frozen=True, kw_only=True)
class TrainSettings(PureOptions):
    """One run. `data` and `output_dir` are needed, all else has a default that trains.

    The model comes from one of `config` (a config.json or an OneBitConfig) and `preset` (bitnet when neither is given),
    with the fields in `overrides` replaced; or from a checkpoint folder, `init_from`. `bit_width_map` replaces the map
    of either: {module: level}, or a file of `onebit search`. The tokenizer is the one given, else one is trained on the
    data. With `pure` and the settings with its name (`PureOptions`), codes and counters are trained instead of latents.

    Raises:
        ConfigError: a value that cannot work, named as the flag is.
    """

    data: str
    output_dir: Path
    config: Any = None
    preset: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    init_from: Path | None = None
    bit_width_map: Any = None
    tokenizer: Path | None = None
    vocab_size: int | None = None
    val_data: str | None = None
    val_fraction: float = 0.05
    text_column: str = "text"
    cache_dir: Path | None = None
    streaming: bool = False

    batch_size: int = 8
    accumulation_steps: int = 1
    max_steps: int = 1000
    max_minutes: float | None = None
    optimizer: Optimizer = "adamw"
    lr: float = 1.5e-3
    min_lr: float = 0.0
    lr_decay: Decay = "cosine"
    lr_warmup_steps: int = 100
    weight_decay: float = 0.1
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    grad_clip_max_norm: float = 1.0
    label_smoothing: float = 0.0
    seed: int = 42

    save_every: int = 1000
    keep_checkpoints: int = 2
    log_every: int = 100
    eval_every: int = 0
    keep_best: bool = False
    resume: bool = True

    device: Device = "auto"
    bf16: bool = False
    compile: bool = False
    gradient_checkpointing: bool = False
    threads: int | None = None
    report_to: Tracker = "none"
    quiet: bool = False

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            self._check(name, getattr(self, name) >= 1, "at least 1")
        for name in _NOT_NEGATIVE:
            value = getattr(self, name)
            self._check(name, math.isfinite(value) and value >= 0, "a number of at least 0")
        self._check("keep_checkpoints", self.keep_checkpoints >= 1, "at least 1")
        self._check("label_smoothing", 0.0 <= self.label_smoothing < 1.0, "in [0, 1)")
        self._check("val_fraction", 0.0 <= self.val_fraction <= 0.5, "in [0, 0.5]")
        self._check("min_lr", self.min_lr <= self.lr, f"at most --lr {self.lr}")
        self._check("seed", 0 <= self.seed < 2**32, "in [0, 2^32)")
        for name in ("adam_beta1", "adam_beta2"):
            self._check(name, 0.0 <= getattr(self, name) < 1.0, "in [0, 1)")
        for name in ("threads", "vocab_size"):
            self._check(name, getattr(self, name) is None or getattr(self, name) >= 1, "at least 1")
        self._check("max_minutes", self.max_minutes is None or 0 < self.max_minutes < math.inf, "more than 0")
        for name, kind in (("optimizer", Optimizer), ("lr_decay", Decay), ("device", Device), ("report_to", Tracker)):
            known = get_args(kind)
            value = getattr(self, name)
            self._check(name, value in known, f"one of {', '.join(known)}{nearest_name(str(value), known)}")
        if self.pure:
            self._check_pure()
        if self.init_from is not None and (self.config is not None or self.preset is not None or self.overrides):
            raise ConfigError("--init-from brings its own configuration; drop --config, --preset and --set")
        if self.config is not None and self.preset is not None:
            raise ConfigError("--config and --preset each describe a whole model; drop one of them")
        if self.tokenizer is not None and self.vocab_size is not None:
            raise ConfigError("--vocab-size trains a tokenizer and --tokenizer gives one; drop one of them")

    @property
    def cache(self) -> Path:
        """Where tokenised text is kept: `cache_dir`, else a folder inside the output."""
        return self.cache_dir if self.cache_dir is not None else self.output_dir / "cache"

    def as_dict(self) -> dict[str, Any]:
        """All settings as JSON values, for the manifest."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        config = values["config"]
        if config is not None and not isinstance(config, (str, Path)):
            values["config"] = config.to_dict()
        plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
        return plain

    def _check_pure(self) -> None:
        self.check_pure({"bit_width_map": "gives levels to latents, which --pure does not have"})
        self._check("lr", self.lr > 0, "a positive number with --pure")
        if self.optimizer != "adamw":
            raise ConfigError(
                f"--optimizer {self.optimizer} moves latents, which --pure does not have; drop one of them"
            )

    def _check(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag} is {getattr(self, name)!r}; it must be {expected}")
