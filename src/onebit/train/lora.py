"""LoRA on a ternary base: PEFT adapters over frozen BitLinears, and the merge back into ternary.

Two forms. `inside`: the adapter is added to the latent and goes through the quantiser with it, Q(W + s B A), straight
through for gradients; merging adds it for good and changes nothing that is computed. `beside`: PEFT's own, a float path
next to the ternary one, Q(W) x + s B A x; merging rounds W + s B A, and what that costs is measured.

Shape suffixes: O outputs, I inputs.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners import lora
from torch import Tensor, nn
from torch.func import functional_call

from onebit.errors import ConfigError, OnebitError, nearest_name
from onebit.nn import BitLinear, bit_layers
from onebit.nn.attached_norms import attached_norms
from onebit.nn.hadamard import HadamardRotation
from onebit.quant import ActivationQuantizer
from onebit.train.code_metrics import code_snapshot, flip_share

__all__ = ["LoraForm", "add_adapters", "losses_around_merge", "merge_adapters"]

LoraForm = Literal["inside", "beside"]


class _Adapted(lora.Linear):
    """Answers what our own model asks a layer before it calls it, as the layer itself would."""

    @property
    def activation_quantizer(self) -> ActivationQuantizer:
        base: Any = self.get_base_layer()
        kind: ActivationQuantizer = base.activation_quantizer
        return kind

    def activation_codes(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        base: Any = self.get_base_layer()
        codes: tuple[Tensor, Tensor] | None = base.activation_codes(x)
        return codes


class _Inside(_Adapted):
    """The adapter's product is added to the latent weight, before it is quantised."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[T, I] -> [T, O]."""
        base: Any = self.get_base_layer()
        if self.disable_adapters or self.merged:
            y_TO: Tensor = super().forward(x, *args, **kwargs)
            return y_TO
        weight_OI = base.weight
        for name in self.active_adapters:
            if name in self.lora_A:
                weight_OI = weight_OI + self.get_delta_weight(name).to(weight_OI.dtype)
        through: Tensor = functional_call(base, {"weight": weight_OI}, (x, *args), kwargs)
        return through


class _Beside(_Adapted):
    """PEFT's layer; what it merges is turned first where the base's latents are in a turned basis."""

    def get_delta_weight(self, adapter: str) -> Tensor:
        """What merging adds to the latent, [O, I]."""
        delta_OI: Tensor = super().get_delta_weight(adapter)
        base: Any = self.get_base_layer()
        rotation: HadamardRotation | None = base.rotation
        if rotation is None:
            return delta_OI
        turned_OI: Tensor = rotation(delta_OI)
        return turned_OI.to(delta_OI.dtype)


def add_adapters(
    model: Any,
    *,
    rank: int = 16,
    alpha: int = 32,
    dropout: float = 0.0,
    target_modules: tuple[str, ...] | None = None,
    form: LoraForm = "inside",
) -> Any:
    """Freeze a converted model and give its BitLinears adapters: a PeftModel, of which only these are trained.

    target_modules: ends of names, None for every BitLinear but the head. dropout is on the adapter's inputs, which only
    `beside` has.

    Raises:
        ConfigError: no BitLinear has such a name, or the form does not go with dropout or added norms.
    """
    if form not in get_args(LoraForm):
        known = get_args(LoraForm)
        raise ConfigError(f"--lora-form is '{form}'; it must be {' or '.join(known)}{nearest_name(form, known)}")
    if form == "inside" and dropout > 0:
        raise ConfigError(
            f"--lora-dropout is {dropout}, but inside the quantiser no input can be dropped; leave it out"
        )
    if form == "beside" and attached_norms(model):
        raise ConfigError("--lora-form beside does not go with added norms, which it would pass by; use inside")
    names = [name for name, module in bit_layers(model) if module is not model.get_output_embeddings()]
    ends = {name.rpartition(".")[2] for name in names}
    for target in target_modules or ():
        if not any(name == target or name.endswith(f".{target}") for name in names):
            hint = nearest_name(target, ends) or f"; there are {', '.join(sorted(ends))}"
            raise ConfigError(f"--lora-target-modules: no BitLinear's name ends in '{target}'{hint}")
    if not names:
        raise OnebitError("the model has no BitLinear to adapt; convert it first")
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=list(target_modules or names),
        task_type="CAUSAL_LM",
    )
    config._register_custom_module({BitLinear: _Inside if form == "inside" else _Beside})
    return get_peft_model(model, config)


@torch.no_grad()
def merge_adapters(model: Any) -> float:
    """Merge the adapters into the latents, in place; the share of codes that are others afterwards.

    The model stays a PeftModel, whose layers now compute with the merged latents; `model.unload()` gives the model
    without adapters back.

    Raises:
        OnebitError: a merged weight is no number.
    """
    before = code_snapshot(model)
    try:
        model.merge_adapter(safe_merge=True)
    except ValueError as error:
        raise OnebitError(f"the adapters cannot be merged: {error}; train again at a lower --learning-rate") from None
    return flip_share(before, code_snapshot(model))


def losses_around_merge(trainer: Any) -> dict[str, Any]:
    """Merge a Trainer's adapters; the validation losses in nats without, with and after, None without validation rows.

    The Trainer's model is then the one without adapters.
    """

    def loss(name: str) -> float | None:
        if trainer.eval_dataset is None:
            return None
        value = float(trainer.evaluate(metric_key_prefix=name)[f"{name}_loss"])
        return value if math.isfinite(value) else None

    model = trainer.model
    with model.disable_adapter():
        told: dict[str, Any] = {"loss_of_base": loss("base")}
    told["loss_before_merge"] = loss("adapted")
    told["codes_changed"] = merge_adapters(model)
    told["loss_after_merge"] = loss("merged")
    trainer.model = trainer.model_wrapped = _without(model)
    return told


def _without(model: Any) -> nn.Module:
    plain: nn.Module = model.unload()
    plain.requires_grad_(True)
    return plain
