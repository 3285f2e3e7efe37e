"""Everything a fine-tuning run can be told, with the names of TRL's flags where TRL has the field.

Validation happens here, before anything is read or written, and names the flag.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

from onebit.errors import ConfigError, nearest_name
from onebit.optim import LambdaShape
from onebit.quant import ActivationQuantizer, Granularity, QuantizerName
from onebit.train.pure_options import PureOptions
from onebit.train.settings import Device, Tracker

__all__ = ["SftSettings"]

_SAVE = ("no", "steps", "epoch")
# Fields that are TRL's too, under the same name.
_TRL_FIELDS = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "logging_steps",
    "save_strategy",
    "save_steps",
    "packing",
    "max_length",
    "seed",
    "bf16",
    "fp16",
    "gradient_checkpointing",
    "report_to",
)
# What may differ between two invocations that are one run.
_NOT_DECIDING = frozenset(
    {"output_dir", "cache_dir", "logging_steps", "save_strategy", "save_steps", "keep_checkpoints", "report_to"}
    | {"resume", "device", "threads", "quiet", "allow_download", "val_data", "gradient_checkpointing"}
    | {"teacher_cache_dir", "per_device_train_batch_size", "gradient_accumulation_steps"}  # rows_per_step decides
)
# Of TRL's fields: how processes work together, and what is read ahead.
_NOT_DECIDING_OF_TRL = frozenset({"fsdp", "fsdp_config", "ddp_timeout", "ddp_bucket_cap_mb", "dataloader_num_workers"})


@dataclass(frozen=True, kw_only=True)
class SftSettings(PureOptions):
    """One run. The model, the data and the output folder are needed, all else has a default that trains.

    model_name_or_path: a folder or a cached model; float, latents (`prequantized`), one that was converted, or one that
    `onebit train` made. dataset_name: a .jsonl, .parquet or .txt file, a folder of them, `stdlib`, or the name of a
    data set. quantizer to tables: as `replace_linear_with_bitlinear`; None is the model's recorded conversion,
    else absmean in groups of 128, or per tensor for latents of BitNet models. bit_width_map: levels of a model that
    `onebit train` made, {module: level} or a file of `onebit search`. calibration_rows: so many rows choose
    codes and scales at the start, instead of rounding. use_peft: train adapters over the frozen ternary model and merge
    them at the end (`lora`); lora_*: as there. pure and the settings with its name (`PureOptions`): codes and counters
    instead of latents, without a warm-up. max_steps None: num_train_epochs decides. trl: further fields of TRL's
    SFTConfig.

    Raises:
        ConfigError: a value that cannot work, named as the flag is.
    """

    model_name_or_path: str
    dataset_name: str
    output_dir: Path
    model_revision: str | None = None
    dtype: str = "float32"
    val_data: str | None = None
    val_fraction: float = 0.05
    cache_dir: Path | None = None
    allow_download: bool = False

    quantizer: QuantizerName | None = None
    granularity: Granularity | None = None
    group_size: int | None = None
    activation_quantizer: ActivationQuantizer | None = None
    exclude: tuple[str, ...] | None = None
    sub_norms: bool = False
    rmsnorm_post_attn: bool = False
    hadamard_block: int | None = None
    tables: bool = False
    bit_width_map: Any = None
    calibration_rows: int = 0
    use_peft: bool = False
    lora_r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    lora_target_modules: tuple[str, ...] | None = None
    lora_form: str = "inside"
    lambda_warmup_frac: float = 0.4
    lambda_shape: LambdaShape = "linear"

    max_steps: int | None = None
    learning_rate: float = 1e-4
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    packing: bool = False
    max_length: int = 1024
    logging_steps: int = 10
    save_strategy: str = "steps"
    save_steps: int = 500
    keep_checkpoints: int = 2
    resume: bool = True
    seed: int = 42

    device: Device = "auto"
    bf16: bool = False
    fp16: bool = False
    gradient_checkpointing: bool = False
    threads: int | None = None
    report_to: Tracker = "none"
    quiet: bool = False
    trl: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("per_device_train_batch_size", "gradient_accumulation_steps", "logging_steps", "save_steps"):
            self._check(name, getattr(self, name) >= 1, "at least 1")
        for name in ("max_steps", "threads", "group_size"):
            self._check(name, getattr(self, name) is None or getattr(self, name) >= 1, "at least 1")
        for name in ("lora_r", "lora_alpha"):
            self._check(name, getattr(self, name) >= 1, "at least 1")
        self._check("lora_dropout", 0.0 <= self.lora_dropout < 1.0, "in [0, 1)")
        self._check("lora_form", self.lora_form in ("inside", "beside"), "inside or beside")
        self._check("calibration_rows", self.calibration_rows >= 0, "at least 0")
        self._check("keep_checkpoints", self.keep_checkpoints >= 1, "at least 1")
        self._check("max_length", self.max_length >= 2, "at least 2: nothing can be learnt from one token")
        self._check("learning_rate", math.isfinite(self.learning_rate) and self.learning_rate >= 0, "at least 0")
        self._check("lambda_warmup_frac", 0.0 <= self.lambda_warmup_frac <= 1.0, "in [0, 1]")
        self._check("val_fraction", 0.0 <= self.val_fraction <= 0.5, "in [0, 0.5]")
        self._check("seed", 0 <= self.seed < 2**32, "in [0, 2^32)")
        for name, known in (
            ("lambda_shape", get_args(LambdaShape)),
            ("save_strategy", _SAVE),
            ("device", get_args(Device)),
            ("report_to", get_args(Tracker)),
            ("quantizer", get_args(QuantizerName)),
            ("granularity", get_args(Granularity)),
            ("activation_quantizer", get_args(ActivationQuantizer)),
        ):
            value = getattr(self, name)
            holds = value in known or (value is None and self._default(name) is None)
            self._check(name, holds, f"one of {', '.join(known)}{nearest_name(str(value), known)}")
        if self.pure:
            self._check_pure()
        if self.bf16 and self.fp16:
            raise ConfigError("--bf16 and --fp16 contradict each other; drop one of them")
        for name in self.trl:
            if name in {*self.__dataclass_fields__, "report_to"}:
                raise ConfigError(f"trl: '{name}' is a setting of its own; give it as {name}=...")

    @property
    def cache(self) -> Path:
        """Where prepared rows are kept: `cache_dir`, else a folder inside the output."""
        return self.cache_dir if self.cache_dir is not None else self.output_dir / "cache"

    @property
    def trl_fields(self) -> dict[str, Any]:
        """What TRL's SFTConfig is told by name."""
        return {**{name: getattr(self, name) for name in _TRL_FIELDS}, **self.trl}

    @property
    def conversion(self) -> dict[str, Any]:
        """The arguments of `Conversion.of`, None where nothing was given."""
        names = ("quantizer", "granularity", "group_size", "activation_quantizer", "exclude", "hadamard_block")
        switches = {name: getattr(self, name) or None for name in ("sub_norms", "rmsnorm_post_attn", "tables")}
        return {**{name: getattr(self, name) for name in names}, **switches}

    def deciding(self) -> dict[str, Any]:
        """The settings that decide the losses, as JSON values; the rows of a step beside them."""
        values = {name: value for name, value in self.as_dict().items() if name not in _NOT_DECIDING}
        trl = {name: value for name, value in values["trl"].items() if name not in _NOT_DECIDING_OF_TRL}
        return {**values, "trl": trl}

    def as_dict(self) -> dict[str, Any]:
        """All settings as JSON values, for the manifest."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
        return plain

    def _check_pure(self) -> None:
        self.check_pure(
            {
                "use_peft": "trains adapters over frozen codes",
                "tables": "quantises embeddings, which --pure keeps float",
                "bit_width_map": "gives levels to latents, which --pure does not have",
            }
        )
        self._check("learning_rate", self.learning_rate > 0, "a positive number with --pure")
        if self.fp16:
            raise ConfigError("--fp16 scales losses and skips steps, which --pure cannot undo; use --bf16")

    def _default(self, name: str) -> Any:
        return self.__dataclass_fields__[name].default

    def _check(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag} is {getattr(self, name)!r}; it must be {expected}")
