"""The loss of a map, measured: the model reads held-out text with its matrices at the map's levels.

The text is cut by the one rule of `onebit.eval.perplexity`, so a loss here is the loss that `onebit eval` prints for
the exported map. Windows of one length go through the model together.

Shape suffixes: B windows, L positions, V vocabulary, N predictions.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from onebit.errors import ConfigError, DataError
from onebit.eval.evaluate import prepare
from onebit.eval.perplexity import windows
from onebit.models.bit_width_map import at_level
from onebit.models.config import OneBitConfig
from onebit.search.prefix import PrefixStates
from onebit.search.score import Score

__all__ = ["Evaluator", "HeldOut", "held_out"]

_LOGIT_BYTES = 1 << 28  # of one batch
_BATCH_TOKENS = 4096
_STATE_BYTES = 1 << 30


@dataclass(frozen=True)
class HeldOut:
    """Held-out text as windows [B, L+1] of token ids, one tensor for each batch; a window feeds L and predicts L."""

    batches: tuple[torch.Tensor, ...]
    context: int
    fingerprint: str

    @property
    def tokens(self) -> int:
        """Predictions that are scored."""
        return sum(int(ids.shape[0] * (ids.shape[1] - 1)) for ids in self.batches)


def held_out(
    tokenizer: Any, text: str, *, vocab_size: int, context: int, bos: int | None, max_tokens: int | None
) -> HeldOut:
    """Cut a text into windows that do not overlap. Raises DataError for a text that the model cannot read."""
    if context < 1:
        raise ConfigError(f"--context is {context}, expected at least 1")
    ids_T, _ = prepare(tokenizer, text, bos, max_tokens)
    if int(ids_T.max()) >= vocab_size:
        raise DataError(f"token {int(ids_T.max())} of the tokenizer is outside the model's vocabulary of {vocab_size}")
    cut = [ids_T[window.start : window.stop + 1] for window in windows(len(ids_T), context)]
    most = max(1, min(_BATCH_TOKENS, _LOGIT_BYTES // (4 * vocab_size)) // context)
    full = [ids for ids in cut if len(ids) == context + 1]
    stacks = [np.stack(full[i : i + most]) for i in range(0, len(full), most)]
    stacks += [ids[None] for ids in cut if len(ids) != context + 1]
    digest = hashlib.sha256(ids_T.astype("<i8").tobytes())
    digest.update(f"|{context}|{bos}".encode())
    return HeldOut(tuple(torch.from_numpy(ids_BL) for ids_BL in stacks), context, digest.hexdigest())


class Evaluator:
    """Scores maps for one OneBitForCausalLM, which it owns from now on, on one text.

    state_bytes: memory for the states of `PrefixStates`; 0 runs every map from the beginning.
    """

    def __init__(self, model: Any, data: HeldOut, *, state_bytes: int = _STATE_BYTES) -> None:
        self.model = model.eval().float()
        device = next(model.parameters()).device
        modules = {**dict(model.model.named_modules()), "lm_head": model.lm_head}
        self._modules = {name: modules[name] for name in model.config.module_names()}
        self._at: dict[str, OneBitConfig] = {}
        self._targets_BL = [ids_BL[:, 1:].to(device) for ids_BL in data.batches]
        self.prefix = PrefixStates(model, [ids_BL[:, :-1].to(device) for ids_BL in data.batches], state_bytes)

    def score(self, levels: Mapping[str, str]) -> Score:
        """Loss and top-1 accuracy of a map {module: level} of all modules."""
        self._apply(levels)
        total, hits, tokens = 0.0, 0, 0
        for logits_BLV, targets_BL in zip(self.prefix.logits(self._stages(levels)), self._targets_BL, strict=True):
            loss, right = _sums(logits_BLV, targets_BL)
            total, hits, tokens = total + loss, hits + right, tokens + targets_BL.numel()
        return Score(total / tokens if math.isfinite(total) else math.inf, hits / tokens, tokens)

    def _apply(self, levels: Mapping[str, str]) -> None:
        """What `apply_bit_width_map` does, without a new configuration for every map."""
        if levels.keys() != self._modules.keys():
            raise ConfigError("a map that is scored must give a level to every module, by name")
        for name, level in levels.items():
            if level not in self._at:
                self._at[level] = at_level(self.model.config, level)
            module = self._modules[name]
            module.weight_quantizer = self._at[level].weight_quantizer(name)
            if name != "embed_tokens":
                module.activation_quantizer = self._at[level].activation_quantizer_of(name)

    def _stages(self, levels: Mapping[str, str]) -> Sequence[str]:
        """What decides the embedding, each layer, and the head, as one text each."""
        stages: dict[str, list[str]] = {".".join(name.split(".")[:2]): [] for name in self._modules}
        for name in self._modules:
            stages[".".join(name.split(".")[:2])].append(levels[name])
        return [" ".join(parts) for parts in stages.values()]


def _sums(logits_BLV: Tensor, targets_BL: Tensor) -> tuple[float, int]:
    logits_NV, targets_N = logits_BLV.flatten(0, 1).float(), targets_BL.flatten()
    losses_N = F.cross_entropy(logits_NV, targets_N, reduction="none")
    return float(losses_N.double().sum()), int((logits_NV.argmax(-1) == targets_N).sum())
