"""BitLinear: a linear layer whose float latent weight is read through a quantiser (hybrid training).

What shaped it: it must be an nn.Linear (so that LoRA, FSDP, optimizers and `state_dict` treat it as one), compile into
one graph, work under autocast, checkpointing, deepcopy and on the meta device, cost little on a CPU, and give in
evaluation exactly the numbers that the exported file gives.

Shape suffixes: T tokens (any leading dimensions), I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onebit.errors import ConfigError, OnebitError
from onebit.nn import quantized_state
from onebit.nn.autocast import autocast_dtype
from onebit.nn.hadamard import HadamardRotation
from onebit.nn.schedule import Schedule
from onebit.nn.straight_through_linear import straight_through_linear
from onebit.quant import (
    ActivationQuantizer,
    Granularity,
    Quantized,
    QuantizerName,
    WeightQuantizer,
    add_arenas_residual,
    fake_quantize,
    fake_quantize_activations,
    has_soft_codes,
    lambda_mix,
    quantize,
    quantize_activations,
    soft_quantize,
    straight_through,
)
from onebit.quant.exact_latents import latents_from_codes
from onebit.quant.spec import check_name

__all__ = ["BitLinear", "soft_weight", "weight_quantizer_from"]

ActivationCodes = tuple[Tensor, Tensor]


def weight_quantizer_from(
    quantizer: WeightQuantizer | QuantizerName | None,
    granularity: Granularity = "per_tensor",
    group_size: int | None = None,
    weight_sparsity_threshold: float | None = None,
    center: bool = True,
) -> WeightQuantizer | None:
    """The quantiser that a layer's arguments describe; None means a float layer.

    A number for `weight_sparsity_threshold` selects the sparsity quantiser. Raises ConfigError for contradictions.
    """
    if isinstance(quantizer, WeightQuantizer) or quantizer is None:
        if weight_sparsity_threshold is not None:
            raise ConfigError("weight_sparsity_threshold needs a quantizer given by name; put it into the spec instead")
        return quantizer
    if weight_sparsity_threshold is not None:
        if quantizer not in ("absmean", "sparsity"):
            raise ConfigError(
                f"weight_sparsity_threshold is {weight_sparsity_threshold}, which selects quantizer 'sparsity', "
                f"but quantizer is {quantizer!r}; drop one of them"
            )
        return WeightQuantizer("sparsity", granularity, group_size, sparsity=weight_sparsity_threshold)
    if quantizer in ("int8", "int4", "float16"):
        return WeightQuantizer.for_level(quantizer)
    return WeightQuantizer(quantizer, granularity, group_size, center=center)


def soft_weight(w_OI: Tensor, spec: WeightQuantizer, schedule: Schedule, ste_scale_factor: float) -> Tensor:
    """The weight [O, I] as the dials have it, between its floats and its codes times scales; float32."""
    w_OI = w_OI.float()
    q_w_OI = straight_through(w_OI, fake_quantize(w_OI, spec), ste_scale_factor)
    if schedule.uses_soft_codes and has_soft_codes(spec):
        q_w_OI = torch.where(schedule.soft_alpha > 0, soft_quantize(w_OI, spec, schedule.soft_alpha), q_w_OI)
    if schedule.uses_lambda:
        q_w_OI = lambda_mix(w_OI, q_w_OI, schedule.lambda_)
    return add_arenas_residual(q_w_OI, w_OI, schedule.arenas) if schedule.uses_arenas else q_w_OI


class BitLinear(nn.Linear):
    """nn.Linear with quantised weights and activations and straight-through gradients.

    quantizer: a name, a `WeightQuantizer`, or None for a float weight. activation_quantizer: "int8" (per token),
    "sign" or "none". weight_sparsity_threshold: a share in [0, 1) selects the sparsity quantiser.
    ste_scale_factor multiplies the gradient of the latent weight. schedule: the model's soft regimes, None for none.
    rotation: turns the inputs before they are quantised, None for none; the weight is in the turned basis then.
    No norm inside. In evaluation mode, and with hard dials, it computes codes times codes times scales exactly.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        quantizer: WeightQuantizer | QuantizerName | None = "absmean",
        granularity: Granularity = "per_tensor",
        group_size: int | None = None,
        activation_quantizer: ActivationQuantizer = "int8",
        weight_sparsity_threshold: float | None = None,
        center: bool = True,
        ste_scale_factor: float = 1.0,
        schedule: Schedule | None = None,
        rotation: HadamardRotation | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        for name, size in (("in_features", in_features), ("out_features", out_features)):
            if size < 1:
                raise ConfigError(f"{name} is {size}, expected a positive number")
        check_name("activation_quantizer", activation_quantizer, get_args(ActivationQuantizer))
        if not ste_scale_factor > 0:
            raise ConfigError(f"ste_scale_factor is {ste_scale_factor}, expected a positive number")
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.weight_quantizer = weight_quantizer_from(
            quantizer, granularity, group_size, weight_sparsity_threshold, center
        )
        self.activation_quantizer: ActivationQuantizer = activation_quantizer
        self.ste_scale_factor = ste_scale_factor
        self.rotation = rotation
        # Not a submodule: the model owns the schedule, its layers only read it.
        self.__dict__["schedule"] = schedule

    def activation_codes(self, x_TI: Tensor) -> ActivationCodes | None:
        """What `forward` accepts as `x_codes`, so that layers with one input quantise it once."""
        if self.activation_quantizer == "none" or self._is_soft():
            return None
        return quantize_activations(x_TI if self.rotation is None else self.rotation(x_TI), self.activation_quantizer)

    def forward(self, x_TI: Tensor, x_codes: ActivationCodes | None = None) -> Tensor:
        """[T, I] -> [T, O]. x_codes: the result of `activation_codes(x_TI)` when the caller has it already."""
        if self.rotation is not None:
            x_TI = self.rotation(x_TI)
        if self._is_soft():
            return self._soft_forward(x_TI)
        dtype = self._compute_dtype(x_TI)
        if self.weight_quantizer is None and self.activation_quantizer == "none":
            return F.linear(x_TI.to(dtype), self.weight, self.bias)
        x_codes_TI, x_scale_T1 = self._input_codes(x_TI, x_codes, dtype)
        y_TO = straight_through_linear(
            x_TI, self.weight, x_codes_TI, x_scale_T1, self.weight_quantizer, dtype, self.ste_scale_factor
        )
        return y_TO if self.bias is None else y_TO + self.bias.to(dtype)

    def quantized(self) -> Quantized:
        """Codes and scales of the weight as they are exported; OnebitError for a float layer, NaN or infinity."""
        return quantize(self.weight.detach(), self.quantized_spec())

    def get_memory_footprint(self) -> dict[str, float]:
        """Bytes of the weight as float32 and as codes, and how many times smaller; see `quantized_state`."""
        return quantized_state.memory_footprint(self.weight.numel(), self.quantized_spec())

    def get_quantized_state(self) -> dict[str, Tensor]:
        """Codes, scale, bias and quantiser as tensors, ready for safetensors; see `quantized_state`."""
        return quantized_state.to_state(self.quantized(), self.bias, self.rotation)

    @torch.no_grad()
    def load_quantized_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `get_quantized_state` gave: the layer then computes the same and can be trained on.

        The latents are made anew, so that the quantiser gives the same codes and scales; the quantiser comes with
        them. Raises OnebitError for missing or unknown names, other shapes and impossible codes.
        """
        quantized, bias = quantized_state.from_state(state, self.weight_quantizer)
        quantized_state.check_shapes(quantized, bias, self.weight, self.bias)
        latents_OI = latents_from_codes(quantized, dtype=self.weight.dtype)
        self.weight.copy_(latents_OI)
        self.weight_quantizer = quantized.spec
        self.rotation = quantized_state.rotation_from(state, self.in_features, self.weight.device)
        if self.bias is not None and bias is not None:
            self.bias.copy_(bias)

    def quantized_spec(self) -> WeightQuantizer:
        """The weight quantiser; OnebitError for a float layer."""
        if self.weight_quantizer is None:
            raise OnebitError("this layer has no weight quantiser: read its float weight instead")
        return self.weight_quantizer

    def extra_repr(self) -> str:
        spec = self.weight_quantizer
        text = "float" if spec is None else f"{spec.quantizer} {spec.granularity}"
        if spec is not None and spec.group_size is not None:
            text += f" {spec.group_size}"
        if spec is not None and spec.sparsity is not None:
            text += f", sparsity={spec.sparsity}"
        return f"{super().extra_repr()}, weights={text}, activations={self.activation_quantizer}"

    def _is_soft(self) -> bool:
        schedule: Schedule | None = self.__dict__["schedule"]
        return self.training and schedule is not None and schedule.is_soft and self.weight_quantizer is not None

    def _input_codes(
        self, x_TI: Tensor, x_codes: ActivationCodes | None, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor | None]:
        if self.activation_quantizer == "none":
            return x_TI.detach().to(dtype), None
        return quantize_activations(x_TI, self.activation_quantizer) if x_codes is None else x_codes

    def _soft_forward(self, x_TI: Tensor) -> Tensor:
        schedule: Schedule = self.__dict__["schedule"]
        assert self.weight_quantizer is not None
        q_w_OI = soft_weight(self.weight, self.weight_quantizer, schedule, self.ste_scale_factor)
        q_x_TI = x_TI
        if self.activation_quantizer != "none":
            q_x_TI = fake_quantize_activations(x_TI, self.activation_quantizer).to(x_TI.dtype)
            q_x_TI = straight_through(x_TI, q_x_TI)
        if schedule.uses_lambda:
            q_x_TI = lambda_mix(x_TI, q_x_TI, schedule.lambda_)
        return F.linear(q_x_TI.to(self.weight.dtype), q_w_OI.to(self.weight.dtype), self.bias)

    def _compute_dtype(self, x: Tensor) -> torch.dtype:
        """The type of the matrix product and of the result: autocast's when it is on, else the weight's."""
        return autocast_dtype(x.device.type) or self.weight.dtype
