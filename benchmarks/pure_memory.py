"""What do weights, gradients and optimizer take in memory at the shape of BitNet b1.58 2B-4T?

    python benchmarks/pure_memory.py [--device cpu] [--arms int8 int4 ...] [--layers 30] [--tokens 32] [--work-dir DIR]

The model is transformers' BitNet with the shape of microsoft/bitnet-b1.58-2B-4T: 2.08 billion ternary weights in 30
layers, a scale for each matrix, random codes and counters, which are made as codes and never were floats. Embedding
and head are one table in bfloat16 and frozen, and so is everything that is computed. Two whole steps with one sequence:
forward, backward, the optimizer's step. The loss is the last token's over 1,024 words: logits of all 128,256, for which
a CPU's library copies the table, are no part of the question. Arms:

    int8, int4                  pure training, one backward pass a step
    int8+bfloat16, int8+int8    two backward passes a step, whose gradients are summed in bfloat16 or in blocks of int8
    int8/group128               a scale for every 128 weights, as `onebit sft --pure` has it
    hybrid                      latents in bfloat16 and AdamW, at 2 and 4 layers, and at --hybrid-layers if they fit

Each arm is a process of its own. Its memory (on a CPU resident memory, as Linux counts it; on CUDA what the allocator
gave out) has a peak in each phase of a step; from that is taken what is no part of the question:

    baseline     interpreter, libraries and their buffers: what the process has after two steps of a small model
    table        the frozen embedding, exactly
    activations  what autograd saves for the backward pass, each storage once, without the model's own; from the peaks
                 of forward and backward only: in the optimizer's step there are none

What is left, at the phase where it is most, divided by the number of ternary weights is `bytes_per_weight`. It holds
everything else: a layer's gradient, temporary tensors, what the allocator keeps. `between_steps` is what is left when
the second step is over, and `counted` what `onebit memory` says of that. `step_gib` is the whole process at
its peak, nothing taken away. The hybrid's bytes a weight are a slope, what two more layers add: its constant part would
count against it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "src")]

from journal import add_line, read_lines  # noqa: E402

LAYERS = 30
ARMS = ("int8", "int4", "int8+bfloat16", "int8+int8", "int8/group128", "hybrid")
HYBRID_LAYERS = (2, 4)


def main() -> None:
    arguments = parse_arguments()
    if arguments.child:
        import torch

        from pure_memory_process import measure

        # When memory runs out, this process is the one to end.
        Path("/proc/self/oom_score_adj").write_text("1000")
        device = torch.device(arguments.device)
        print(json.dumps(measure(*arguments.arms, arguments.layers, arguments.tokens, device)))
        return
    samples = []
    for arm in arguments.arms:
        for layers in (*HYBRID_LAYERS, *arguments.hybrid_layers) if arm == "hybrid" else (arguments.layers,):
            samples.append(sample_of(arm, layers, arguments))
            print(line(samples[-1]), flush=True)
    if arguments.layers == LAYERS and set(ARMS) <= set(arguments.arms):
        from pure_memory_process import SHAPE, VOCABULARY
        from record import write_result

        config = {
            "device": arguments.device,
            **SHAPE,
            "layers": LAYERS,
            "vocabulary": VOCABULARY,
            "tokens": arguments.tokens,
            "steps": 2,
        }
        print(write_result("pure_memory", config, figures_of(samples), {"samples": samples}))


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--layers", type=int, default=LAYERS, help="of pure arms; a result is written with all 30 only")
    parser.add_argument("--hybrid-layers", nargs="*", type=int, default=[], help=f"of hybrid, beside {HYBRID_LAYERS}")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--work-dir", type=Path, default=HERE.parent / "runs" / "pure_memory")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def sample_of(arm: str, layers: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """What a process of its own measures, or what it measured in an earlier run."""
    tokens, device, folder = arguments.tokens, arguments.device, arguments.work_dir
    file, name = folder / "results.jsonl", f"{device} {arm} {layers} {tokens}"
    if (kept := read_lines(file).get(name)) is not None:
        return kept
    command = [sys.executable, __file__, "--child", "--device", device, "--arms", arm]
    command += ["--layers", str(layers), "--tokens", str(tokens)]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    sample = {"name": name, **json.loads(found.splitlines()[-1])}
    folder.mkdir(parents=True, exist_ok=True)
    add_line(file, sample)
    return sample


def figures_of(samples: list[dict[str, Any]]) -> dict[str, float]:
    """Bytes a weight of each arm, their ratio to the hybrid's, GiB of the whole process."""
    pure = {sample["arm"]: sample for sample in samples if sample["arm"] != "hybrid"}
    hybrid = sorted((sample for sample in samples if sample["arm"] == "hybrid"), key=lambda sample: sample["layers"])
    fewer, more = hybrid[:2]
    slope = (more["need"] - fewer["need"]) / (more["weights"] - fewer["weights"])
    each = {arm: sample["bytes_per_weight"] for arm, sample in pure.items()}
    largest = hybrid[-1]
    figures = {
        "bytes_per_weight_int8_peak": each["int8"],
        "bytes_per_weight_int4_peak": each["int4"],
        "bytes_per_weight_int8_group128_peak": each["int8/group128"],
        "bytes_per_weight_hybrid_bf16_slope": slope,
        "hybrid_bf16_over_int8": slope / each["int8"],
        "hybrid_bf16_over_int4": slope / each["int4"],
        "with_bf16_sum_int8": each["int8+bfloat16"],
        "with_int8_sum_int8": each["int8+int8"],
        "hybrid_bf16_largest_layers": largest["layers"],
        "bytes_per_weight_hybrid_bf16_largest": largest["bytes_per_weight"],
    }
    for arm in ("int8", "int4"):
        figures[f"bytes_per_weight_{arm}_between_steps"] = pure[arm]["between_steps"] / pure[arm]["weights"]
        figures[f"bytes_per_weight_{arm}_counted"] = pure[arm]["counted"] / pure[arm]["weights"]
        figures[f"step_gib_{arm}"] = max(pure[arm]["peaks"].values()) / 2**30
    return {name: round(value, 4) for name, value in figures.items()}


def line(sample: dict[str, Any]) -> str:
    """One line for a sample."""
    peaks = ", ".join(f"{phase} {peak / 1e9:.3f}" for phase, peak in sample["peaks"].items())
    return (
        f"{sample['arm']:14} {sample['layers']:3} layers {sample['bytes_per_weight']:.4f} bytes a weight; GB: {peaks}, "
        f"activations {sample['activations'] / 1e9:.3f}, table {sample['table'] / 1e9:.3f}, "
        f"baseline {sample['baseline'] / 1e9:.3f}, between steps {sample['between_steps'] / 1e9:.3f}, "
        f"counted {sample['counted'] / 1e9:.3f}; {sample['seconds_a_step']} s a step"
    )


if __name__ == "__main__":
    main()
