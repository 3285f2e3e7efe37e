"""The training loop of the quality benchmark: as little as possible between the two methods that are compared.

All methods share everything but the quantiser and the learning rate: the initial weights, the batches and their order,
the optimizer, the schedule's shape. `onebit train` does the same through the Trainer; here the loop is bare, so that a
run of a few minutes on one core spends its time in the model and a reader can check the protocol on one page.

Shape suffixes: N tokens of a text, B windows in a batch, T positions of a window, C hidden size.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from onebit.eval.perplexity import windows
from onebit.models import OneBitConfig, OneBitForCausalLM
from onebit.optim import LearningRate, Muon, decaying_parameter_names, muon_groups

EVALUATION_BATCH = 16  # windows scored at once


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run; two runs that differ only in `config.quantizer` and `learning_rate` form a pair of twins."""

    config: OneBitConfig
    learning_rate: float
    steps: int
    seed: int
    batch_size: int = 8
    context: int = 128
    optimizer: str = "muon"
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    warmup_fraction: float = 0.05
    clip: float = 1.0
    evaluations: int = 6
    selection_windows: int = 128  # validation windows that choose the best checkpoint


@dataclass
class Trained:
    """What a run gave: the best model, and its way there. Losses in nats per token."""

    model: OneBitForCausalLM
    best_step: int
    steps: list[int] = field(default_factory=list)
    train_losses: list[float] = field(default_factory=list)
    selection_losses: list[float] = field(default_factory=list)
    tokens_per_s: float = 0.0


def train(
    run: Run, train_N: Tensor, validation_N: Tensor, say: Callable[[int, float, float], None] | None = None
) -> Trained:
    """Train from scratch and return the model of the best evaluation; `say` gets (step, train loss, validation loss).

    train_N, validation_N: token ids, int64. Batches are windows at uniformly random places.
    """
    torch.manual_seed(run.seed)
    model = OneBitForCausalLM(run.config).train()
    optimizer = make_optimizer(model, run)
    rate = LearningRate(
        peak=run.learning_rate,
        warmup_steps=round(run.warmup_fraction * run.steps),
        total_steps=run.steps,
        decay="linear",
    )
    generator = torch.Generator().manual_seed(run.seed)  # its own, so that no method can shift the order of the data
    selection = selection_windows(len(validation_N), run)
    trained, best, best_loss = Trained(model, 0), copy.deepcopy(model.state_dict()), math.inf
    every = max(1, run.steps // run.evaluations)
    losses: list[Tensor] = []
    seconds = 0.0
    for step in range(run.steps):
        began = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        starts = torch.randint(len(train_N) - run.context, (run.batch_size,), generator=generator)
        tokens_BT1 = torch.stack([train_N[start : start + run.context + 1] for start in starts.tolist()])
        loss = batch_loss(model, tokens_BT1)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), run.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
        seconds += time.perf_counter() - began
        if (step + 1) % every == 0 or step + 1 == run.steps:
            selected = mean_loss(model, validation_N, selection)
            trained.steps.append(step + 1)
            trained.train_losses.append(float(torch.stack(losses).mean()))
            trained.selection_losses.append(selected)
            if selected < best_loss:
                best, best_loss, trained.best_step = copy.deepcopy(model.state_dict()), selected, step + 1
            if say is not None:
                say(step + 1, trained.train_losses[-1], selected)
            losses.clear()
    model.load_state_dict(best)
    trained.tokens_per_s = run.steps * run.batch_size * run.context / seconds
    return trained


def make_optimizer(model: OneBitForCausalLM, run: Run) -> torch.optim.Optimizer:
    """Muon or AdamW; weight decay on the matrices of the layers only, as `onebit train` does."""
    decaying = set(decaying_parameter_names(model))
    if run.optimizer == "muon":
        return Muon(muon_groups(model, decaying, run.weight_decay), run.learning_rate, betas=run.betas)
    groups = [
        {"params": [p for name, p in model.named_parameters() if name in decaying], "weight_decay": run.weight_decay},
        {"params": [p for name, p in model.named_parameters() if name not in decaying], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=run.learning_rate, betas=run.betas, fused=True)


def batch_loss(model: OneBitForCausalLM, tokens_BT1: Tensor) -> Tensor:
    """Mean next-token loss of a batch, matrix products in bfloat16 where the processor has it (for all methods)."""
    with torch.autocast("cpu", torch.bfloat16):
        x_BTC = model.model(input_ids=tokens_BT1[:, :-1], use_cache=False).last_hidden_state
        return F.cross_entropy(model.lm_head(x_BTC).flatten(0, 1).float(), tokens_BT1[:, 1:].flatten())


def selection_windows(num_tokens: int, run: Run) -> list[int]:
    """Starts of the validation windows that choose the checkpoint: spread evenly, the same for every run."""
    starts = [w.start for w in windows(num_tokens, run.context) if w.stop - w.start == run.context]
    step = max(1, len(starts) // run.selection_windows)
    return starts[::step][: run.selection_windows]


@torch.no_grad()
def mean_loss(model: OneBitForCausalLM, tokens_N: Tensor, starts: list[int], bf16: bool = True) -> float:
    """Mean loss over whole windows, in nats per token."""
    model.eval()
    context = model.config.max_seq_len
    total = 0.0
    for i in range(0, len(starts), EVALUATION_BATCH):
        part = starts[i : i + EVALUATION_BATCH]
        tokens_BT1 = torch.stack([tokens_N[start : start + context + 1] for start in part])
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            x_BTC = model.model(input_ids=tokens_BT1[:, :-1], use_cache=False).last_hidden_state
            logits = model.lm_head(x_BTC).flatten(0, 1).float()
        total += float(F.cross_entropy(logits, tokens_BT1[:, 1:].flatten(), reduction="sum"))
    model.train()
    return total / (len(starts) * context)


@torch.no_grad()
def total_loss(model: OneBitForCausalLM, tokens_N: Tensor, context: int) -> float:
    """Sum of -ln p in nats of every token but the first, in float32, by the windowing rule of onebit.eval."""
    whole = [w for w in windows(len(tokens_N), context) if w.stop - w.start == context]
    rest = [w for w in windows(len(tokens_N), context) if w.stop - w.start != context]
    total = mean_loss(model, tokens_N, [w.start for w in whole], bf16=False) * len(whole) * context
    model.eval()
    for w in rest:
        x_BTC = model.model(input_ids=tokens_N[None, w.start : w.stop], use_cache=False).last_hidden_state
        logits = model.lm_head(x_BTC)[0].float()
        total += float(F.cross_entropy(logits, tokens_N[w.start + 1 : w.stop + 1], reduction="sum"))
    return total
