"""How many bytes training a model takes, by kind and by method: arithmetic on shapes, nothing else.

What shaped it: the figure must be the one that a run shows. What a run keeps between steps follows from shapes and
types and is exact; what a step adds (activations, temporary tensors) is counted on a step without values
(`memory_step`) and is, for any batch and length, a line in the positions and in the tokens. Kinds are added up. With
gradient accumulation they are all there at once; without it gradients grow while activations go, and the peak is lower.

Units: bytes; 1 GB is 10^9 bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from onebit.nn.pure_gradient_sum import SUM_BLOCK
from onebit.optim.pure1bit_optimizer import DEFAULT_ACCUMULATION, Accumulation
from onebit.train.memory_methods import BFLOAT16, FLOAT32, Method, method_named

__all__ = [
    "KINDS",
    "LORA_RANK",
    "Bytes",
    "Codes",
    "Line",
    "Memory",
    "Parameters",
    "StepBytes",
    "largest_fit",
    "memory_of",
]

KINDS = ("weights", "gradients", "optimizer", "counters", "accumulation", "copies", "activations", "working")

Codes = Literal["ternary", "binary"]
_CODES_A_BYTE = {"ternary": 4, "binary": 8}
LORA_RANK = 16
_STEP = 4  # torch's AdamW counts the steps of each tensor in a float32
# bitsandbytes: two uint8 moments with a float32 scale for each block; small tensors keep float32 moments, and so does,
# by transformers' Trainer, the embedding.
_MOMENTS_BLOCK, _MOMENTS_SMALLEST = 256, 4096
_GROUP_SCALE = 2  # float16, as exported
_MATRIX_STATE = 8 + 4  # a matrix's number of deposits, int64, and mean magnitude


@dataclass(frozen=True)
class Parameters:
    """The parameters of a model: shapes (outputs, inputs) of the matrices that are quantised, sizes of the others.

    ordinary: norms, biases, float layers; embeddings: the table of tokens; head: empty when it is tied to the table.
    buffers: bytes that are not trained. scales: of each matrix in pure training, how many are trained and how many more
    are kept for groups; empty is one a matrix.
    """

    matrices: tuple[tuple[int, int], ...]
    ordinary: tuple[int, ...]
    embeddings: tuple[int, ...]
    head: tuple[int, ...]
    buffers: int = 0
    scales: tuple[tuple[int, int], ...] = ()

    @property
    def weights(self) -> int:
        """How many weights the matrices have."""
        return sum(rows * cols for rows, cols in self.matrices)


@dataclass(frozen=True)
class Line:
    """Bytes as a function of batch and length: `constant`, so much more a position, so much more a token."""

    constant: float = 0.0
    position: float = 0.0
    token: float = 0.0

    def at(self, batch: int, length: int) -> int:
        return round(self.constant + length * (self.position + batch * self.token))


@dataclass(frozen=True)
class StepBytes:
    """What a step adds to what a run keeps.

    kept: alive from forward to backward; live: all there is at the moments when it may be most.
    """

    kept: Line = Line()
    live: tuple[Line, ...] = ()

    def working_at(self, batch: int, length: int) -> int:
        """What temporary tensors take at the peak, beyond all that is kept."""
        kept = self.kept.at(batch, length)
        return max((line.at(batch, length) for line in self.live), default=kept) - kept


@dataclass(frozen=True)
class Bytes:
    """What a run keeps for one part of the parameters."""

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    counters: int = 0
    accumulation: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.counters + self.accumulation


@dataclass(frozen=True)
class Memory:
    """Bytes of a training run: what it keeps, by part of the model, and what a step of this size adds.

    copies: of weights, quantised or in another type, which a step keeps until its backward pass; activations: the rest
    of what it keeps; working: temporary tensors. weights_count: of the matrices.
    """

    method: str
    batch: int
    length: int
    parts: dict[str, Bytes]
    copies: int
    activations: int
    working: int
    weights_count: int

    @property
    def kept(self) -> int:
        """Between steps: all but copies, activations and working memory."""
        return sum(part.total for part in self.parts.values())

    @property
    def total(self) -> int:
        return self.kept + self.copies + self.activations + self.working

    @property
    def bytes_per_weight(self) -> float:
        """What a run keeps for each weight of the matrices."""
        return self.parts["matrices"].total / self.weights_count

    def by_kind(self) -> dict[str, int]:
        """Bytes of each of KINDS, in their order."""
        kept = {kind: sum(getattr(part, kind) for part in self.parts.values()) for kind in KINDS[:5]}
        return kept | {"copies": self.copies, "activations": self.activations, "working": self.working}


def memory_of(
    parameters: Parameters,
    method: Method | str,
    *,
    step: StepBytes | None = None,
    batch: int = 1,
    length: int = 1,
    codes: Codes = "ternary",
    freeze_tables: bool = False,
    accumulate: bool = False,
    accumulation: Accumulation = DEFAULT_ACCUMULATION,
    rank: int = LORA_RANK,
) -> Memory:
    """The bytes of training by a method, a batch of `batch` sequences of `length` tokens in a step's forward pass.

    step: what such a step adds; None counts only what a run keeps. codes: what pure training holds, at 2 bits or 1.
    freeze_tables: embeddings and head are not trained. accumulate: gradients of several batches are summed before a
    step: float methods do it where the gradients are, pure ones as `accumulation` says. rank: of the adapters.
    """
    if isinstance(method, str):
        method = method_named(method)
    frozen = method.kind == "lora"
    if method.kind == "pure":
        scales = parameters.scales or ((1, 0),) * len(parameters.matrices)
        shapes = zip(parameters.matrices, scales, strict=True)
        kind = accumulation if accumulate else "deposit"
        matrices = _sum(_pure(shape, count, method, codes, kind) for shape, count in shapes)
    else:
        sizes = tuple(rows * cols for rows, cols in parameters.matrices)
        matrices = _float(sizes, method, trained=not frozen)
    parts = {
        "matrices": matrices,
        "ordinary": _float(parameters.ordinary, method, trained=not frozen),
        "embeddings": _float(parameters.embeddings, method, trained=not (frozen or freeze_tables), is_table=True),
        "head": _float(parameters.head, method, trained=not (frozen or freeze_tables)),
        "buffers": Bytes(weights=parameters.buffers),
    }
    if frozen:
        sizes = tuple(rank * side for shape in parameters.matrices for side in shape)
        parts["adapters"] = _float(sizes, Method("adapters", "float", "float32"), trained=True)
    step = step or StepBytes()
    copies = round(step.kept.constant)
    return Memory(
        method=method.name,
        batch=batch,
        length=length,
        parts=parts,
        copies=copies,
        activations=step.kept.at(batch, length) - copies,
        working=step.working_at(batch, length),
        weights_count=parameters.weights,
    )


def _float(sizes: Iterable[int], method: Method, *, trained: bool, is_table: bool = False) -> Bytes:
    """Weights, gradients and AdamW's state of tensors of these sizes."""
    sizes = tuple(sizes)
    weights = method.itemsize * sum(sizes)
    if not trained:
        return Bytes(weights=weights)
    if method.eight_bit:
        return Bytes(weights, weights, sum(_eight_bit_moments(size, is_table) for size in sizes))
    return Bytes(weights, weights, 2 * weights + _STEP * len(sizes))


def _eight_bit_moments(size: int, is_table: bool) -> int:
    if size < _MOMENTS_SMALLEST or is_table:
        return 2 * FLOAT32 * size
    return 2 * (size + FLOAT32 * -(-size // _MOMENTS_BLOCK))


def _pure(
    shape: tuple[int, int], scales: tuple[int, int], method: Method, codes: Codes, accumulation: Accumulation
) -> Bytes:
    """One matrix: packed codes and their scales, counters, a normaliser of a float32 a row and column."""
    rows, cols = shape
    trained, of_groups = scales
    scale = _float((trained,), Method("scale", "float", "float32"), trained=True)
    # Counters that forget are packed as ternary codes: what they hold matters within a step.
    a_row = {"int8": cols, "int4": -(-cols // 2), "none": -(-cols // 4)}[method.counter]
    return Bytes(
        weights=rows * -(-cols // _CODES_A_BYTE[codes]) + scale.weights + _GROUP_SCALE * of_groups,
        gradients=scale.gradients,
        optimizer=FLOAT32 * (rows + cols) + _MATRIX_STATE + scale.optimizer,
        counters=rows * a_row,
        accumulation=_gradient_sum(rows, cols, accumulation),
    )


def _gradient_sum(rows: int, cols: int, accumulation: Accumulation) -> int:
    if accumulation == "deposit":
        return 0
    if accumulation == "bfloat16":
        return BFLOAT16 * rows * cols
    blocks = rows * -(-cols // SUM_BLOCK)
    # Beside a bfloat16 scale for each block what columns are divided by first.
    return blocks * (SUM_BLOCK + BFLOAT16) + FLOAT32 * cols


def _sum(parts: Iterable[Bytes]) -> Bytes:
    rows = [(p.weights, p.gradients, p.optimizer, p.counters, p.accumulation) for p in parts]
    return Bytes(*(sum(column) for column in zip(*rows, strict=True)))


def largest_fit(
    total: Callable[[int, int], int], budget: float, length: int, most: int = 1 << 20
) -> tuple[int, int] | None:
    """The largest batch of sequences of `length` that fits in the budget; one shorter sequence when none does.

    total: bytes at a batch and a length, growing with both. None when not even a token fits.
    """
    if total(1, length) <= budget:
        return _last(lambda batch: total(batch, length) <= budget, most), length
    if total(1, 1) > budget:
        return None
    return 1, _last(lambda shorter: total(1, shorter) <= budget, length)


def _last(holds: Callable[[int], bool], most: int) -> int:
    """The largest number in [1, most] that holds, where 1 does and none does after one that does not."""
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low
