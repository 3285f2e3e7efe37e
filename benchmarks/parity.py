"""Do torch and the engine compute the same model? Over a grid of configurations, written down as worst values.

    python benchmarks/parity.py            the full grid, some minutes; writes one result file
    python benchmarks/parity.py --quick    the grid of the default test suite

A case is a small random model: quantiser, scale granularity, activations, every architecture flag on and off, tied and
untied, grouped queries, each file layout. Four questions are asked of each:

- logits of twelve texts of 8 random tokens, torch against engine, as shares of max |logit|;
- 200 greedy tokens: identical, or parting first where torch's two best logits are closer than rounding explains;
- decoding token by token gives the bits of the batched run;
- the scalar kernels give the bits of the fastest ones.

With int8 activations a last-bit difference of two float sums sometimes carries an activation over a rounding boundary.
Every later token attends to that one, so after the first jump of a text all its logits differ by some 1e-3. Texts are
short, so that what is counted is how often a jump arises and not how long it lasts. The `_long` figures are those of
the 200 tokens, the `_alone` figures those of single layers on the same input, where nothing is carried on.

Shapes: T tokens, V vocabulary.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from onebit.engine import Model
from onebit.eval.comparison import margin
from onebit.eval.forms import EngineForm, TorchForm
from onebit.eval.stored_tables import rounded_like
from onebit.eval.verify import Alone, layers_alone
from onebit.formats.export import from_model
from onebit.formats.onebit_file import write
from onebit.models import OneBitConfig, OneBitForCausalLM

PROMPT, GREEDY = 8, 200
TEXTS, TEXT = 12, 8

# Sizes that no group, tile or vector divides: 160 = 64 + 64 + 32 inputs, 224 = 128 + 96, heads of 40.
BASE: dict[str, Any] = {
    "vocab_size": 157,
    "hidden_size": 160,
    "num_layers": 2,
    "num_heads": 4,
    "intermediate_size": 224,
    "max_seq_len": 256,
    "use_ternary": True,
    "use_dynamic_threshold": False,
    "use_subln": True,
    "use_rope": True,
    "use_swiglu": True,
    "use_qk_norm": False,
    "use_residual_scaling": False,
    "anneal_fraction": 0.0,
}

QUANTIZERS: dict[str, dict[str, Any]] = {
    "absmean": {"quantizer": "absmean"},
    "threshold": {"quantizer": "threshold"},
    "sparsity": {"quantizer": "sparsity", "weight_sparsity_threshold": 0.4},
    "binary": {"quantizer": "binary"},
    "binary_uncentred": {"quantizer": "binary", "center_binary": False},
}
GRANULARITIES: dict[str, dict[str, Any]] = {
    "tensor": {"granularity": "per_tensor"},
    "row": {"granularity": "per_row"},
    "group64": {"granularity": "per_group", "group_size": 64},
    "group128": {"granularity": "per_group", "group_size": 128},
    "group256": {"granularity": "per_group", "group_size": 256},
}
ACTIVATIONS = ("none", "int8", "sign")
# Every architecture flag with all its values; the first is BASE's.
FLAGS: dict[str, dict[str, dict[str, Any]]] = {
    "norm": {"rmsnorm": {}, "layernorm": {"use_subln": False}},
    "position": {"rope": {}, "learned": {"use_rope": False}},
    "mlp": {
        "swiglu": {},
        "relu2": {"use_swiglu": False, "use_relu2": True},
        "relu2_glu": {"use_relu2": True},
        "gelu": {"use_swiglu": False},
    },
    "qk_norm": {"off": {}, "on": {"use_qk_norm": True}},
    "residual": {"plain": {}, "scaled": {"use_residual_scaling": True}},
    "sub_norm": {"off": {}, "on": {"use_sub_norm": True}},
    "head": {"tied": {}, "untied": {"tie_word_embeddings": False}},
    "kv_heads": {"all": {}, "two": {"num_key_value_heads": 2}, "one": {"num_key_value_heads": 1}},
    "bias": {"off": {}, "on": {"attention_bias": True, "mlp_bias": True}},
}


@dataclass(frozen=True)
class Case:
    """One configuration and how it is written."""

    name: str
    config: dict[str, Any] = field(hash=False)
    layout: str = "run"
    pack_mode: str | None = None
    embedding_level: str = "float16"
    seed: int = 0

    @property
    def activation(self) -> str:
        return str(self.config.get("activation_quantizer", "int8"))


@dataclass(frozen=True)
class Parity:
    """What a case showed; shares of max |logit|."""

    relative: np.ndarray  # |difference| of every logit of the short texts
    relative_long: np.ndarray  # of every logit along the greedy text
    alone: list[Alone]  # each layer on the engine's own input to it, along the greedy text; the head's last
    parted_at: int | None  # greedy token at which torch would have chosen another
    parted_margin: float  # how far apart its two best logits were there
    decode_equals_batch: bool
    scalar_equals_simd: bool


def quick_cases() -> Iterator[Case]:
    """Every value of everything at least once with float and with int8 activations; each pair of numeric choices."""
    numeric = itertools.product(("absmean", "binary"), ("tensor", "row", "group64"), ACTIVATIONS)
    yield from (_case(q, g, a, {}) for q, g, a in numeric)
    for quantizer, granularity in (("threshold", "group128"), ("sparsity", "row"), ("binary_uncentred", "group256")):
        yield _case(quantizer, granularity, "int8", {})
    for flag, values in FLAGS.items():
        for value in list(values)[1:]:
            for activation in ("none", "int8"):
                yield _case("absmean", "tensor", activation, {flag: value})
    everything = {flag: list(values)[-1] for flag, values in FLAGS.items()}
    for quantizer, activation in itertools.product(("absmean", "binary"), ("none", "int8")):
        yield _case(quantizer, "group64", activation, everything)
    for layout, pack_mode in (("exchange", "ternary"), ("run", "ternary5"), ("exchange", "ternary5")):
        for granularity in ("tensor", "group128"):
            yield _case("absmean", granularity, "int8", {}, layout, pack_mode)
    yield _case("binary", "row", "int8", {}, "exchange", "binary")
    for level in ("float32", "int8", "int4"):
        yield _case("absmean", "tensor", "int8", {"head": "untied"}, embedding_level=level)
    yield _case("absmean", "tensor", "int8", {}, embedding_level="int8")


def full_cases() -> Iterator[Case]:
    """All architectures with the numeric choices taking turns, then all numeric choices on one architecture."""
    numeric = list(itertools.product(QUANTIZERS, GRANULARITIES, ACTIVATIONS))
    for i, values in enumerate(itertools.product(*FLAGS.values())):
        quantizer, granularity, activation = numeric[i % len(numeric)]
        yield _case(quantizer, granularity, activation, dict(zip(FLAGS, values, strict=True)), seed=i)
    for quantizer, granularity, activation in numeric:
        modes = ("binary",) if quantizer.startswith("binary") else ("ternary", "ternary5")
        for layout, mode in itertools.product(("run", "exchange"), modes):
            yield _case(quantizer, granularity, activation, {"kv_heads": "two"}, layout, mode)


def _case(
    quantizer: str,
    granularity: str,
    activation: str,
    flags: dict[str, str],
    layout: str = "run",
    pack_mode: str | None = None,
    embedding_level: str = "float16",
    seed: int = 0,
) -> Case:
    config = BASE | QUANTIZERS[quantizer] | GRANULARITIES[granularity] | {"activation_quantizer": activation}
    for flag, value in flags.items():
        config |= FLAGS[flag][value]
    words = [
        quantizer,
        granularity,
        activation,
        *(f"{flag}={value}" for flag, value in flags.items() if FLAGS[flag][value]),
    ]
    extras = [layout, pack_mode, embedding_level]
    words += [str(word) for word in extras if word not in ("run", None, "float16")]
    return Case("-".join(words), config, layout, pack_mode, embedding_level, seed)


def random_model(case: Case) -> OneBitForCausalLM:
    """Weights that keep activations near 1; norms and biases away from 1 and 0, so that ignoring one shows."""
    torch.manual_seed(case.seed)
    model = OneBitForCausalLM(OneBitConfig(**case.config)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            if parameter.ndim == 2:
                parameter.copy_(noise * (0.5 if "embed" in name else parameter.shape[1] ** -0.5))
            else:
                parameter.copy_(0.2 * noise if name.endswith("bias") else 1 + 0.2 * noise)
    return model


def measure(case: Case, folder: Path, *, layers: bool = True) -> Parity:
    """Export the case's model into `folder` and ask the four questions; layers: take each alone too."""
    path = folder / "case.1bit"
    model = random_model(case)
    write(path, from_model(model, layout=case.layout, pack_mode=case.pack_mode, embedding_level=case.embedding_level))
    engine, reference = EngineForm(path, threads=1), TorchForm(model, case.name)
    rng = np.random.default_rng(case.seed)
    texts = rng.integers(0, model.config.vocab_size, (TEXTS, TEXT))
    sequence_T, decoded_TV = _greedy(engine.model, rng.integers(0, model.config.vocab_size, PROMPT))
    with rounded_like(model, engine.stored_tables):
        expected = np.concatenate([reference.logits(text) for text in texts])
        expected_greedy_TV = reference.logits(sequence_T)
        alone = layers_alone(reference, engine, sequence_T) if layers else []
    logits = np.concatenate([engine.logits(text) for text in texts])
    scalar = Model(path, threads=1, isa="scalar")
    parted = np.flatnonzero(expected_greedy_TV.argmax(-1) != decoded_TV.argmax(-1))
    at = int(parted[parted >= PROMPT - 1][0]) if (parted >= PROMPT - 1).any() else None
    return Parity(
        relative=_relative(expected, logits),
        relative_long=_relative(expected_greedy_TV, decoded_TV),
        alone=alone,
        parted_at=at,
        parted_margin=0.0 if at is None else margin(expected_greedy_TV[at]) / float(np.abs(expected_greedy_TV).max()),
        decode_equals_batch=np.array_equal(engine.logits(sequence_T), decoded_TV),
        scalar_equals_simd=np.array_equal(scalar.logits(sequence_T, kv="float32"), decoded_TV),
    )


def _relative(expected: np.ndarray, found: np.ndarray) -> np.ndarray:
    return (np.abs(expected.astype(np.float64) - found) / np.abs(expected).max()).ravel()


def _greedy(model: Model, prompt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The engine's greedy continuation [T] (prompt first) and its logits [T, V], decoded one token at a time."""
    session = model.session(kv="float32")  # as torch keeps them
    ids = [int(token) for token in prompt]
    logits = [session.prefill(ids[:1]), *(session.decode(token) for token in ids[1:])]
    for _ in range(GREEDY - 1):
        ids.append(int(logits[-1].argmax()))
        logits.append(session.decode(ids[-1]))
    return np.array(ids), np.stack(logits)


def figures(found: dict[Case, Parity]) -> dict[str, float]:
    """The distribution over all logits of all cases, and how often a promise was broken."""
    result: dict[str, float] = {"cases": len(found)}
    for activation in ACTIVATIONS:
        group = [parity for case, parity in found.items() if case.activation == activation]
        if not group:
            continue
        for name, values in (
            ("", np.concatenate([parity.relative for parity in group])),
            ("_long", np.concatenate([parity.relative_long for parity in group])),
        ):
            result[f"{activation}{name}_median"] = float(np.median(values))
            result[f"{activation}{name}_p99"] = float(np.percentile(values, 99))
            result[f"{activation}{name}_max"] = float(values.max())
        if layers := [layer for parity in group for layer in parity.alone]:
            result[f"{activation}_alone_agreeing_min"] = min(layer.agreeing for layer in layers)
            result[f"{activation}_alone_max"] = max(layer.maximum for layer in layers)
        result[f"{activation}_greedy_identical"] = sum(parity.parted_at is None for parity in group) / len(group)
    result["greedy_parted_margin_max"] = max(parity.parted_margin for parity in found.values())
    result["decode_differs_from_batch"] = sum(not parity.decode_equals_batch for parity in found.values())
    result["scalar_differs_from_simd"] = sum(not parity.scalar_equals_simd for parity in found.values())
    return result


def run(cases: list[Case], *, layers: bool = True) -> dict[Case, Parity]:
    """Measure all cases, with a line of progress now and then; layers: as `measure`."""
    found: dict[Case, Parity] = {}
    started = shown = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for i, case in enumerate(cases, 1):
            found[case] = measure(case, Path(folder), layers=layers)
            if time.monotonic() - shown > 5 or i == len(cases):
                shown = time.monotonic()
                print(f"{i}/{len(cases)} cases, {shown - started:.0f} s", file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the test suite's grid; no result file")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every N-th case of the full grid")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases = list(quick_cases() if arguments.quick else full_cases())[:: arguments.every]
    found = run(cases)
    summary = figures(found)
    for name, value in summary.items():
        print(f"{name:28} {value:.3g}")
    worst = max(found, key=lambda case: float(found[case].relative.max()))
    print(f"worst case: {worst.name}")
    if not arguments.quick:
        from record import write_result

        sizes = {"texts": TEXTS, "text": TEXT, "prompt": PROMPT, "greedy": GREEDY}
        config = {"base": BASE, "tokens": sizes, "every": arguments.every, "kernels": _kernels(cases[0])}
        print(write_result("parity", config, summary, {"notes": f"worst case: {worst.name}"}))


def _kernels(case: Case) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "case.1bit"
        write(path, from_model(random_model(case)))
        return Model(path).kernels()


if __name__ == "__main__":
    main()
