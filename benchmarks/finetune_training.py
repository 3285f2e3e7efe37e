"""The models, the loop and the judge of the fine-tuning benchmark; conversion, losses and schedules are the library's.

`onebit sft` and `onebit distill` do the same through TRL's trainer; here the loop is bare, so that a run of minutes
spends its time in the model and a reader can check the protocol on one page.

Shape suffixes: N tokens of a text or predictions, B windows in a batch, T positions of a window, V vocabulary.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onebit.eval.perplexity import windows
from onebit.models.converted import Conversion, convert_model
from onebit.nn import BitEmbedding, Schedule
from onebit.optim import LearningRate, Muon, decaying_parameter_names, lambda_mix, muon_groups
from onebit.quant import WeightQuantizer
from onebit.train.distill_losses import kl_top_k, top_k_log_probs

EVALUATION_BATCH = 16  # windows scored at once
NORM_BATCHES = 2  # of the samples; added norms are fitted to 16 windows, as `onebit sft` does
TOP_K = 64  # of the teacher's probabilities, the default of `onebit distill`


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How one run trains."""

    learning_rate: float
    steps: int
    seed: int
    optimizer: str = "muon"
    batch_size: int = 8
    context: int = 128
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    warmup_fraction: float = 0.05
    clip: float = 1.0
    evaluations: int = 6
    selection_windows: int = 64  # validation windows that choose the best checkpoint


@dataclass(frozen=True, kw_only=True)
class Ingredients:
    """What an arm does beside fine-tuning. The twin, the fine-tuned float model, is what it distils or starts from."""

    ternary: bool = True
    trains: bool = True
    lambda_fraction: float = 0.0
    sub_norms: bool = False
    hadamard_block: int | None = None
    calibrated: bool = False
    group_size: int = 128
    tables: bool = False
    from_twin: bool = False
    distills: bool = False
    hard_label_weight: float = 1.0


@dataclass
class Trained:
    """Where a run went; the model holds the weights of the best evaluation. Losses in nats per token."""

    best_step: int = 0
    steps: list[int] = field(default_factory=list)
    train_losses: list[float] = field(default_factory=list)
    selection_losses: list[float] = field(default_factory=list)


def make_float_model(shape: Mapping[str, Any], vocab_size: int) -> nn.Module:
    """A Qwen3 model from its configuration, with random weights; head and embedding are not tied."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(vocab_size=vocab_size, tie_word_embeddings=False, use_cache=False, **shape)
    config._attn_implementation = "eager"  # written out, it is twice as fast on a CPU for windows this short
    return Qwen3ForCausalLM(config)


def make_student(start: nn.Module, what: Ingredients, samples: list[Tensor]) -> tuple[nn.Module, Schedule | None]:
    """A copy of the float model `start`, converted; samples: batches [B, T] that norms and codes are fitted to."""
    model = copy.deepcopy(start)
    if not what.ternary:
        return model, None
    schedule = Schedule(uses_lambda=True) if what.lambda_fraction > 0 else None
    conversion = Conversion(
        group_size=what.group_size,
        sub_norms=what.sub_norms,
        hadamard_block=what.hadamard_block,
        exclude=() if what.tables else None,
    )
    if what.tables:
        _quantize_embedding(model, what.group_size)
    needed = samples if what.calibrated else samples[:NORM_BATCHES] if what.sub_norms else None
    convert_model(model, conversion, schedule=schedule, samples=needed, calibrated=what.calibrated)
    return model, schedule


def _quantize_embedding(model: Any, group_size: int) -> None:
    """Read the table of embeddings through the layers' quantiser; conversion changes linear layers alone."""
    table = model.get_input_embeddings()
    spec = WeightQuantizer("absmean", "per_group", group_size)
    made = BitEmbedding(table.num_embeddings, table.embedding_dim, quantizer=spec, device="meta")
    made.weight = table.weight
    model.set_input_embeddings(made)


def train(
    model: nn.Module,
    text_N: Tensor,
    validation_N: Tensor,
    plan: Plan,
    *,
    teacher: nn.Module | None = None,
    hard_label_weight: float = 1.0,
    schedule: Schedule | None = None,
    lambda_fraction: float = 0.0,
    say: Callable[[int, float, float], None] | None = None,
) -> Trained:
    """Train in place and go back to the best evaluation; `say` gets (step, training loss, validation loss)."""
    model.train()
    optimizer = make_optimizer(model, plan)
    rate = LearningRate(
        peak=plan.learning_rate,
        warmup_steps=round(plan.warmup_fraction * plan.steps),
        total_steps=plan.steps,
        decay="linear",
    )
    generator = torch.Generator().manual_seed(plan.seed)  # its own, so that no arm can shift the order of the data
    selection = _selection(len(validation_N), plan)
    trained, best, best_loss = Trained(), copy.deepcopy(model.state_dict()), math.inf
    every = max(1, plan.steps // plan.evaluations)
    losses: list[Tensor] = []
    for step in range(plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        if schedule is not None:
            schedule.set(lambda_=lambda_mix(step, plan.steps, lambda_fraction))
        starts = torch.randint(len(text_N) - plan.context, (plan.batch_size,), generator=generator)
        loss = batch_loss(model, _windows(text_N, starts.tolist(), plan.context), teacher, hard_label_weight)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), plan.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
        if (step + 1) % every == 0 or step + 1 == plan.steps:
            selected = _mean_loss(model, validation_N, selection, plan.context)
            trained.steps.append(step + 1)
            trained.train_losses.append(float(torch.stack(losses).mean()))
            trained.selection_losses.append(selected)
            if selected < best_loss:
                best, best_loss, trained.best_step = copy.deepcopy(model.state_dict()), selected, step + 1
            if say is not None:
                say(step + 1, trained.train_losses[-1], selected)
            losses.clear()
    model.load_state_dict(best)
    if schedule is not None:
        schedule.set()
    model.eval()
    return trained


def make_optimizer(model: nn.Module, plan: Plan) -> torch.optim.Optimizer:
    """Muon or AdamW; weight decay, and Muon's update, on the matrices of the layers only."""
    decaying = {name for name in decaying_parameter_names(model) if not name.startswith("lm_head")}
    if plan.optimizer == "muon":
        return Muon(muon_groups(model, decaying, plan.weight_decay), plan.learning_rate, betas=plan.betas)
    named = dict(model.named_parameters())
    groups = [
        {"params": [p for name, p in named.items() if name in decaying], "weight_decay": plan.weight_decay},
        {"params": [p for name, p in named.items() if name not in decaying], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=plan.learning_rate, betas=plan.betas, fused=True)


def batch_loss(model: nn.Module, tokens_BT1: Tensor, teacher: nn.Module | None, hard_label_weight: float) -> Tensor:
    """Next-token loss of a batch, mixed with the divergence from the teacher as `onebit distill` does."""
    logits_NV, targets_N = _logits(model, tokens_BT1[:, :-1]), tokens_BT1[:, 1:].flatten()
    hard = F.cross_entropy(logits_NV, targets_N)
    if teacher is None:
        return hard
    with torch.no_grad():
        log_p_NK, token_NK = top_k_log_probs(_logits(teacher, tokens_BT1[:, :-1]), TOP_K)
    soft = kl_top_k(logits_NV, log_p_NK, token_NK).mean()
    return hard_label_weight * hard + (1.0 - hard_label_weight) * soft


@torch.no_grad()
def judge(
    model: nn.Module, ids_N: Tensor, context: int, references: Mapping[str, nn.Module]
) -> tuple[float, dict[str, float]]:
    """(sum of -ln p in nats over every token but the first, mean KL(reference || model) in nats per token, by name)."""
    was_training = model.training
    model.eval()
    nats, kl = 0.0, dict.fromkeys(references, 0.0)
    parts = list(windows(len(ids_N), context))
    whole = [w.start for w in parts if w.stop - w.start == context]
    batches = [whole[i : i + EVALUATION_BATCH] for i in range(0, len(whole), EVALUATION_BATCH)]
    groups = [(starts, context) for starts in batches]
    groups += [([w.start], w.stop - w.start) for w in parts if w.stop - w.start != context]
    for starts, length in groups:
        tokens_BT1 = _windows(ids_N, starts, length)
        log_q_NV = torch.log_softmax(_logits(model, tokens_BT1[:, :-1]), -1)
        nats += float(F.nll_loss(log_q_NV, tokens_BT1[:, 1:].flatten(), reduction="sum"))
        for name, reference in references.items():
            log_p_NV = torch.log_softmax(_logits(reference, tokens_BT1[:, :-1]), -1)
            kl[name] += float(F.kl_div(log_q_NV, log_p_NV, reduction="sum", log_target=True))
    model.train(was_training)
    return nats, {name: total / (len(ids_N) - 1) for name, total in kl.items()}


def processor_seconds() -> float:
    """Of this process: what others do on a shared machine does not count."""
    return time.process_time()


def _logits(model: Any, ids_BT: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=ids_BT, use_cache=False).logits
    return logits.flatten(0, 1).float()


def _windows(ids_N: Tensor, starts: list[int], context: int) -> Tensor:
    return torch.stack([ids_N[start : start + context + 1] for start in starts])


def _selection(num_tokens: int, plan: Plan) -> list[int]:
    """Starts of the validation windows that choose the checkpoint: spread evenly, the same for every run."""
    starts = [w.start for w in windows(num_tokens, plan.context) if w.stop - w.start == plan.context]
    step = max(1, len(starts) // plan.selection_windows)
    return starts[::step][: plan.selection_windows]


@torch.no_grad()
def _mean_loss(model: nn.Module, ids_N: Tensor, starts: list[int], context: int) -> float:
    model.eval()
    total = 0.0
    for i in range(0, len(starts), EVALUATION_BATCH):
        tokens_BT1 = _windows(ids_N, starts[i : i + EVALUATION_BATCH], context)
        total += float(
            F.cross_entropy(_logits(model, tokens_BT1[:, :-1]), tokens_BT1[:, 1:].flatten(), reduction="sum")
        )
    model.train()
    return total / (len(starts) * context)
