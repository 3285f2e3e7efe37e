"""One arm of benchmarks/pure_memory.py: a model made without floats, two steps of it, and the most the process had."""

from __future__ import annotations

import gc
import time
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, BitNetConfig

from onebit.nn import (
    create_pure1bit_optimizer,
    pure_weights,
    replace_linear_with_bitlinear,
    replace_linear_with_pure1bit_linear,
)
from onebit.nn.pure_storage import pack_codes, pack_counters
from onebit.optim.pure_deposit import row_chunks
from onebit.train.memory import memory_of
from onebit.train.memory_model import ModelOutline

SHAPE = {"hidden_size": 2560, "intermediate_size": 6912, "num_attention_heads": 20, "num_key_value_heads": 5}
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
VOCABULARY = 128256
WORDS = 1024  # of the loss
PHASES = ("forward", "backward", "step")


def measure(arm: str, layers: int, tokens: int, device: torch.device) -> dict[str, Any]:
    """Two steps of a model made here; bytes."""
    torch.set_num_threads(1)
    meter = AllocatorMeter() if device.type == "cuda" else ResidentMeter()
    _steps(_model(arm, TINY, 2, 512, device), arm, torch.arange(16, device=device).unsqueeze(0), meter)
    gc.collect()
    baseline = meter.now()

    began = time.perf_counter()
    model = _model(arm, SHAPE, layers, VOCABULARY, device)
    ids_BL = torch.randint(VOCABULARY, (1, tokens), generator=torch.Generator().manual_seed(0)).to(device)
    prepared = time.perf_counter()
    peaks, after = _steps(model, arm, ids_BL, meter)
    seconds = (time.perf_counter() - prepared) / 2
    activations = _saved_bytes(model, ids_BL)
    table = model.get_input_embeddings().weight.nbytes
    need = max(peak - (0 if phase == "step" else activations) for phase, peak in peaks.items()) - baseline - table
    counted = _counted(arm, model.config)
    return {
        "arm": arm,
        "layers": layers,
        "device": device.type,
        "weights": counted.weights_count,
        "bytes_per_weight": need / counted.weights_count,
        "need": need,
        "between_steps": after - baseline - table,
        "counted": counted.kept - table,
        "baseline": baseline,
        "table": table,
        "activations": activations,
        "peaks": peaks,
        "seconds_building": round(prepared - began, 1),
        "seconds_a_step": round(seconds, 1),
    }


def _model(arm: str, shape: dict[str, int], layers: int, vocabulary: int, device: torch.device) -> Any:
    """A model as the arm trains it: built without memory, then given codes or latents, matrix by matrix."""
    config = BitNetConfig(
        **shape,
        num_hidden_layers=layers,
        vocab_size=vocabulary,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    if arm == "hybrid":
        replace_linear_with_bitlinear(model)
    else:
        grouped: Any = {"granularity": "per_group", "group_size": 128} if arm.endswith("/group128") else {}
        counter: Any = arm[:4]
        replace_linear_with_pure1bit_linear(model, counter=counter, **grouped)
    model.to_empty(device=device)
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(device)
    _fill(model)
    model.get_input_embeddings().weight.requires_grad_(False)
    return model.train()


@torch.no_grad()
def _fill(model: Any) -> None:
    """Random codes, counters and floats, of which a matrix has a part again and again; norms begin at 1."""
    torch.manual_seed(0)
    weights = pure_weights(model).values()
    for weight in weights:
        parts = list(row_chunks(*weight.shape, weight.device))
        shape, inside = (parts[0].stop, weight.in_features), weight.counter.threshold
        some: Any = {"dtype": torch.int8, "device": weight.device}
        codes = pack_codes(torch.randint(-1, 2, shape, **some), is_binary=False)
        counters = pack_counters(torch.randint(1 - inside, inside, shape, **some), weight.counter)
        for part in parts:
            weight.codes[part] = codes[: part.stop - part.start]
            weight.counters[part] = counters[: part.stop - part.start]
        weight.log_scale.fill_(-4.0)
        weight.mean_magnitude.fill_(0.01)
        for zero in (weight.row_moments, weight.column_moments, weight.deposits):
            zero.zero_()
    scales = {id(weight.log_scale) for weight in weights}
    for parameter in (parameter for parameter in model.parameters() if id(parameter) not in scales):
        if parameter.ndim == 1:
            parameter.fill_(1.0)
        else:
            rows = torch.randn(64, parameter.shape[1], dtype=parameter.dtype, device=parameter.device) * 0.02
            for part in parameter.split(64):
                part.copy_(rows[: len(part)])


def _steps(model: Any, arm: str, ids_BL: Tensor, meter: Meter) -> tuple[dict[str, int], int]:
    """Two steps; (the peak of memory in each phase, the memory afterwards)."""
    _, _, accumulation = arm.partition("+")
    passes = 2 if accumulation else 1
    helper = None
    if arm == "hybrid":
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(trained, lr=1e-4, foreach=False)
    else:
        more: Any = {"accumulation": accumulation} if accumulation else {}
        optimizer, helper = create_pure1bit_optimizer(model, lr=1e-4, gradient_accumulation_steps=passes, **more)
    peaks = dict.fromkeys(PHASES, 0)

    def note(phase: str) -> None:
        peaks[phase] = max(peaks[phase], meter.peak())

    meter.peak()
    for _ in range(2):
        for _ in range(passes):
            loss = _loss(model, ids_BL)
            note("forward")
            loss.backward()
            note("backward")
        optimizer.step()
        optimizer.zero_grad()
        note("step")
    after = meter.now()
    if helper is not None:
        helper.cleanup()
    return peaks, after


def _loss(model: Any, ids_BL: Tensor) -> Any:
    h_BD = model.model(input_ids=ids_BL, use_cache=False).last_hidden_state[:, -1]
    words_VD = model.get_input_embeddings().weight[:WORDS]
    return F.cross_entropy(F.linear(h_BD, words_VD).float(), ids_BL[:, 0] % len(words_VD))


class Meter(Protocol):
    """Bytes that the process has."""

    def now(self) -> int: ...

    def peak(self) -> int:
        """The most there was since the last call."""
        ...


class ResidentMeter:
    """Resident memory of this process, as Linux counts it."""

    def now(self) -> int:
        return self._status("VmRSS")

    def peak(self) -> int:
        found = self._status("VmHWM")
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what there is now
        return found

    def _status(self, name: str) -> int:
        rows = Path("/proc/self/status").read_text().splitlines()
        (found,) = [row for row in rows if row.startswith(name + ":")]
        return int(found.split()[1]) * 1024


class AllocatorMeter:
    """What torch's allocator gave out on the GPU."""

    def now(self) -> int:
        return torch.cuda.memory_allocated()

    def peak(self) -> int:
        found = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return found


def _counted(arm: str, config: Any) -> Any:
    """What `onebit memory` says."""
    method, _, accumulation = arm.partition("+")
    method, _, grouped = method.partition("/")
    name = "hybrid-bf16" if arm == "hybrid" else f"pure-{method}"
    scales: Any = {"granularity": "per_group", "group_size": 128} if grouped else {"granularity": "per_tensor"}
    more: Any = {"accumulate": True, "accumulation": accumulation} if accumulation else {}
    return memory_of(ModelOutline(config, **scales).parameters, name, freeze_tables=True, **more)


def _saved_bytes(model: Any, ids_BL: Tensor) -> int:
    """What a forward pass saves for its backward pass, each storage once, without the model's own."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    saved: dict[int, Any] = {}

    def keep(tensor: Any) -> Any:
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = _loss(model, ids_BL)
    total = sum(tensor.untyped_storage().nbytes() for pointer, tensor in saved.items() if pointer not in own)
    del loss
    return total
