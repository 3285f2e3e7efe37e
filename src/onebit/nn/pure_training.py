"""What a user of pure training calls: an optimizer for a converted model, one step, and the way out.

    optimizer, helper = create_pure1bit_optimizer(model, lr=1e-4)
    loss = pure1bit_training_step(model, optimizer, helper, loss_fn, inputs, targets)
    helper.cleanup()

The optimizer alone is enough for any other loop: ``Trainer(model, optimizers=(optimizer, None))``.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from onebit.errors import ConfigError, OnebitError
from onebit.nn.pure_weight import PureWeight
from onebit.optim import decaying_parameter_names
from onebit.optim.pure1bit_optimizer import DEFAULT_ACCUMULATION, Accumulation, Pure1BitOptimizer
from onebit.optim.pure_rules import Rule

__all__ = [
    "Pure1BitTrainingHelper",
    "create_pure1bit_optimizer",
    "pure1bit_training_step",
    "pure_weights",
    "shard_pure_weights",
]

_log = logging.getLogger(__name__)


def pure_weights(model: nn.Module) -> dict[str, PureWeight]:
    """Every matrix of codes by its dotted name, a shared one once."""
    return {name: module for name, module in model.named_modules() if isinstance(module, PureWeight)}


def shard_pure_weights(model: nn.Module) -> nn.Module:
    """Divide codes and counters of every matrix by rows over the processes, in place, and return the same model.

    A forward pass collects the packed codes of a layer and drops them, a backward pass does so again and leaves each
    process the gradient of its own rows: 1.25 bytes a weight become 1.25 over the number of processes. Everything else
    stays whole in every process, for DDP or another wrapper. Codes and counters become those of one process with the
    same gradients, bit for bit. A state_dict is that of one process, whatever the number.

    Call it in every process, with the same model, before `create_pure1bit_optimizer`; then all processes have to run
    the model, ask for its state_dict, telemetry or latents together. Nothing to do with one process. Raises OnebitError
    where an optimizer trains the codes already.
    """
    weights = pure_weights(model).values()
    if any(weight.handle for weight in weights):
        raise OnebitError("an optimizer trains this model's codes already; call shard_pure_weights before it is made")
    if dist.is_available() and dist.is_initialized():
        for weight in weights:
            weight.shard()
    return model


def create_pure1bit_optimizer(
    model: nn.Module,
    lr: float = 1e-4,
    *,
    eta: float | None = None,
    betas: tuple[float, float] = (0.9, 0.98),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    seed: int = 0,
    gradient_accumulation_steps: int | None = None,
    accumulation: Accumulation = DEFAULT_ACCUMULATION,
    rule: Rule | None = None,
) -> tuple[Pure1BitOptimizer, Pure1BitTrainingHelper]:
    """The optimizer of a model with Pure1BitLinear layers, and a helper that watches and releases it.

    From here on every backward pass feeds the layers' counters. Arguments as `Pure1BitOptimizer`; weight_decay acts on
    matrices that stayed float. A weight whose `log_scale` is frozen keeps its codes. Raises OnebitError for a model
    without such layers, ConfigError for wrong numbers.
    """
    weights = pure_weights(model)
    frozen = [name for name, weight in weights.items() if not weight.log_scale.requires_grad]
    weights = {name: weight for name, weight in weights.items() if name not in frozen}
    if frozen and not weights:
        raise OnebitError(f"all {len(frozen)} matrices of codes are frozen; call requires_grad_() on those to train")
    if not weights:
        raise OnebitError(
            "the model has no Pure1BitLinear layer; call replace_linear_with_pure1bit_linear(model) first"
        )
    if any(weight.handle for weight in weights.values()):
        raise OnebitError("another optimizer trains this model's codes already; call cleanup() of its helper first")
    if rule is not None and any(weight.rows.is_part for weight in weights.values()):
        raise ConfigError(f'the rule "{rule.name}" keeps floats of whole matrices; leave out shard_pure_weights')
    scales = {id(weight.log_scale) for weight in weights.values()}
    decaying = set(decaying_parameter_names(model))
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad and id(p) not in scales]
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in named if name in decaying]},
        {"params": [p for name, p in named if name not in decaying], "weight_decay": 0.0},
    ]
    optimizer = Pure1BitOptimizer(
        [group for group in groups if group["params"]],
        _numbered(weights),
        lr,
        eta=eta,
        betas=betas,
        eps=eps,
        weight_decay=weight_decay,
        seed=seed,
        gradient_accumulation_steps=gradient_accumulation_steps,
        accumulation=accumulation,
        rule=rule,
    )
    if rule is None:
        etas = [float(optimizer.eta(weight)) for weight in weights.values()]
        _log.info("pure training of %d matrices: lr %g, eta %.4g to %.4g", len(etas), lr, min(etas), max(etas))
    else:
        _log.info("pure training of %d matrices: lr %g, rule %s", len(weights), lr, rule)
    return optimizer, Pure1BitTrainingHelper(optimizer)


def _numbered(weights: dict[str, PureWeight]) -> dict[int, PureWeight]:
    """Numbers in [0, 2^32) by name, so that a weight keeps its random numbers whatever else the model has."""
    numbered: dict[int, PureWeight] = {}
    for name, weight in weights.items():
        number = zlib.crc32(name.encode())
        while number in numbered:
            number = (number + 1) % 2**32
        numbered[number] = weight
    return numbered


class Pure1BitTrainingHelper:
    """Watches a run of pure training; `cleanup` ends it."""

    def __init__(self, optimizer: Pure1BitOptimizer) -> None:
        self.optimizer = optimizer

    @torch.no_grad()
    def telemetry(self) -> dict[str, float]:
        """How the codes are, over all matrices.

        flips: share of codes that the last step moved (0.001 to 0.004 in the middle of a healthy run, falling below
        0.0005); zeros: share of codes that are 0; fill: mean |counter| over the threshold; saturated: share of counters
        at their bound.
        """
        flips = zeros = fill = saturated = 0.0
        count = 0
        for weight in self.optimizer.weights:
            counts, codes = weight.counts(), weight.quantized().codes_OI
            count += codes.numel()
            flips += 0.0 if weight.moves is None else float(weight.rows.sum(weight.moves))
            zeros += float((codes == 0).sum())
            fill += float(counts.abs().sum(dtype=torch.int64)) / weight.counter.threshold
            saturated += float((counts.abs() == weight.counter.bound).sum())
        totals = {"flips": flips, "zeros": zeros, "fill": fill, "saturated": saturated}
        return {name: value / max(count, 1) for name, value in totals.items()}

    def cleanup(self) -> None:
        """End the training: the model keeps its codes, and backward passes feed no counters any more."""
        self.optimizer.detach()


def pure1bit_training_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    helper: Pure1BitTrainingHelper,
    loss_fn: Callable[[Any, Any], Tensor],
    inputs: Any,
    targets: Any,
) -> Tensor:
    """One step: loss_fn(model(inputs), targets), backward, the optimizer's step. Returns the loss, detached."""
    if helper.optimizer is not optimizer and getattr(optimizer, "optimizer", None) is not helper.optimizer:
        raise OnebitError("the helper is another optimizer's; pass the two that create_pure1bit_optimizer returned")
    optimizer.zero_grad()
    loss = loss_fn(model(inputs), targets)
    loss.backward()
    optimizer.step()
    return loss.detach()
