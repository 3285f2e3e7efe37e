"""Pure1BitLinear: a linear layer whose weight is codes all the way through training (pure training).

What shaped it: no float of the weight's size may outlive the layer's own computation. So the forward pass unpacks the
codes and drops them, the backward pass unpacks them again, and the gradient of the weight is handed to the weight's
counters where it is computed; autograd sees gradients for the inputs, the scale and the bias only. Codes change in the
optimizer's step alone, so checkpointing, shared weights and several backward passes all see one weight.

Shape suffixes: T tokens (any leading dimensions), I inputs, O outputs, G groups of inputs.
"""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor, nn

from onebit.errors import ConfigError, OnebitError
from onebit.nn.autocast import autocast_dtype
from onebit.nn.bit_linear import ActivationCodes, weight_quantizer_from
from onebit.nn.hadamard import HadamardRotation
from onebit.nn.pure_kernels import kernels_for
from onebit.nn.pure_products import PureProduct
from onebit.nn.pure_weight import PureWeight
from onebit.quant import (
    ActivationQuantizer,
    Granularity,
    Quantized,
    QuantizerName,
    WeightQuantizer,
    quantize_activations,
)
from onebit.quant.counters import CounterName, counter_named
from onebit.quant.spec import check_name

__all__ = ["Pure1BitLinear", "check_pure_spec"]


def check_pure_spec(spec: WeightQuantizer | None) -> WeightQuantizer:
    """The quantiser, when pure training knows its codes; ConfigError for a float layer and for more than two bits."""
    if spec is None or not (spec.is_ternary or spec.quantizer == "binary"):
        given = None if spec is None else spec.quantizer
        raise ConfigError(f"quantizer is {given!r}, but pure training has ternary and binary codes only")
    return spec


class Pure1BitLinear(nn.Module):
    """y = x W^T + bias with W = codes * scale; ternary or binary codes with integer counters, no float weight.

    quantizer, granularity, group_size: how latents become codes, as `BitLinear`. counter: "int8" (1 byte a weight),
    "int4" (half a byte) or "none". activation_quantizer: "int8" (per token), "sign" or "none". The first codes are
    those of the latents that nn.Linear would begin with. `weight` is a `PureWeight`, which an optimizer made by
    `create_pure1bit_optimizer` trains; without one, gradients reach inputs, scale and bias and the codes stay.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        quantizer: WeightQuantizer | QuantizerName = "absmean",
        granularity: Granularity = "per_tensor",
        group_size: int | None = None,
        activation_quantizer: ActivationQuantizer = "int8",
        counter: CounterName = "int8",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        for name, size in (("in_features", in_features), ("out_features", out_features)):
            if size < 1:
                raise ConfigError(f"{name} is {size}, expected a positive number")
        check_name("activation_quantizer", activation_quantizer, get_args(ActivationQuantizer))
        spec = check_pure_spec(weight_quantizer_from(quantizer, granularity, group_size))
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.activation_quantizer: ActivationQuantizer = activation_quantizer
        self.rotation: HadamardRotation | None = None  # of a BitLinear that this layer was
        self.weight = PureWeight(in_features, out_features, spec, counter_named(counter), device)
        start = nn.Linear(in_features, out_features, bias, device=device, dtype=dtype)
        self.bias = start.bias
        if not start.weight.is_meta:
            self.weight.set_latents(start.weight.detach())

    def activation_codes(self, x_TI: Tensor) -> ActivationCodes | None:
        """What `forward` accepts as `x_codes`, so that layers with one input quantise it once."""
        if self.activation_quantizer == "none":
            return None
        return self._input_codes(x_TI if self.rotation is None else self.rotation(x_TI))

    def forward(self, x_TI: Tensor, x_codes: ActivationCodes | None = None) -> Tensor:
        """[T, I] -> [T, O], in autocast's type when it is on and the inputs' otherwise.

        x_codes: the result of `activation_codes(x_TI)` when the caller has it already.
        """
        if x_TI.ndim == 1:
            result: Tensor = self.forward(x_TI.unsqueeze(0)).squeeze(0)
            return result
        if self.rotation is not None:
            x_TI = self.rotation(x_TI)
        dtype = self._compute_dtype(x_TI)
        w = self.weight
        codes_TI: Tensor
        scale_T1: Tensor | None
        if self.activation_quantizer == "none":
            codes_TI, scale_T1 = x_TI.detach().to(dtype), None
        else:
            codes_TI, scale_T1 = self._input_codes(x_TI) if x_codes is None else x_codes
        y_TO: Tensor = PureProduct.apply(  # type: ignore[no-untyped-call]
            x_TI,
            w.log_scale,
            w.group_scales,
            w.codes,
            codes_TI,
            scale_T1,
            self.in_features,
            w.spec.group_size or 0,
            w.is_binary,
            w.handle,
            w.out_features if w.rows.is_part else 0,
            dtype,
        )
        return y_TO if self.bias is None else y_TO + self.bias.to(dtype)

    def quantized(self) -> Quantized:
        """Codes and scales of the weight as they are exported."""
        return self.weight.quantized()

    def extra_repr(self) -> str:
        has_bias = self.bias is not None
        return f"{self.in_features}, {self.out_features}, bias={has_bias}, activations={self.activation_quantizer}"

    def _input_codes(self, x_TI: Tensor) -> ActivationCodes:
        if self.activation_quantizer != "int8" or torch.compiler.is_compiling():  # a compiler fuses what it sees
            return quantize_activations(x_TI, self.activation_quantizer)
        return kernels_for(x_TI).input_codes(x_TI)

    def _compute_dtype(self, x: Tensor) -> torch.dtype:
        dtype = autocast_dtype(x.device.type) or x.dtype
        if dtype == torch.float16 and self.weight.handle and torch.is_grad_enabled():
            raise OnebitError(
                "pure training was given float16, whose loss scaling skips steps after their gradients were deposited; "
                "use bfloat16 (--bf16) or float32"
            )
        return dtype
