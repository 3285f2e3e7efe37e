"""A transformers folder as a ``.1bit`` model, without anything being quantised anew: packed BitNet layers (Falcon-E,
Falcon3-1.58bit, HF1BitLLM's Llama3-8B-1.58, microsoft's 2B-4T), BitNet latents that the model quantises itself
("online"), and float weights, which become codes where they lie on a grid of codes times scale and stay floats else.

`weight_scale` has two opposite meanings under one name. `linear_class` says which; it is proved by the size of the
numbers, for weights are far below 1: a scale is below 1 in most matrices, 1 / scale above. Where a file of ours lies
beside (`exact_scales`), codes times scales must be the weights, bit for bit.

Shape suffixes: O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from onebit.errors import ConfigError, DataError, FormatError
from onebit.formats.anatomy import Part, describe_transformers, parts_of
from onebit.formats.checkpoint import texts_of
from onebit.formats.description import ModelDescription, TensorPlan
from onebit.formats.exact_scales import ExactScales, in_layout, read_scales
from onebit.formats.export_text import binary_of, chat_strings_of
from onebit.formats.grid import on_grid
from onebit.formats.hf_tensors import HFTensors, read_config
from onebit.formats.layout import Activation, Granularity, Kind, Layout
from onebit.formats.onebit_checks import check_model
from onebit.formats.onebit_file import OneBitFile
from onebit.formats.stored_tensor import StoredTensor
from onebit.packing import bitnet

__all__ = ["from_hf", "is_packed_bitnet"]

_PROJECTIONS = (Kind.Q, Kind.K, Kind.V, Kind.O, Kind.GATE, Kind.UP, Kind.DOWN)
_TABLES = (Kind.TOKEN_EMBEDDING, Kind.HEAD)


def is_packed_bitnet(config: dict[str, Any]) -> bool:
    """Whether a configuration is that of packed BitNet layers, or of latents that the model quantises itself."""
    told = config.get("quantization_config")
    return isinstance(told, dict) and told.get("quant_method") == "bitnet"


def from_hf(
    folder: Path,
    *,
    layout: str = "run",
    table_level: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> OneBitFile:
    """Read a folder of a family in `anatomy.FAMILIES`.

    table_level: what float embeddings and heads are rounded to ("int8", "int4"); None keeps their values, as float16
    where these are float16 numbers and as float32 else. Raises ConfigError for what .1bit has no place for, FormatError
    and DataError for a folder that is damaged or contradicts itself.
    """
    config = read_config(folder)
    told = config.get("quantization_config") or {}
    if told and not is_packed_bitnet(config):
        raise ConfigError(f"{folder}: weights packed by '{told.get('quant_method')}'; onebit reads quant_method bitnet")
    if told.get("use_rms_norm"):
        raise ConfigError(f"{folder}: use_rms_norm puts a norm into each linear layer, for which .1bit has no place")
    tensors_there = HFTensors(folder)
    _check_layers(folder, config, len(tensors_there.names))
    model = _empty_model(folder, config)
    try:
        description = describe_transformers(model, _eos(config))
    except FormatError as error:
        raise ConfigError(f"{folder}: a .1bit file cannot carry this configuration: {error}") from None
    reader = _Reader(folder, model, description, told, tensors_there)
    tensors: dict[str, StoredTensor] = {}
    plans = list(description.plan())
    for done, plan in enumerate(plans, 1):
        tensor = reader.tensor(plan, table_level)
        if tensor is not None:
            tensors[plan.name] = in_layout(tensor, layout)
        progress(done, len(plans))
    reader.refuse_leftovers()
    check_model(description, tensors, {})
    texts = texts_of(folder)
    tokenizer_json, template = texts["tokenizer"], texts["chat_template"]
    kept = {key: value for key, value in config.items() if key not in ("quantization_config", "auto_map")}
    return OneBitFile(
        description=description,
        tensors=tensors,
        config=kept,
        tokenizer_json=tokenizer_json,
        tokenizer_binary=binary_of(tokenizer_json, description),
        chat_template=template,
        chat_strings=chat_strings_of(template, tokenizer_json, description),
        manifest=texts["manifest"],
    )


def _check_layers(folder: Path, config: dict[str, Any], num_tensors: int) -> None:
    """A configuration with more layers than there are tensors would only take memory."""
    for name in ("num_hidden_layers", "n_layer"):
        layers = config.get(name, 0)
        if not isinstance(layers, int) or layers > num_tensors:
            raise DataError(
                f"{folder}: config.json says {name} {str(layers)[:20]}, but there are {num_tensors} tensors"
            )


def _empty_model(folder: Path, config: dict[str, Any]) -> Any:
    """The model of a configuration, without memory."""
    import transformers

    left_out = ("quantization_config", "dtype", "torch_dtype", "model_type", "auto_map")
    plain = {key: value for key, value in config.items() if key not in left_out}
    try:
        built = transformers.AutoConfig.for_model(str(config.get("model_type", "")), **plain)
        with torch.device("meta"):
            return transformers.AutoModelForCausalLM.from_config(built, trust_remote_code=False)
    except Exception as error:  # each configuration class has errors of its own
        message = " ".join(str(error).split())[:300]
        raise DataError(f"{folder}: config.json describes no model of transformers: {message}") from None


def _eos(config: dict[str, Any]) -> int | None:
    eos = config.get("eos_token_id")
    if isinstance(eos, list):
        eos = eos[0] if eos else None  # the first ends a text; others end a turn, as the chat template says
    return eos if isinstance(eos, int) else None


class _Reader:
    """Reads the tensors of a plan from a folder."""

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        description: ModelDescription,
        told: dict[str, Any],
        tensors: HFTensors,
    ) -> None:
        self.folder = folder
        self.parts: dict[str, Part] = parts_of(model, description)
        self.path_of = {id(module): path for path, module in model.named_modules()}
        self.tensors = tensors
        self.exact: ExactScales | None = read_scales(folder)
        self.told = told
        self.read: set[str] = set()
        self.is_inverse = told.get("linear_class", "bitlinear") == "bitlinear"
        if any(name.endswith(".weight_scale") for name in self.tensors.names):
            self._prove()

    def _prove(self) -> None:
        """Hold the meaning of weight_scale that the configuration tells against the numbers."""
        names = sorted(name for name in self.tensors.names if name.endswith(".weight_scale"))
        values = []
        for name in names:
            scale = self.tensors[name]
            if (
                scale.numel() != 1
                or not scale.is_floating_point()
                or not float(scale) > 0
                or not np.isfinite(float(scale))
            ):
                raise FormatError(f"{self.folder}: '{name}' is not one positive number")
            values.append(float(scale))
        median = float(np.median(values))
        if (median > 1) != self.is_inverse and self.exact is None:
            meaning = "1 / scale" if self.is_inverse else "the scale"
            other = "autobitlinear" if self.is_inverse else "bitlinear"
            raise FormatError(
                f"{self.folder}: the median of its {len(values)} numbers 'weight_scale' is {median:g}, which cannot be "
                f"{meaning}, as linear_class says in config.json; {other} would fit"
            )

    def tensor(self, plan: TensorPlan, table_level: str | None) -> StoredTensor | None:
        """The tensor of a plan; None for an optional one that the folder does not have."""
        path, _, parameter = plan.name.rpartition(".")
        part = self.parts.get(path)
        if part is None or getattr(part.module, parameter, None) is None:
            if plan.required:
                raise ConfigError(f"{self.folder}: its model has no {plan.name}, which a .1bit file needs")
            return None
        if plan.kind is Kind.ROPE_FREQUENCIES:
            return StoredTensor.from_values(plan.name, plan.kind, None, part.module.inv_freq.numpy())
        name = f"{self.path_of[id(part.module)]}.{parameter}"
        self.read |= {name, f"{name}_scale"}
        stored = self.tensors[name]
        try:
            if stored.dtype == torch.uint8:
                return self._packed(plan, part, name, stored)
            value = stored.t() if parameter == "weight" and type(part.module).__name__ == "Conv1D" else stored
            return self._float(plan, value if part.rows is None else value[part.rows], table_level)
        except FormatError as error:
            raise FormatError(f"{self.folder}: '{name}': {error}") from None

    def _packed(self, plan: TensorPlan, part: Part, name: str, stored: Tensor) -> StoredTensor:
        if plan.kind not in _PROJECTIONS or stored.ndim != 2:
            raise FormatError(f"uint8 of shape {tuple(stored.shape)}, but packed codes are matrices of linear layers")
        scale_name = f"{name}_scale"
        if scale_name not in self.tensors:
            raise FormatError(f"packed, but '{scale_name}' is missing")
        codes_OI = bitnet.unpack(stored)
        codes_OI = codes_OI if part.rows is None else codes_OI[part.rows]
        self._check_shape(plan, codes_OI)
        value = self.tensors[scale_name].float().reshape(())
        scale = (value.reciprocal() if self.is_inverse else value).numpy()
        codes = codes_OI.numpy()
        layout = Layout.TERNARY
        if self.exact is not None and plan.name in self.exact.scales:
            found = self.exact.scales[plan.name]
            if found.shape != () or abs(float(found) - float(scale)) > 2.0**-7 * float(found):
                raise FormatError(
                    f"its scale is {float(scale):g}, but beside it lies another; one of the two was changed"
                )
            scale = found
            layout = Layout.BINARY if self.exact.about[plan.name].get("level") == "binary" else layout
        return StoredTensor.from_codes(
            plan.name, plan.kind, plan.layer, codes, scale, layout, Granularity.PER_TENSOR, activation=Activation.INT8
        )

    def _check_shape(self, plan: TensorPlan, value: Tensor) -> None:
        expected = [(plan.rows, plan.cols)] + ([(plan.cols,)] if plan.rows == 1 else [])
        if tuple(value.shape) not in expected:
            raise FormatError(f"shape {tuple(value.shape)}, expected {expected[-1]} by config.json")

    def _float(self, plan: TensorPlan, value: Tensor, table_level: str | None) -> StoredTensor:
        self._check_shape(plan, value)
        if not value.is_floating_point():
            raise FormatError(f"{value.dtype}, expected floats")
        value = value.contiguous()
        if plan.kind not in (*_PROJECTIONS, *_TABLES):
            return StoredTensor.from_values(plan.name, plan.kind, plan.layer, value.float().numpy())
        activation = Activation.NONE
        if self.exact is not None:
            activation = self.exact.activation(plan.name) or activation
            coded = self.exact.codes_of(plan.name, value)
            if coded is not None:
                codes, scale, layout, granularity, group = coded
                return StoredTensor.from_codes(
                    plan.name, plan.kind, plan.layer, codes, scale, layout, granularity, group, activation
                )
        if plan.kind in _PROJECTIONS and self.told.get("quantization_mode") == "online":
            return self._quantized(plan, value, "absmean", Activation.INT8)
        if plan.kind in _PROJECTIONS and (grid := on_grid(value.float())) is not None:
            return StoredTensor.from_codes(plan.name, plan.kind, plan.layer, *grid, activation=activation)
        if plan.kind in _TABLES and table_level in ("int8", "int4"):
            is_head = plan.kind is Kind.HEAD or "lm_head" not in self.parts
            return self._quantized(plan, value, table_level, Activation.INT8 if is_head else Activation.NONE)
        values = value.float().numpy()
        with np.errstate(over="ignore"):
            exact = np.array_equal(values.astype(np.float16).astype(np.float32), values)
        layout = Layout.FLOAT16 if exact or table_level == "float16" else Layout.FLOAT32
        stored = StoredTensor.from_values(plan.name, plan.kind, plan.layer, values, layout)
        return StoredTensor(**{**vars(stored), "activation": activation})

    def _quantized(self, plan: TensorPlan, value: Tensor, level: str, activation: Activation) -> StoredTensor:
        from onebit.quant import WeightQuantizer, quantize

        spec = (
            WeightQuantizer()
            if level == "absmean"
            else WeightQuantizer.for_level("int8" if level == "int8" else "int4")
        )
        quantized = quantize(value.float(), spec)
        return StoredTensor.from_codes(
            plan.name,
            plan.kind,
            plan.layer,
            quantized.codes_OI.numpy(),
            quantized.scale.numpy(),
            {"absmean": Layout.TERNARY, "int8": Layout.INT8, "int4": Layout.INT4}[level],
            Granularity[spec.granularity.upper()],
            spec.group_size or 0,
            activation,
        )

    def refuse_leftovers(self) -> None:
        """Weights that no tensor of the plan read: the model computes something that .1bit does not."""
        left = {name for name in self.tensors.names - self.read if not name.endswith("rotary_emb.inv_freq")}
        left.discard("lm_head.weight")  # a tied one may be stored twice
        if left:
            listed = ", ".join(sorted(left)[:3])
            raise ConfigError(f"{self.folder}: {len(left)} tensors that a .1bit file has no place for ({listed})")
