"""What each of two processes does for test_pure_sharding.py: python -m ...sharded_program FOLDER RANK [compiled]."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from onebit.errors import ConfigError, OnebitError
from onebit.nn import (
    Pure1BitLinear,
    create_pure1bit_optimizer,
    pure_weights,
    replace_pure1bit_linear_with_bitlinear,
    shard_pure_weights,
)
from onebit.optim.pure_rules import Bop

from . import pure_models
from .pure_models import IDS, loss_of, pure_model

FORMS: dict[str, dict[str, Any]] = {
    "ternary": {},
    "tied": {"tied": True},
    "per row, int4": {"granularity": "per_row", "counter": "int4"},
    "per group, none": {"granularity": "per_group", "group_size": 64, "counter": "none"},
    "binary": {"quantizer": "binary", "activation_quantizer": "none"},
}
ACCUMULATIONS = ("bfloat16", "int8", "deposit")
STEPS, PARTS = 4, 2


def gradient(rows: int, step: int, part: int, rank: int) -> Tensor:
    """A gradient of one process, [rows, 71]."""
    generator = torch.Generator().manual_seed(((rows * 10 + step) * 10 + part) * 10 + rank)
    return torch.randn(rows, 71, generator=generator) * torch.rand(rows, 1, generator=generator)


def layer(rows: int) -> nn.Sequential:
    torch.manual_seed(rows)
    return nn.Sequential(Pure1BitLinear(71, rows))


def take_steps(model: nn.Module, accumulation: Any, steps: range, given: Any, state: Any = None) -> Any:
    """Steps with gradients given(step, part); the optimizer's state, from `state` on if there is one."""
    optimizer, _ = create_pure1bit_optimizer(
        model, lr=2e-2, accumulation=accumulation, gradient_accumulation_steps=PARTS
    )
    if state is not None:
        optimizer.load_state_dict(state)
    for step in steps:
        for part in range(PARTS):
            for weight in optimizer.weights:
                weight.take(given(step, part))
        optimizer.step()
        optimizer.zero_grad()
    told = optimizer.state_dict()
    optimizer.detach()
    return told


def parallel_run(form: dict[str, Any], rank: int, *, sharded: bool, called: Any = None, seed: int = 0) -> Any:
    """(the model, its helper) after three steps under DDP, each process with its half of a batch."""
    model = pure_model(seed=seed, **form)
    if sharded:
        shard_pure_weights(model)
    # Deposited as they come: sums would be rounded before the processes' gradients meet, or after.
    optimizer, helper = create_pure1bit_optimizer(model, lr=2e-2, accumulation="deposit")
    parallel = nn.parallel.DistributedDataParallel(model if called is None else called(model))
    for step in range(3):
        loss_of(parallel, IDS[step].chunk(2)[rank]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, helper


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return list(one) == list(other) and all(torch.equal(value, other[name]) for name, value in one.items())


def under_ddp(rank: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, form in FORMS.items():
        whole, whole_helper = parallel_run(form, rank, sharded=False)
        model, helper = parallel_run(form, rank, sharded=True)
        state = model.state_dict()
        found[name] = {
            "same": same(state, whole.state_dict()),
            "moved": not torch.equal(state["up.weight.codes"], pure_model(**form).up.weight.codes),
            "bytes": [
                sum(weight.codes.nbytes + weight.counters.nbytes for weight in pure_weights(each).values())
                for each in (model, whole)
            ],
            "telemetry": [helper.telemetry(), whole_helper.telemetry()],
            "same tied storage": state["up.weight.codes"].is_set_to(state["again.weight.codes"]),
        }
        if name == "ternary":
            found["saved"] = saved_shapes(model)
            copied = copy.deepcopy(model).to(torch.bfloat16)
            found["copy"] = same(copied.up.weight.state_dict(), whole.up.weight.state_dict())
            fresh = shard_pure_weights(pure_model(seed=1))
            result = fresh.load_state_dict(whole.state_dict())
            found["loaded"] = same(fresh.state_dict(), whole.state_dict()), list(map(list, result))
            del state["up.weight.codes"]
            found["missing"] = fresh.load_state_dict(state, strict=False).missing_keys
            helper.cleanup()
            latents = replace_pure1bit_linear_with_bitlinear(model)
            found["latents"] = same(latents.state_dict(), replace_pure1bit_linear_with_bitlinear(whole).state_dict())
    return found


def saved_shapes(model: nn.Module) -> list[tuple[int, ...]]:
    """Shapes of the packed codes that autograd holds between forward and backward."""
    shapes: list[tuple[int, ...]] = []

    def see(tensor: Tensor) -> Tensor:
        if tensor.dtype == torch.uint8:
            shapes.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
        loss_of(model, IDS[0])
    return shapes


def checkpointed(rank: int) -> bool:
    def under_checkpoints(model: nn.Module) -> nn.Module:
        for part in (model.up, model.down, model.again, model.back):
            plain = part.forward
            part.forward = lambda x, plain=plain: torch.utils.checkpoint.checkpoint(plain, x, use_reentrant=False)
        return model

    plain, _ = parallel_run({}, rank, sharded=True)
    recomputed, _ = parallel_run({}, rank, sharded=True, called=under_checkpoints)
    return same(plain.state_dict(), recomputed.state_dict())


def single_layers(folder: Path, rank: int) -> dict[Any, Any]:
    """Layers of few and of odd rows, fed with gradients; and going on from what one process left."""
    found: dict[Any, Any] = {}
    for rows in (1, 5):
        for accumulation in ACCUMULATIONS:
            model = shard_pure_weights(layer(rows))
            given = lambda step, part: gradient(rows, step, part, rank)  # noqa: B023, E731
            told = take_steps(model, accumulation, range(STEPS), given)
            found[rows, accumulation] = model.state_dict(), told
            model = shard_pure_weights(layer(rows))
            left = torch.load(folder / "left.pt", weights_only=True)[rows, accumulation]
            model.load_state_dict(left[0])
            take_steps(model, accumulation, range(STEPS, STEPS + 2), given, left[1])
            found[rows, accumulation, "on"] = model.state_dict()
    return found


def bad_numbers(rank: int) -> bool:
    """Whether a gradient that is no number in one process leaves the counters of both."""
    model = shard_pure_weights(layer(5))
    take_steps(model, "int8", range(1), lambda step, part: gradient(5, step, part, rank))
    before = model.state_dict()
    take_steps(model, "bfloat16", range(1), lambda step, part: gradient(5, step, part, rank) * (torch.nan, 1.0)[rank])
    after = model.state_dict()
    return all(torch.equal(value, before[name]) for name, value in after.items() if not name.endswith("deposits"))


def refusals() -> list[str]:
    said = []
    model = pure_model()
    _, helper = create_pure1bit_optimizer(model)
    for attempt in (
        lambda: shard_pure_weights(model),
        lambda: create_pure1bit_optimizer(shard_pure_weights(pure_model()), rule=Bop(tau=1.0)),
        lambda: shard_pure_weights(layer(5))[0].weight.set_latents(torch.zeros(5, 71)),
    ):
        try:
            attempt()
        except (OnebitError, ConfigError) as error:
            said.append(str(error))
    helper.cleanup()
    return said


def compiled(rank: int) -> bool:
    eager, _ = parallel_run({}, rank, sharded=True)
    graph, _ = parallel_run(
        {}, rank, sharded=True, called=lambda model: torch.compile(model, fullgraph=True, backend="aot_eager")
    )
    return same(eager.state_dict(), graph.state_dict())


def main(folder: Path, rank: int, *, only_compiled: bool) -> None:
    torch.set_num_threads(1)
    pure_models.WIDE = 71  # an odd number of rows, and no multiple of a byte's codes
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found: dict[str, Any]
    if only_compiled:
        found = {"compiled": compiled(rank)}
    else:
        found = {
            "ddp": under_ddp(rank),
            "checkpointed": checkpointed(rank),
            "layers": single_layers(folder, rank),
            "bad numbers": bad_numbers(rank),
            "refusals": refusals(),
        }
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), only_compiled=len(sys.argv) > 3)
