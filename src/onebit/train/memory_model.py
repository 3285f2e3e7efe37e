"""A model as an outline: its parameters by what becomes of them in training, and the steps it takes, without a value.

Source of the shapes: the model itself, built of fake tensors from its configuration, so that every architecture that
can be trained here can be counted.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from onebit.errors import ConfigError, FormatError, nearest_name
from onebit.models import PRESETS, OneBitConfig
from onebit.models.converted import Conversion, convert_model
from onebit.models.pretrained import describe_model
from onebit.models.quiet import quiet_transformers
from onebit.nn import BitLinear, Schedule
from onebit.nn.pure_conversion import replace_linear_with_pure1bit_linear
from onebit.train.memory import LORA_RANK, Codes, Parameters, StepBytes
from onebit.train.memory_methods import Method
from onebit.train.memory_step import step_bytes

__all__ = ["ModelOutline", "make_fake", "outline_of"]

_CODED = ("absmean", "threshold", "sparsity", "binary")
_NEEDED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
_ATTENTION_DROPOUT = ("attention_dropout", "attn_pdrop")


def outline_of(source: Path | str, **conversion: Any) -> ModelOutline:
    """The outline of a configuration file, a checkpoint's folder, or a preset of `onebit train` by name.

    conversion: granularity and group_size, where those that `onebit sft` would choose are not wanted.

    Raises:
        ConfigError, DataError: there is none, a field is missing or wrong, or it is no decoder that can be trained.
    """
    if str(source) in PRESETS:
        return ModelOutline(OneBitConfig.preset(str(source)), **conversion)
    path = Path(source).expanduser()
    file = path / "config.json" if path.is_dir() else path
    if path.suffix == ".1bit" and path.is_file():
        raise FormatError(f"{path} is a file to run, which is not trained; give the checkpoint's folder")
    if not file.is_file():
        raise ConfigError(
            f"{source}: no such configuration or folder with a config.json, and no preset ({', '.join(PRESETS)})"
            f"{nearest_name(str(source), PRESETS)}"
        )
    return ModelOutline(_read(file), **conversion)


def _read(file: Path) -> Any:
    try:
        values = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read as JSON: {error}; give a model's config.json") from None
    kind = values.get("model_type", "onebit") if isinstance(values, dict) else "onebit"
    if kind == "onebit":
        return OneBitConfig.from_json_file(file)
    from transformers import CONFIG_MAPPING, AutoConfig

    if kind not in CONFIG_MAPPING:
        raise ConfigError(f"{file}: unknown model_type '{kind}'{nearest_name(kind, CONFIG_MAPPING)}")
    spelled = getattr(CONFIG_MAPPING[kind], "attribute_map", {})
    missing = [name for name in _NEEDED if name not in values and spelled.get(name, name) not in values]
    if missing:
        raise ConfigError(f"{file}: {', '.join(missing)} missing; a configuration of '{kind}' must give all its sizes")
    if file.name == "config.json":
        return describe_model(str(file.parent.absolute()))
    try:
        with quiet_transformers():
            return AutoConfig.for_model(kind, **{key: value for key, value in values.items() if key != "model_type"})
    except Exception as error:  # a configuration's own checks raise many kinds
        raise ConfigError(f"{file}: {' '.join(str(error).split())[:300]}") from None


class ModelOutline:
    """parameters: by what becomes of them; codes: what the quantiser of the configuration makes; layers: how many.

    longest: positions that the model has; tied: whether the head is the embedding's table.
    """

    def __init__(self, config: Any, **conversion: Any) -> None:
        self.config = config = copy.deepcopy(config)
        self._steps: dict[tuple[Any, ...], StepBytes] = {}
        self.is_onebit = isinstance(config, OneBitConfig)
        if self.is_onebit and any(value is not None for value in conversion.values()):
            raise ConfigError("a configuration of onebit train has its own granularity; leave the flags out")
        self.conversion = None if self.is_onebit else Conversion.of(config, **conversion)
        for name in _ATTENTION_DROPOUT:  # the fused attention of a CPU has none, and it takes no memory elsewhere
            if hasattr(config, name):
                setattr(config, name, 0.0)
        model = self._build("hybrid", torch.float32)
        layers = _equal_layers(model)
        self.layers = len(layers)
        self.longest = int(getattr(config, "max_position_embeddings", 0) or 1 << 20)
        self.codes: Codes = "binary" if self._quantizer() == "binary" else "ternary"
        self.parameters = _sorted_parameters(model)
        self.tied = not self.parameters.head
        if not self.parameters.matrices:
            raise ConfigError("the configuration has no ternary or binary layer; give a quantizer other than 'none'")

    def step(
        self,
        method: Method,
        *,
        checkpointing: bool = False,
        accumulate: bool = False,
        freeze_tables: bool = False,
        bf16: bool = False,
        lambda_warmup: bool = False,
        rank: int = LORA_RANK,
    ) -> StepBytes:
        """What a step by this method adds.

        checkpointing: of every layer. bf16: float32 weights under autocast. lambda_warmup: of a hybrid while it goes
        from float to quantised; the regimes of our own models follow from their configuration.
        """
        key = (method.kind, method.dtype, checkpointing, accumulate, freeze_tables, bf16, lambda_warmup, rank)
        if key not in self._steps:  # counters and the kind of moments are no part of a step
            model, layers = self._two_layers(method, freeze_tables, lambda_warmup, rank)
            if checkpointing:
                enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
                enable({"use_reentrant": False})
            with FakeTensorMode():
                make_fake(model)
                autocast = bf16 and method.dtype == "float32"
                self._steps[key] = step_bytes(model, layers, self.layers, accumulate=accumulate, autocast=autocast)
        return self._steps[key]

    def _two_layers(
        self, method: Method, freeze_tables: bool, lambda_warmup: bool, rank: int
    ) -> tuple[Any, nn.ModuleList]:
        """The model as the method trains it, with the first two of its layers."""
        schedule = Schedule(uses_lambda=True) if lambda_warmup and method.kind == "hybrid" else None
        kind = "float" if method.kind == "float" else "hybrid"
        model = self._build(kind, getattr(torch, method.dtype), schedule)
        layers = _equal_layers(model)
        del layers[2:]
        if freeze_tables:
            for table in (model.get_input_embeddings(), model.get_output_embeddings()):
                table.requires_grad_(False)
        if method.kind == "pure":
            replace_linear_with_pure1bit_linear(model, counter=method.counter)
        elif method.kind == "lora":
            from onebit.train.lora import add_adapters

            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)
                model = add_adapters(model, rank=rank)
        return model.train(), layers

    def _quantizer(self) -> str:
        return self.config.resolved_quantizer if self.conversion is None else self.conversion.quantizer

    def _build(self, kind: str, dtype: torch.dtype, schedule: Schedule | None = None) -> Any:
        """The whole model on the meta device."""
        config = copy.deepcopy(self.config)  # a conversion writes into it
        if self.is_onebit and kind == "float":
            config = OneBitConfig.from_dict({**config.to_dict(), "quantizer": "none", "bit_width_map": None})
        from transformers import AutoModelForCausalLM

        try:
            with torch.device("meta"), quiet_transformers():
                model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        except Exception as error:  # sizes that do not fit together, a family without a language model's head
            raise ConfigError(f"the configuration makes no model: {' '.join(str(error).split())[:300]}") from None
        if self.conversion is None or kind == "float":
            return model
        return convert_model(model, self.conversion, schedule=schedule)


def make_fake(model: nn.Module) -> None:
    """Move a model from the meta device to tensors that say they are on the CPU; call it inside a fake mode."""
    fakes: dict[int, Tensor] = {}  # a tied tensor once
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            tensors: dict[str, Any] = held
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in fakes:
                    fake = torch.empty(tensor.shape, dtype=tensor.dtype)
                    is_parameter = isinstance(tensor, nn.Parameter)
                    fakes[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if is_parameter else fake
                tensors[name] = fakes[id(tensor)]


def _equal_layers(model: nn.Module) -> nn.ModuleList:
    """The stack of the decoder's layers."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    layers = max(lists, key=lambda stack: sum(p.numel() for p in stack.parameters()), default=None)
    if layers is None or len({tuple(p.shape for p in layer.parameters()) for layer in layers}) != 1:
        raise ConfigError("the model's layers are not all of one shape, so one cannot be counted for the others")
    return layers


def _sorted_parameters(model: Any) -> Parameters:
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    coded = {id(module.weight): module for module in _coded_layers(model)}
    return Parameters(
        matrices=tuple((module.out_features, module.in_features) for module in coded.values()),
        ordinary=tuple(p.numel() for p in model.parameters() if id(p) not in {*coded, id(table), id(head)}),
        embeddings=(table.numel(),),
        head=() if head is table else (head.numel(),),
        buffers=sum(buffer.numel() * buffer.element_size() for buffer in model.buffers()),
        scales=tuple(_scales(module) for module in coded.values()),
    )


def _coded_layers(model: Any) -> Iterator[BitLinear]:
    """The layers whose weights can be codes: those of one or two bits, without the head."""
    for module in model.modules():
        if isinstance(module, BitLinear) and module is not model.get_output_embeddings():
            spec = module.weight_quantizer
            if spec is not None and spec.quantizer in _CODED:
                yield module


def _scales(layer: BitLinear) -> tuple[int, int]:
    spec = layer.quantized_spec()
    if spec.granularity == "per_tensor":
        return 1, 0
    groups = 0 if spec.group_size is None else -(-layer.in_features // spec.group_size)
    return layer.out_features, layer.out_features * groups
