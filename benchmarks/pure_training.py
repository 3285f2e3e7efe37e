"""The model, the loop and the judge of the pure-training benchmark; layers, counters and optimizer are the library's.

Shape suffixes: B windows of a batch, L positions, D width, H heads, V bytes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onebit.nn import (
    BitLinear,
    Pure1BitLinear,
    RMSNorm,
    create_pure1bit_optimizer,
    pure_weights,
    replace_linear_with_bitlinear,
    replace_linear_with_pure1bit_linear,
)
from onebit.optim import LearningRate
from onebit.optim.pure_rules import DQT, Bop, GradientBuffer, Rule, Shadow, ShadowSGD
from onebit.quant import WeightQuantizer, quantize
from pure import VALIDATION_BATCHES, Arm
from quality_texts import SHAKESPEARE_TRAIN_SHARE, texts

BETAS = (0.9, 0.98)
BASE_RATE = 3e-3  # of the hybrid model that fine-tuning starts from
RULES: dict[str, Callable[[float], Rule]] = {
    "shadow": lambda rate: Shadow(lr=rate, betas=BETAS),
    "shadow_sgd": lambda rate: ShadowSGD(lr=rate),
    "gradient_buffer": lambda rate: GradientBuffer(threshold=rate),
    "bop": lambda rate: Bop(tau=rate),
    "dqt": lambda rate: DQT(lr=rate, betas=BETAS),
}


@dataclass(frozen=True)
class Size:
    """Of a decoder and of its batches: `inner` is the MLP's width, `context` in bytes."""

    width: int
    inner: int
    layers: int = 4
    heads: int = 4
    batch: int = 8
    context: int = 128


SIZES = {
    "0.7M": Size(128, 256),
    "3M": Size(256, 640),
    "26M": Size(512, 1408, layers=8, heads=8, batch=16, context=256),
}


class Decoder(nn.Module):
    """Bytes [B, L] to logits [B, L, V]; an RMSNorm in front of every linear layer of the blocks."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size
        width, head = size.width, size.width // size.heads
        self.embed_tokens = nn.Embedding(256, width)
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.layers))
        self.norm = RMSNorm(width)
        self.lm_head = nn.Linear(width, 256, bias=False)
        angles = torch.outer(torch.arange(size.context), 10_000.0 ** (-torch.arange(0, head, 2) / head))
        self.register_buffer("turn", torch.stack((angles.cos(), angles.sin())), persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
        nn.init.normal_(self.embed_tokens.weight, std=0.5)

    def forward(self, ids_BL: Tensor) -> Tensor:
        x_BLD = self.embed_tokens(ids_BL)
        for block in self.blocks:
            x_BLD = block(x_BLD, self.turn[:, : ids_BL.shape[1]])
        logits: Tensor = self.lm_head(self.norm(x_BLD))
        return logits


class Block(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        width, inner, self.heads = size.width, size.inner, size.heads
        self.attention_norm, self.o_norm, self.mlp_norm = (RMSNorm(width) for _ in range(3))
        self.down_norm = RMSNorm(inner)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x_BLD: Tensor, turn: Tensor) -> Tensor:
        h_BLD = self.attention_norm(x_BLD)
        q, k, v = (layer(h_BLD).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(_turned(q, turn), _turned(k, turn), v, is_causal=True)
        x_BLD = x_BLD + self.o(self.o_norm(y.transpose(1, 2).flatten(2)))
        h_BLD = self.mlp_norm(x_BLD)
        out: Tensor = x_BLD + self.down(self.down_norm(F.silu(self.gate(h_BLD)) * self.up(h_BLD)))
        return out


def run(job: Any, arm: Arm, data_dir: Path | None, work_dir: Path) -> dict[str, Any]:
    """Train and judge one arm."""
    device = torch.device(job.device)
    model = start_of(job, work_dir, data_dir)
    train_N, validation_N = text_of("A" if job.task == "scratch" else "B", data_dir, device)
    before = bits_per_byte(model, validation_N)
    optimizer, helper = prepare(model, arm, job.lr)
    codes = codes_of(model)
    told = train(model, optimizer, train_N, validation_N, job.steps, job.seed, arm.microbatches)
    now = codes_of(model)
    count = sum(c.numel() for c in now) or 1
    zeros = sum(int((c == 0).sum()) for c in now) / count
    changed = sum(int((a != b).sum()) for a, b in zip(codes, now, strict=True)) / count
    told |= {
        "bpb_start": before,
        "zeros": zeros,
        "changed": changed,
        "bytes_per_weight": bytes_per_weight(model, optimizer),
    }
    if helper is not None:
        told["telemetry"] = helper.telemetry()
    return told


def start_of(job: Any, work_dir: Path, data_dir: Path | None) -> Decoder:
    """A new model, or for fine-tuning the hybrid one that was trained on text A; with float latents either way."""
    torch.manual_seed(job.seed)
    device = torch.device(job.device)
    model = Decoder(SIZES[job.size])
    if job.task == "scratch":
        return model.to(device)
    path = work_dir / f"base_{job.size}_{job.base_steps}_{job.data}_{job.device}.pt"
    if not path.is_file():
        torch.manual_seed(1000)
        base = Decoder(SIZES[job.size]).to(device)
        optimizer, _ = prepare(base, Arm("hybrid", BASE_RATE), 3e-3)
        train_N, validation_N = text_of("A", data_dir, device)
        told = train(base, optimizer, train_N, validation_N, job.base_steps, 1000, 1)
        print(f"base: {told['bpb']:.4f} bits per byte on its own text", flush=True)
        partial = path.with_suffix(f".{os.getpid()}")
        torch.save(base.state_dict(), partial)
        partial.rename(path)
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.to(device)


def prepare(model: nn.Module, arm: Arm, lr: float) -> tuple[Any, Any]:
    """(optimizer, helper of pure training or None); the model is converted in place."""
    if arm.method not in ("float", "hybrid"):
        rule = RULES[arm.method](arm.rate) if arm.method in RULES else None
        # int8 counters keep what rounding loses of the latents, where a shadow begins.
        counter = arm.method if rule is None else "int8" if arm.method.startswith("shadow") else "none"
        replace_linear_with_pure1bit_linear(model, counter=counter)  # type: ignore[arg-type]
        return create_pure1bit_optimizer(
            model,
            lr,
            eta=arm.rate if rule is None else None,
            rule=rule,
            betas=BETAS,
            gradient_accumulation_steps=arm.microbatches,
            accumulation=arm.accumulation,  # type: ignore[arg-type]
        )
    if arm.method == "hybrid":
        replace_linear_with_bitlinear(model)
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and name.startswith("blocks")]
    inside = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in inside]
    groups = [
        {"params": matrices, "lr": arm.rate, "weight_decay": 0.1},
        {"params": others, "lr": lr, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=BETAS), None


def train(
    model: Decoder, optimizer: Any, train_N: Tensor, validation_N: Tensor, steps: int, seed: int, microbatches: int
) -> dict[str, Any]:
    """Train in place; bits per byte at a quarter, half, three quarters and the end, flips and time."""
    peaks = [group["lr"] for group in optimizer.param_groups]
    shape = LearningRate(peak=1.0, total_steps=steps, warmup_steps=round(0.05 * steps)).as_factor()
    generator = torch.Generator().manual_seed(seed)
    curve, flips, seconds = [], [], 0.0
    previous = codes_of(model)
    quarters = {round(steps * quarter / 4) for quarter in range(1, 5)}
    for step in range(steps):
        began = _now(train_N.device)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * shape(step)
        starts = torch.randint(len(train_N) - model.size.context - 1, (model.size.batch,), generator=generator)
        batch = _windows(train_N, starts, model.size.context)
        for part in batch.chunk(microbatches):
            (loss_of(model, part) / microbatches).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds += _now(train_N.device) - began
        if step % 10 == 9:  # every tenth step stands for its neighbours
            now = codes_of(model)
            flips.append(_share_of_flips(previous, now))
        if step % 10 == 8:
            previous = codes_of(model)
        if step + 1 in quarters:
            curve.append(bits_per_byte(model, validation_N))
            print(f"  step {step + 1}: {curve[-1]:.4f}", flush=True)
    half = max(1, len(flips) // 2)
    return {
        "bpb": curve[-1],
        "curve": curve,
        "flips_first_half": sum(flips[:half]) / half,
        "flips_second_half": sum(flips[half:]) / max(1, len(flips) - half),
        "flips_mean": sum(flips) / max(1, len(flips)),
        "ms_per_step": 1000 * seconds / steps,
    }


def loss_of(model: Decoder, tokens_BL1: Tensor) -> Tensor:
    with torch.autocast(tokens_BL1.device.type, torch.bfloat16, enabled=tokens_BL1.is_cuda):
        return F.cross_entropy(model(tokens_BL1[:, :-1]).flatten(0, 1), tokens_BL1[:, 1:].flatten())


def _windows(ids_N: Tensor, starts_B: Tensor, context: int) -> Tensor:
    """[B, context + 1] from each start on."""
    return torch.stack([ids_N[start : start + context + 1] for start in starts_B.tolist()]).long()


def _now(device: torch.device) -> float:
    """Seconds: of this process on a CPU that others use too; of the clock when a GPU is done."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


@torch.no_grad()
def bits_per_byte(model: Decoder, ids_N: Tensor) -> float:
    """Mean over fixed windows that are spread evenly."""
    model.eval()
    context, batch = model.size.context, model.size.batch
    starts = torch.linspace(0, len(ids_N) - context - 2, VALIDATION_BATCHES * batch).long()
    total = 0.0
    for part in starts.split(batch):
        total += float(loss_of(model, _windows(ids_N, part, context)))
    model.train()
    return total / VALIDATION_BATCHES / 0.6931471805599453


def codes_of(model: nn.Module) -> list[Tensor]:
    """Codes of every matrix of the blocks; none for the float twin."""
    spec = WeightQuantizer()
    found = []
    for module in model.modules():
        if isinstance(module, BitLinear):
            found.append(quantize(module.weight.detach(), spec).codes_OI)
        elif isinstance(module, Pure1BitLinear):
            found.append(module.quantized().codes_OI)
    return found


def bytes_per_weight(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    """Of the blocks' matrices: every tensor that is held for them, and the gradients of parameters during a step."""
    weights = list(pure_weights(model).values())
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and name.startswith("blocks")]
    parameters = [p for weight in weights for p in weight.parameters()] if weights else matrices
    held = [*parameters, *parameters, *(tensor for weight in weights for tensor in weight.buffers())]
    held += [tensor for parameter in parameters for tensor in _tensors(optimizer.state[parameter])]
    count = sum(thing.shape.numel() for thing in weights or matrices)
    return sum(tensor.numel() * tensor.element_size() for tensor in held) / count


def _tensors(state: Any) -> Iterator[Tensor]:
    for value in state.values() if isinstance(state, dict) else [state]:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict):
            yield from _tensors(value)


def text_of(name: str, data_dir: Path | None, device: torch.device) -> tuple[Tensor, Tensor]:
    """(training bytes, validation bytes) of text A or B, uint8."""
    if data_dir is None:
        train, validation = texts("stdlib", None)
        middle = len(train) // 2
        train = train[:middle] if name == "A" else train[middle:]
    elif name == "A":
        test, valid = texts("wikitext2", str(data_dir))
        cut = len(test) * 4 // 5
        train, validation = valid + test[:cut], test[cut:]
    else:
        train, validation = texts("tinyshakespeare", str(data_dir))
        assert SHAKESPEARE_TRAIN_SHARE == 0.9
    found = [torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8) for text in (train, validation)]
    return found[0].to(device), found[1].to(device)


def _share_of_flips(before: list[Tensor], after: list[Tensor]) -> float:
    changed = sum(int((a != b).sum()) for a, b in zip(before, after, strict=True))
    return changed / max(1, sum(a.numel() for a in after))


def _turned(x: Tensor, turn: Tensor) -> Tensor:
    cos, sin = turn
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)
