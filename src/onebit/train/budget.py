"""From minutes to steps: time some steps before the run, so that the schedule is known and fixed when it starts."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import torch
from torch import nn

from onebit.train.trainer import next_token_loss

__all__ = ["seconds_per_step", "steps_for"]

_WARM_UP = 2
_MEASURED = 6  # steps at least
_SECONDS = 6.0  # go on measuring so long: a machine that is busy for a moment must not shorten the whole run
_LONGEST = 20.0  # seconds spent on measuring at most, however slow a step is
# Share of the time that is not forward, backward and update: reading blocks, logging, checkpoints.
_OVERHEAD = 0.05


def steps_for(seconds: float, per_step: float) -> int:
    """Return how many steps fit into `seconds`, at least one."""
    return max(int(seconds * (1.0 - _OVERHEAD) / per_step), 1)


def seconds_per_step(
    model: nn.Module,
    *,
    batch_size: int,
    block_size: int,
    vocab_size: int,
    accumulation_steps: int,
    bf16: bool,
    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
) -> float:
    """Return the time of an optimizer step on random tokens; model and random states stay as they were.

    make_optimizer: of a copy of the model, which it may change.
    The lower quartile of some seconds of steps: other programs make steps slower, none makes them faster.
    """
    device = next(model.parameters()).device
    trial = copy.deepcopy(model).train()
    optimizer = make_optimizer(trial)
    generator = torch.Generator().manual_seed(0)
    ids_BL = torch.randint(vocab_size, (batch_size, block_size), generator=generator).to(device)
    times: list[float] = []
    began = time.monotonic()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        while len(times) <= _WARM_UP or time.monotonic() - began < (
            _SECONDS if len(times) >= _WARM_UP + _MEASURED else _LONGEST
        ):
            start = time.monotonic()
            for _ in range(accumulation_steps):
                with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
                    logits_BLV = trial(input_ids=ids_BL, use_cache=False).logits
                next_token_loss(logits_BLV, ids_BL).backward()
            torch.nn.utils.clip_grad_norm_(trial.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.monotonic() - start)
    return sorted(times[_WARM_UP:])[len(times[_WARM_UP:]) // 4]
