"""How fast a model decodes and prefills here, beside what bounds it on this machine, measured in the same rounds.

Decode reads every weight once a token: its limit is a pure read of as many bytes. Prefill multiplies: its limit is the
int8 dot product of the instruction set, out of registers. Both move with the machine's mood, so limits and model take
turns, and a ratio compares medians of the same rounds.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from onebit.engine import Description, Model, TensorInfo
from onebit.engine.limits import bandwidth, int8_peak, linear_isas
from onebit.errors import ConfigError

__all__ = ["ModelBytes", "Speed", "SpeedPlan", "SpeedResult", "kv_bytes", "measure_speed", "model_bytes"]

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_BANDWIDTH_SECONDS, _PEAK_SECONDS = 0.4, 0.1


@dataclass(frozen=True, kw_only=True)
class SpeedPlan:
    """What to measure. ``threads`` and ``prompt_lengths`` are measured in turn, ``rounds`` times."""

    prompt_lengths: Sequence[int] = (128, 512)
    new_tokens: int = 64
    threads: Sequence[int] = (1,)
    kv: str = "default"
    isa: str | None = None
    rounds: int = 3

    def __post_init__(self) -> None:
        for name in ("prompt_lengths", "threads"):
            if any(value < 1 for value in getattr(self, name)):
                raise ConfigError(f"{name} must be 1 or more, got {', '.join(map(str, getattr(self, name)))}")
        if not self.threads:
            raise ConfigError("threads must name at least one number of threads")
        for name in ("new_tokens", "rounds"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, got {getattr(self, name)}")

    @property
    def steps(self) -> int:
        """Measurements in all: the limits, decode and each prefill, a round and number of threads."""
        return self.rounds * len(self.threads) * (2 + len(self.prompt_lengths))


@dataclass(frozen=True)
class ModelBytes:
    """Bytes that one decoded token reads, by part, and the weights a prefilled token is multiplied with."""

    body: int
    head: int
    rest: int  # norms, biases, one row of the embedding
    kv_position: int
    body_weights: int

    def token(self, positions: float) -> float:
        """Bytes of a token that attends to so many positions."""
        return self.body + self.head + self.rest + positions * self.kv_position


def kv_bytes(description: Description, kv: str) -> int:
    """Bytes of one position's keys and values in all layers; rows are padded to 16 bytes, as the engine has them."""
    size = description.head_dim
    row = {"float32": 4 * size, "int8": size + 2 * math.ceil(size / 32)}.get(kv, 2 * size)
    return 2 * description.num_layers * description.num_key_value_heads * (-(-row // 16) * 16)


def model_bytes(description: Description, tensors: Sequence[TensorInfo], kv: str) -> ModelBytes:
    """Where a token's bytes come from, measured on the file's own tensors."""
    sizes = {tensor.name: tensor.data_bytes + tensor.scale_bytes for tensor in tensors}
    table = next(tensor for tensor in tensors if tensor.name == _EMBEDDING)
    body = [tensor for tensor in tensors if tensor.rows > 1 and ".layers." in tensor.name]
    head = sizes.get(_HEAD, sizes[_EMBEDDING])
    vectors = sum(sizes[tensor.name] for tensor in tensors if tensor.rows == 1)
    return ModelBytes(
        body=sum(sizes[tensor.name] for tensor in body),
        head=head,
        rest=vectors + sizes[_EMBEDDING] // table.rows,
        kv_position=kv_bytes(description, kv),
        body_weights=sum(tensor.rows * tensor.cols for tensor in body),
    )


@dataclass
class Speed:
    """One line of the result: tokens/s by round, beside the limit of the same round."""

    what: str  # "decode" or "prefill"
    tokens: int
    threads: int
    rates: list[float] = field(default_factory=list)  # tokens/s over the whole of a round
    typical: list[float] = field(default_factory=list)  # decode: one over the median token's time
    limits: list[float] = field(default_factory=list)  # tokens/s that the machine's limit allows; empty: unknown

    @property
    def name(self) -> str:
        """decode_2t, prefill512_1t."""
        return f"{self.what}{self.tokens if self.what == 'prefill' else ''}_{self.threads}t"

    @property
    def rate(self) -> float:
        """Tokens/s, the median of the rounds."""
        return statistics.median(self.rates)

    @property
    def limit(self) -> float | None:
        """Tokens/s of the limit, the median of the rounds."""
        return statistics.median(self.limits) if self.limits else None

    @property
    def over_limit(self) -> float | None:
        """Ratio to the limit. The limit is a median of short turns, so decode is taken by its median token."""
        return statistics.median(self.typical or self.rates) / self.limit if self.limit else None


@dataclass
class SpeedResult:
    """Everything measured on one file."""

    path: Path
    plan: SpeedPlan
    bytes: ModelBytes
    isa: str  # of the body's int8 kernel
    layout: str
    kernels: list[str]
    speeds: list[Speed]
    bandwidths: dict[int, list[float]]  # threads -> GB/s by round
    peaks: dict[int, list[float]]  # threads -> int8 GOPS by round

    def figures(self) -> dict[str, float]:
        """Flat: name -> number, for a result record."""
        found: dict[str, float] = {}
        for speed in self.speeds:
            found[f"{speed.name}_tokens_per_s"] = speed.rate
            if speed.over_limit is not None:
                yardstick = "limit" if speed.what == "decode" else "peak"
                found[f"{speed.name.replace('_', f'_over_{yardstick}_')}"] = speed.over_limit
        found |= {f"bandwidth_gb_per_s_{t}t": statistics.median(values) for t, values in self.bandwidths.items()}
        found |= {f"int8_gops_{t}t": statistics.median(values) for t, values in self.peaks.items() if values}
        found["bytes_per_token_mb"] = self.bytes.token(0) / 1e6
        return found


def measure_speed(
    path: Path, plan: SpeedPlan, progress: Callable[[int, int], None] = lambda done, total: None
) -> SpeedResult:
    """Measure a file by ``plan``, limits and model in turn; ``progress`` is called with (measurements done, in all)."""
    models = {threads: Model(path, threads=threads, verify=False, isa=plan.isa) for threads in plan.threads}
    model = next(iter(models.values()))
    _check_lengths(plan, model.description.max_seq_len)
    tensors = model.tensors()
    layout = next(tensor.layout for tensor in tensors if tensor.name.endswith("q_proj.weight"))
    kernels = model.kernels()
    isa = linear_isas(kernels).get(layout, "scalar")
    result = SpeedResult(path, plan, model_bytes(model.description, tensors, plan.kv), isa, layout, kernels, [], {}, {})
    rows: dict[tuple[str, int, int], Speed] = {}
    for what, tokens, threads in _lines(plan):
        rows[what, tokens, threads] = Speed(what, tokens, threads)
    result.speeds.extend(rows.values())
    bandwidths: dict[int, list[float]] = defaultdict(list)
    peaks: dict[int, list[float]] = defaultdict(list)
    done = 0
    for threads in plan.threads:
        _warm_up(models[threads], plan)
    for _ in range(plan.rounds):
        for threads in plan.threads:
            read = bandwidth(threads, max(int(result.bytes.token(0)), 1 << 16), _BANDWIDTH_SECONDS)
            peak = int8_peak(isa, threads, _PEAK_SECONDS)
            bandwidths[threads].append(read)
            peaks[threads] += [] if peak is None else [peak]
            progress(done := done + 1, plan.steps)
            _decode(models[threads], plan, result.bytes, read, rows["decode", plan.new_tokens, threads])
            progress(done := done + 1, plan.steps)
            for length in plan.prompt_lengths:
                _prefill(models[threads], plan, result.bytes, peak, rows["prefill", length, threads])
                progress(done := done + 1, plan.steps)
    result.bandwidths, result.peaks = dict(bandwidths), dict(peaks)
    return result


def _lines(plan: SpeedPlan) -> Iterator[tuple[str, int, int]]:
    for threads in plan.threads:
        yield "decode", plan.new_tokens, threads
        for length in plan.prompt_lengths:
            yield "prefill", length, threads


def _check_lengths(plan: SpeedPlan, longest: int) -> None:
    for length in (*plan.prompt_lengths, plan.new_tokens + 1):
        if length > longest:
            raise ConfigError(f"{length} tokens do not fit: this model's max_seq_len is {longest}")


def _ids(model: Model, count: int) -> list[int]:
    """Tokens of no meaning; which ones they are does not change the work."""
    rng = np.random.default_rng(0)
    return [int(token) for token in rng.integers(0, model.description.vocab_size, count)]


def _warm_up(model: Model, plan: SpeedPlan) -> None:
    """Brings the file into memory and the threads to life."""
    session = model.session(max_positions=8, kv=plan.kv)
    for token in _ids(model, 4):
        session.decode(token)


def _decode(model: Model, plan: SpeedPlan, size: ModelBytes, gb_per_s: float, row: Speed) -> None:
    ids = _ids(model, plan.new_tokens + 1)
    session = model.session(max_positions=len(ids), kv=plan.kv)
    session.decode(ids[0])
    times = [time.perf_counter()]
    for token in ids[1:]:
        session.decode(token)
        times.append(time.perf_counter())
    row.rates.append(plan.new_tokens / (times[-1] - times[0]))
    row.typical.append(1 / statistics.median(float(step) for step in np.diff(times)))
    row.limits.append(1e9 * gb_per_s / size.token((1 + plan.new_tokens) / 2))


def _prefill(model: Model, plan: SpeedPlan, size: ModelBytes, gops: float | None, row: Speed) -> None:
    ids = _ids(model, row.tokens)
    session = model.session(max_positions=len(ids), kv=plan.kv)
    started = time.perf_counter()
    session.prefill(ids)
    row.rates.append(len(ids) / (time.perf_counter() - started))
    if gops is not None:
        row.limits.append(1e9 * gops / (2 * size.body_weights))
