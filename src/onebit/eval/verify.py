"""Whether two forms of a model are the same model, and where they part when they are not.

Two programs never give the same floats, so the question is which differences are rounding. With float activations the
logits may differ by 1e-4 of the largest one: sums taken in another order give 1e-6, a wrong formula gives 1e-2 and
more. With int8 activations a last-bit difference can push one activation over a rounding boundary, a real jump of one
code that later layers carry on; it is rare, so the median and the 99th percentile stay small while the maximum may
not. Every figure is a share of the largest |logit| of the reference (of the residual stream, for layers).

When a file stores embedding or head in fewer bits than the checkpoint has, the checkpoint is compared after the same
rounding: that loss is the user's choice at export, not an error, and the report names it.

Shapes: T tokens, V vocabulary, L layers, D hidden size.
"""

from __future__ import annotations

import inspect
import textwrap
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onebit.errors import DataError, OnebitError
from onebit.eval.embedding_rounding import rounded_like
from onebit.eval.forms import EngineForm, Floats, Form, Ids, TorchForm, open_form

if TYPE_CHECKING:
    from onebit.models import OneBitForCausalLM

__all__ = ["Tolerance", "VerifyReport", "compare", "tolerance_for", "verify"]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Largest shares of max |logit| that count as rounding."""

    median: float
    percentile_99: float
    maximum: float


FLOAT_ACTIVATIONS = Tolerance(1e-4, 1e-4, 1e-4)
ROUNDED_ACTIVATIONS = Tolerance(1e-4, 1e-3, 2e-2)


def tolerance_for(activations: frozenset[str]) -> Tolerance:
    """The bound for a model whose linear layers use these activation quantisers."""
    return ROUNDED_ACTIVATIONS if activations - {"none"} else FLOAT_ACTIVATIONS


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What `verify` found. `first_layer`: 0 is the embedding, i the output of layer i - 1; None: no layer differs."""

    a: str
    b: str
    passed: bool
    reasons: list[str]
    tokens: int
    max_absolute: float
    max_relative: float
    median_relative: float
    percentile_99_relative: float
    kl_mean: float
    kl_max: float
    greedy_agreement: float
    first_divergence: int | None
    divergence_margin: float | None
    first_layer: int | None
    layer_relative: list[float]
    tolerance: Tolerance
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        margin = (
            "" if self.divergence_margin is None else f", where the two best are {self.divergence_margin:.1e} apart"
        )
        parted = "never" if self.first_divergence is None else f"at token {self.first_divergence}{margin}"
        layer = "none" if self.first_layer is None else layer_name(self.first_layer)
        bound = self.tolerance
        lines = [
            f"{'same' if self.passed else 'DIFFERENT'}: {self.a} and {self.b} on {self.tokens} tokens",
            f"  logits    median {self.median_relative:.1e} (<= {bound.median:.0e}), "
            f"99 % {self.percentile_99_relative:.1e} (<= {bound.percentile_99:.0e}), "
            f"max {self.max_relative:.1e} (<= {bound.maximum:.0e}) of max |logit|",
            f"  KL        mean {self.kl_mean:.1e}, max {self.kl_max:.1e} nats",
            f"  greedy    {self.greedy_agreement:.1%} agree; they part {parted}",
            f"  first layer beyond the bound: {layer}",
        ]
        lines += [f"  note      {note}" for note in self.notes]
        lines += [f"  reason    {reason}" for reason in self.reasons]
        return "\n".join(lines)


def layer_name(point: int) -> str:
    """Point of the residual stream in words."""
    return "the embedding" if point == 0 else f"layer {point - 1}"


def verify(
    a: Form | str | Path | OneBitForCausalLM,
    b: Form | str | Path | OneBitForCausalLM,
    *,
    ids: Ids | list[int] | None = None,
    text: str | None = None,
    num_tokens: int = 128,
    tolerance: Tolerance | None = None,
) -> VerifyReport:
    """Feed the same tokens to two forms of a model and compare what comes out.

    Each of `a` and `b` is a checkpoint folder, a `.1bit` file, a torch model in memory or a Form; `a` is the
    reference. Tokens are `ids`, else the first `num_tokens` of `text`, else of a file of Python's standard library.
    Raises OnebitError when the two cannot be compared (other vocabulary or shape, no tokens).
    """
    form_a, form_b = open_form(a), open_form(b)
    if form_a.vocab_size != form_b.vocab_size:
        raise OnebitError(
            f"{form_a.name} has a vocabulary of {form_a.vocab_size}, {form_b.name} of {form_b.vocab_size}: "
            "they are not two forms of one model"
        )
    ids_T, notes = _tokens(form_a, form_b, ids, text, num_tokens)
    with _matching_embeddings(form_a, form_b) as rounded:
        notes += rounded
        logits_a, logits_b = form_a.logits(ids_T), form_b.logits(ids_T)
        hidden_a, hidden_b = form_a.hidden(ids_T), form_b.hidden(ids_T)
    if hidden_a.shape != hidden_b.shape:
        raise OnebitError(
            f"{form_a.name} has {len(hidden_a) - 1} layers of width {hidden_a.shape[-1]}, {form_b.name} "
            f"{len(hidden_b) - 1} of {hidden_b.shape[-1]}: they are not two forms of one model"
        )
    if form_a.activations != form_b.activations:
        quantizers = (", ".join(sorted(form.activations)) for form in (form_a, form_b))
        notes.append("activation quantisers differ: {} and {}".format(*quantizers))
    bound = tolerance or tolerance_for(form_a.activations | form_b.activations)
    return compare(logits_a, logits_b, hidden_a, hidden_b, bound, names=(form_a.name, form_b.name), notes=notes)


def compare(
    logits_a: Floats,
    logits_b: Floats,
    hidden_a: Floats,
    hidden_b: Floats,
    bound: Tolerance,
    *,
    names: tuple[str, str] = ("a", "b"),
    notes: list[str] | None = None,
) -> VerifyReport:
    """The report for logits [T, V] and residual streams [L+1, T, D] of two forms; `a` is the reference."""
    difference_TV = np.abs(logits_a.astype(np.float64) - logits_b)
    finite = bool(np.isfinite(logits_a).all() and np.isfinite(logits_b).all())
    top = float(np.abs(logits_a).max()) or 1.0
    relative = difference_TV / top
    kl_T = _kl(logits_a, logits_b)
    agree_T = logits_a.argmax(-1) == logits_b.argmax(-1)
    parted = None if agree_T.all() else int(np.argmin(agree_T))
    layers = [_relative(x, y) for x, y in zip(hidden_a, hidden_b, strict=True)]
    figures = {
        "median_relative": float(np.median(relative)),
        "percentile_99_relative": float(np.percentile(relative, 99)),
        "max_relative": float(relative.max()),
    }
    first_layer = next((i for i, values in enumerate(layers) if _beyond(values, bound)), None)
    reasons = _reasons(figures, bound, finite)
    if reasons and first_layer is not None:
        reasons.append(f"the residual stream differs first after {layer_name(first_layer)}")
    return VerifyReport(
        a=names[0],
        b=names[1],
        passed=not reasons,
        reasons=reasons,
        tokens=len(logits_a),
        max_absolute=float(difference_TV.max()),
        kl_mean=float(kl_T.mean()),
        kl_max=float(kl_T.max()),
        greedy_agreement=float(agree_T.mean()),
        first_divergence=parted,
        divergence_margin=None if parted is None else _margin(logits_a[parted]) / top,
        first_layer=first_layer,
        layer_relative=[float(values.max()) for values in layers],
        tolerance=bound,
        notes=list(notes or []),
        **figures,
    )


def _reasons(figures: dict[str, float], bound: Tolerance, finite: bool) -> list[str]:
    if not finite:
        return ["the logits hold NaN or infinity"]
    limits = {
        "median_relative": ("the median difference", bound.median),
        "percentile_99_relative": ("the 99th percentile of the differences", bound.percentile_99),
        "max_relative": ("the largest difference", bound.maximum),
    }
    return [
        f"{words} is {figures[name]:.1e} of max |logit|, allowed {limit:.0e}"
        for name, (words, limit) in limits.items()
        if not figures[name] <= limit
    ]


def _relative(a_TD: Floats, b_TD: Floats) -> NDArray[np.float64]:
    """|a - b| as a share of the largest |a|."""
    relative: NDArray[np.float64] = np.abs(a_TD.astype(np.float64) - b_TD) / (float(np.abs(a_TD).max()) or 1.0)
    return relative


def _beyond(relative: NDArray[np.float64], bound: Tolerance) -> bool:
    within = (
        np.median(relative) <= bound.median
        and np.percentile(relative, 99) <= bound.percentile_99
        and relative.max() <= bound.maximum
    )
    return not within  # NaN is beyond


def _kl(logits_a: Floats, logits_b: Floats) -> NDArray[np.float64]:
    """KL(a || b) in nats at each position, float64 [T]."""
    log_a, log_b = _log_softmax(logits_a), _log_softmax(logits_b)
    kl_T: NDArray[np.float64] = (np.exp(log_a) * (log_a - log_b)).sum(-1)
    return np.maximum(kl_T, 0.0)  # rounding can leave -1e-17


def _log_softmax(logits_TV: Floats) -> NDArray[np.float64]:
    shifted = logits_TV.astype(np.float64) - logits_TV.max(-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def _margin(logits_V: Floats) -> float:
    second, first = np.partition(logits_V, -2)[-2:]
    return float(first - second)


def _tokens(a: Form, b: Form, ids: Ids | list[int] | None, text: str | None, num_tokens: int) -> tuple[Ids, list[str]]:
    """The tokens to feed, at most a context full, and a note when they are not text."""
    longest = min(a.context, b.context)
    if ids is None:
        tokenizer = a.tokenizer or b.tokenizer
        if tokenizer is None:
            if text is not None:
                raise DataError("neither form holds a tokenizer: give token ids instead of text")
            drawn = np.random.default_rng(0).integers(0, a.vocab_size, min(num_tokens, longest))
            return drawn, ["no tokenizer: compared on random tokens (seed 0)"]
        source = inspect.getsource(textwrap) if text is None else text  # real text that every machine has
        ids = tokenizer.encode(source, add_special_tokens=False).ids[:num_tokens]
    ids_T = np.asarray(ids, dtype=np.int64)[:longest]
    if ids_T.size == 0:
        raise DataError("no tokens to compare on: the text is empty")
    if not 0 <= int(ids_T.min()) <= int(ids_T.max()) < a.vocab_size:
        raise DataError(f"token {int(ids_T.max())} is outside the vocabulary of {a.vocab_size}")
    return ids_T, []


def _matching_embeddings(a: Form, b: Form) -> AbstractContextManager[list[str]]:
    """Rounds a checkpoint's embeddings as the file beside it stores them."""
    if isinstance(a, TorchForm) and isinstance(b, EngineForm):
        return rounded_like(a.model, b.stored_levels())
    if isinstance(b, TorchForm) and isinstance(a, EngineForm):
        return rounded_like(b.model, a.stored_levels())
    return nullcontext([])
