"""A small model for the tests of pure training, and what a run of it leaves."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from onebit.nn.pure_conversion import replace_linear_with_pure1bit_linear
from onebit.nn.pure_linear import Pure1BitLinear
from onebit.nn.pure_training import create_pure1bit_optimizer

IDS = torch.randint(0, 50, (6, 4, 12), generator=torch.Generator().manual_seed(0))
WIDE = 70  # no multiple of a byte's codes


class Small(nn.Module):
    """Token by token: no attention, as what is tested is inside the layers."""

    def __init__(self, *, tied: bool = False) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(50, 32)
        self.norm = nn.LayerNorm(32)
        self.up = nn.Linear(32, WIDE)
        self.down = nn.Linear(WIDE, 32, bias=False)
        self.again = nn.Linear(32, WIDE)
        self.back = nn.Linear(WIDE, 32)
        if tied:
            self.again.weight = self.up.weight
        self.lm_head = nn.Linear(32, 50, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed_tokens(ids)
        x = x + self.down(torch.relu(self.up(self.norm(x))))
        x = x + self.back(torch.relu(self.again(self.norm(x))))
        return self.lm_head(x)


def pure_model(*, tied: bool = False, seed: int = 0, **arguments: Any) -> Small:
    torch.manual_seed(seed)
    model = Small(tied=tied)
    replace_linear_with_pure1bit_linear(model, **arguments)
    return model


def loss_of(model: Callable[[Tensor], Tensor], ids: Tensor) -> Tensor:
    logits = model(ids)
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())


def train(model: nn.Module, steps: int = 3, **arguments: Any) -> Any:
    """The optimizer after some steps of one batch each."""
    optimizer, _ = create_pure1bit_optimizer(model, **{"lr": 2e-2, **arguments})
    for step in range(steps):
        loss_of(model, IDS[step % len(IDS)]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def layers_of(model: nn.Module) -> list[Pure1BitLinear]:
    return [module for module in model.modules() if isinstance(module, Pure1BitLinear)]


def live_float_shapes() -> set[tuple[int, ...]]:
    """Shapes of every float tensor that anything in the process holds; a compiler's fake ones have no memory."""
    gc.collect()
    found = set()
    for thing in gc.get_objects():
        kind = type(thing)  # isinstance would wake lazy modules
        if issubclass(kind, Tensor) and kind.__name__ != "FakeTensor" and thing.is_floating_point():
            found.add(tuple(thing.shape))
    return found
