"""Whether two forms of a model are the same model, and where they part when they are not.

Two programs never give the same floats, so the question is which differences are rounding. Two answers are looked for:

End to end: the logits of the same tokens, within the bounds of `onebit.eval.comparison`. That settles it for float
activations, and for small models with int8 ones.

Layer by layer, when a torch form is there: each layer of the torch model is fed with the other form's residual stream.
With int8 activations a rounding jump in an early layer makes others in every later one, so in a deep model the ends
differ more than the bounds allow although every layer is right; on the same input nothing is carried on, and each layer
must agree by itself.

When a file stores embedding or head in fewer bits than the checkpoint has, or rounds the head's inputs, the checkpoint
is compared after the same rounding: that loss is the user's choice at export, not an error, and the report names it.

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

from onebit.errors import DataError, OnebitError
from onebit.eval.comparison import (
    FLOAT_ACTIVATIONS,
    Spread,
    Tolerance,
    exceeded,
    kl_divergence,
    margin,
    spread,
    tolerance_for,
)
from onebit.eval.forms import EngineForm, Floats, Form, Ids, TorchForm, open_form
from onebit.eval.stored_tables import rounded_like

if TYPE_CHECKING:
    from onebit.models import OneBitForCausalLM

__all__ = ["Alone", "Outputs", "VerifyReport", "compare", "layers_alone", "verify"]


_TEXT = 4  # tokens of a text in the comparison layer by layer
# In a layer with some ten thousand inputs about one token in five meets a jump, which leaves this share untouched; a
# wrong formula leaves none but the first token of a text, which has nothing to attend to.
_AGREEING, _LARGEST_JUMP = 0.4, 5e-2


@dataclass(frozen=True, slots=True)
class Alone:
    """One layer on the other form's input: share of tokens that agree as floats do, and the largest jump."""

    agreeing: float
    maximum: float

    @property
    def is_right(self) -> bool:
        return self.agreeing >= _AGREEING and self.maximum <= _LARGEST_JUMP


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What `verify` found. Layers: 0 is the embedding, i the output of layer i - 1, the last own one the head.

    `logits`, `layers` and `layers_alone` (the same input to each; None without a torch form) are shares of the largest
    value of the reference. `first_layer`: the first whose end-to-end stream is beyond the bound.
    """

    a: str
    b: str
    passed: bool
    reasons: list[str]
    tokens: int
    bound: Tolerance
    max_absolute: float
    logits: Spread
    kl_mean: float
    kl_max: float
    greedy_agreement: float
    first_divergence: int | None
    divergence_margin: float | None
    first_layer: int | None
    layers: list[Spread]
    layers_alone: list[Alone] | None
    notes: list[str] = field(default_factory=list)

    @property
    def max_relative(self) -> float:
        """The largest difference of a logit as a share of the largest |logit|."""
        return self.logits.maximum

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        near = "" if self.divergence_margin is None else f" (the two best are {self.divergence_margin:.1e} apart there)"
        parted = "never" if self.first_divergence is None else f"first at token {self.first_divergence}{near}"
        layer = "none" if self.first_layer is None else _layer_name(self.first_layer)
        lines = [
            f"{'same' if self.passed else 'DIFFERENT'}: {self.a} and {self.b} on {self.tokens} tokens",
            f"  logits  {_figures(self.logits)} of max |logit|, bound {_figures(self.bound)}",
            f"  KL      mean {self.kl_mean:.1e}, max {self.kl_max:.1e} nats",
            f"  greedy  {self.greedy_agreement:.1%} agree, they part {parted}",
            f"  stream  first layer beyond the bound: {layer}",
        ]
        if self.layers_alone is not None:
            worst, found = min(enumerate(self.layers_alone), key=lambda item: (item[1].agreeing, -item[1].maximum))
            name = "the head" if worst == len(self.layers) else _layer_name(worst)
            lines.append(
                f"  alone   each layer on the same input, worst is {name}: "
                f"{found.agreeing:.0%} of tokens agree, max {found.maximum:.0e}"
            )
        lines += [f"  note    {note}" for note in self.notes]
        lines += [f"  reason  {reason}" for reason in self.reasons]
        return "\n".join(lines)


def _figures(values: Spread) -> str:
    return f"median {values.median:.0e}, 99 % {values.percentile_99:.0e}, max {values.maximum:.0e}"


def _layer_name(point: int) -> str:
    return "the embedding" if point == 0 else f"layer {point - 1}"


def verify(
    a: Form | str | Path | OneBitForCausalLM,
    b: Form | str | Path | OneBitForCausalLM,
    *,
    ids: Ids | list[int] | None = None,
    text: str | None = None,
    num_tokens: int = 128,
    bound: Tolerance | None = None,
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
    with _matching_tables(form_a, form_b) as rounded:
        notes += rounded
        outputs_a, outputs_b = (Outputs(form.logits(ids_T), form.hidden(ids_T)) for form in (form_a, form_b))
        if outputs_a.hidden.shape != outputs_b.hidden.shape:
            raise OnebitError(
                f"{form_a.name} has {outputs_a.shape}, {form_b.name} {outputs_b.shape}: not two forms of one model"
            )
        alone = None
        if isinstance(form_a, TorchForm):
            alone = layers_alone(form_a, form_b, ids_T)
        elif isinstance(form_b, TorchForm):
            alone = layers_alone(form_b, form_a, ids_T)
        activations_a, activations_b = form_a.activations, form_b.activations
    if activations_a - {"none"} != activations_b - {"none"}:
        notes.append(f"activations differ: {sorted(activations_a)} and {sorted(activations_b)}")
    bound = bound or tolerance_for(activations_a | activations_b)
    return compare(outputs_a, outputs_b, bound, alone, names=(form_a.name, form_b.name), notes=notes)


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a form made of the tokens: logits [T, V] and the residual stream [L+1, T, D]."""

    logits: Floats
    hidden: Floats

    @property
    def shape(self) -> str:
        """Depth and width in words."""
        return f"{len(self.hidden) - 1} layers of width {self.hidden.shape[-1]}"


def compare(
    a: Outputs,
    b: Outputs,
    bound: Tolerance,
    alone: list[Alone] | None = None,
    *,
    names: tuple[str, str] = ("a", "b"),
    notes: list[str] | None = None,
) -> VerifyReport:
    """The report on two outputs, `a` the reference; `alone`: each layer's own difference, the head's last."""
    logits = spread(a.logits, b.logits)
    layers = [spread(x, y) for x, y in zip(a.hidden, b.hidden, strict=True)]
    first_layer = next((i for i, found in enumerate(layers) if exceeded(found, bound)), None)
    agree_T = a.logits.argmax(-1) == b.logits.argmax(-1)
    parted = None if agree_T.all() else int(np.argmin(agree_T))
    kl_T = kl_divergence(a.logits, b.logits)
    notes = list(notes or [])
    reasons = _reasons(a, b, logits, bound, alone, first_layer, notes)
    return VerifyReport(
        a=names[0],
        b=names[1],
        passed=not reasons,
        reasons=reasons,
        tokens=len(a.logits),
        bound=bound,
        max_absolute=float(np.abs(a.logits.astype(np.float64) - b.logits).max()),
        logits=logits,
        kl_mean=float(kl_T.mean()),
        kl_max=float(kl_T.max()),
        greedy_agreement=float(agree_T.mean()),
        first_divergence=parted,
        divergence_margin=None if parted is None else margin(a.logits[parted]) / float(np.abs(a.logits).max()),
        first_layer=first_layer,
        layers=layers,
        layers_alone=alone,
        notes=notes,
    )


def _reasons(
    a: Outputs,
    b: Outputs,
    logits: Spread,
    bound: Tolerance,
    alone: list[Alone] | None,
    first_layer: int | None,
    notes: list[str],
) -> list[str]:
    """Why the two are not the same; empty when they are. May add a note."""
    if not (np.isfinite(a.logits).all() and np.isfinite(b.logits).all()):
        return ["the logits hold NaN or infinity"]
    reasons = [f"logits: {problem} of max |logit|" for problem in exceeded(logits, bound)]
    if not reasons:
        return []
    if alone is not None and bound.maximum > bound.median:  # rounded activations
        wrong = [i for i, found in enumerate(alone) if not found.is_right]
        if not wrong:
            notes.append("the ends differ by rounding jumps carried from layer to layer; each layer alone agrees")
            return []
        where = "the head" if wrong[0] == len(alone) - 1 else _layer_name(wrong[0])
        found = alone[wrong[0]]
        return [*reasons, f"{where}, on the same input: {found.agreeing:.0%} of tokens agree, max {found.maximum:.0e}"]
    if first_layer is not None:
        reasons.append(f"the residual stream differs first after {_layer_name(first_layer)}")
    return reasons


def layers_alone(form: TorchForm, other: Form, ids_T: Ids) -> list[Alone]:
    """What each layer, and at last the head, makes of the other form's stream, held against what the other made.

    The tokens are fed as texts of four: inside a layer, too, attention carries a jump on to every later token.
    """
    rows: list[list[Floats]] = []  # [text][layer] -> largest difference at each token
    for start in range(0, len(ids_T), _TEXT):
        text_T = ids_T[start : start + _TEXT]
        hidden, logits = other.hidden(text_T), other.logits(text_T)
        streams_LTD, logits_TV = form.stepwise(text_T, hidden)
        pairs = [*zip(hidden, streams_LTD, strict=True), (logits, logits_TV)]
        rows.append([np.abs(mine - theirs).max(-1) / (float(np.abs(theirs).max()) or 1.0) for theirs, mine in pairs])
    layers = [np.concatenate(layer) for layer in zip(*rows, strict=True)]
    return [Alone(float((layer <= FLOAT_ACTIVATIONS.maximum).mean()), float(layer.max())) for layer in layers]


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


def _matching_tables(a: Form, b: Form) -> AbstractContextManager[list[str]]:
    """Rounds a checkpoint's embedding, head and the head's inputs as the file beside it does."""
    if isinstance(a, TorchForm) and isinstance(b, EngineForm):
        return rounded_like(a.model, b.stored_tables)
    if isinstance(b, TorchForm) and isinstance(a, EngineForm):
        return rounded_like(b.model, a.stored_tables)
    return nullcontext([])
