"""Does a model train without latents as well as with them? Pure training beside hybrid training and a float twin.

    python benchmarks/pure.py --data-dir DIR [--task scratch finetune] [--arms hybrid@5e-3 int8@0.12 ...] [--seeds 0 1]

DIR holds `wikitext-2/{test,valid}.txt` and `tinyshakespeare/input.txt`. Without it the text is the standard library.

Protocol. A byte-level decoder of the LLaMA kind (4 layers, an RMSNorm in front of every linear layer; 256 wide with
3.0 M weights in its linear layers, or with --size 0.7M 128 wide with 0.66 M), 8 windows of 128 bytes a step; --size 26M
has 8 layers, 512 wide, and 16 windows of 256 bytes. In float32 on a CPU, under bfloat16 autocast on CUDA. Text A is
WikiText-2's valid.txt and the first 80 % of test.txt, judged on the rest of test.txt; text B is tinyshakespeare, 90 %
and 10 %. `scratch` trains on A; `finetune` starts from a hybrid model trained on A (--base-steps) and trains on B. A
seed decides initial weights and batches, so arms are compared within a seed. Every arm has embedding, head, norms and
scales in float32 by AdamW at --lr, a warm-up over 5 % of the steps, a cosine to 0 and gradients clipped to 1; a
ternary arm rounds its inputs to int8.

An arm is METHOD@RATE: float and hybrid take AdamW's rate of the matrices (hybrid with weight decay 0.1); int8, int4 and
none are the counters of pure training and take eta; the rules of onebit.optim.pure_rules take lr (shadow, shadow_sgd,
dqt), the threshold (gradient_buffer) or tau (bop), and those with a shadow begin it at the latents. `+K` behind an arm
gives each step in K microbatches, and `:SUM` behind that says what pure training sums them in (bfloat16, int8, or
deposit: not at all). Bits per byte are taken on 48 fixed batches at the end of the run. What a step costs beside
another's is for benchmarks/pure_step.py. Each result is added to --work-dir/results.jsonl at once; what is there is not
run again. Several calls may share a work dir: rates are tried on the first seed, then the best takes the others.

`--finished` runs nothing: it makes the result file and the picture of what the work dir holds for --size and --steps,
each method at the rate that was best on the first seed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "src")]

from journal import add_line, read_lines  # noqa: E402

ARMS = ("float@3e-3", "hybrid@5e-3", "int8@0.12", "int4@0.12", "none@0.12")
METHODS = ("float", "hybrid", "int8", "int4", "none", "shadow", "shadow_sgd", "gradient_buffer", "bop", "dqt")
STEPS = {"scratch": 400, "finetune": 250}
SUMS = ("bfloat16", "int8", "deposit")
VALIDATION_BATCHES = 48


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run: what decides its result."""

    task: str
    size: str
    arm: str
    seed: int
    steps: int
    base_steps: int
    lr: float
    data: str
    device: str = "cpu"

    @property
    def name(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Arm:
    """What the name of an arm says."""

    method: str
    rate: float
    microbatches: int = 1
    accumulation: str = "bfloat16"

    @classmethod
    def of(cls, name: str) -> Arm:
        """Raises ValueError for a name that says nothing."""
        method, _, rest = name.partition("@")
        rate, _, rest = rest.partition("+")
        microbatches, _, accumulation = rest.partition(":")
        arm = cls(method, float(rate), int(microbatches or 1), accumulation or cls.accumulation)
        for given, known in ((method, METHODS), (arm.accumulation, SUMS)):
            if given not in known:
                raise ValueError(f"{given!r} is not one of {', '.join(known)}")
        if not arm.rate > 0 or 8 % arm.microbatches:
            raise ValueError("the rate must be positive, and K a divisor of 8")
        return arm


def main() -> None:
    arguments = parse_arguments()
    import torch

    torch.set_num_threads(1)
    file = arguments.work_dir / "results.jsonl"
    if arguments.finished:
        finish([result for result in read_lines(file).values() if is_asked_for(result, arguments)], arguments)
        return
    arguments.work_dir.mkdir(parents=True, exist_ok=True)
    results = []
    for seed in arguments.seeds:
        for task in arguments.task:
            for arm in arguments.arms:
                job = Job(
                    task=task,
                    size=arguments.size,
                    arm=arm,
                    seed=seed,
                    steps=arguments.steps or STEPS[task],
                    base_steps=arguments.base_steps if task == "finetune" else 0,
                    lr=arguments.lr,
                    data="stdlib" if arguments.data_dir is None else "wikitext2+tinyshakespeare",
                    device=arguments.device,
                )
                results.append(result_of(job, arguments, file))
    print(table(results))


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="folder with wikitext-2/ and tinyshakespeare/")
    parser.add_argument("--task", nargs="+", choices=("scratch", "finetune"), default=["scratch"])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), metavar="METHOD@RATE[+K[:SUM]]")
    parser.add_argument("--size", choices=("0.7M", "3M", "26M"), default="3M", help="weights in the linear layers")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--steps", type=int, help="400 from scratch, 250 of fine-tuning")
    parser.add_argument("--base-steps", type=int, default=900, help="of the hybrid model that fine-tuning starts from")
    parser.add_argument("--lr", type=float, default=3e-3, help="of embedding, head, norms and scales")
    parser.add_argument("--finished", action="store_true", help="make the record of the runs that the work dir holds")
    parser.add_argument("--work-dir", type=Path, default=HERE.parent / "runs" / "pure")
    arguments = parser.parse_args(argv)
    for arm in arguments.arms:
        try:
            Arm.of(arm)
        except ValueError as error:
            parser.error(f"--arms: {arm!r} is not METHOD@RATE[+K[:SUM]]: {error}")
    return arguments


def result_of(job: Job, arguments: argparse.Namespace, file: Path) -> dict[str, Any]:
    """The result of a job, from the file when it is there."""
    from pure_training import run

    if (kept := read_lines(file).get(job.name)) is not None:
        return kept
    began = time.process_time()
    found = run(job, Arm.of(job.arm), arguments.data_dir, arguments.work_dir)
    result = {"name": job.name, **asdict(job), **found, "seconds": round(time.process_time() - began, 1)}
    add_line(file, result)
    print(f"{job.task} {job.arm} seed {job.seed}: {result['bpb']:.4f} bits per byte", flush=True)
    return result


def is_asked_for(result: dict[str, Any], arguments: argparse.Namespace) -> bool:
    steps = arguments.steps or STEPS[result["task"]]
    asked = (arguments.size, steps, arguments.device)
    return bool((result["size"], result["steps"], result["device"]) == asked)


def finish(results: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    """Write the result file and its picture."""
    from pure_figures import draw, figures_of
    from record import write_result

    if not results:
        raise SystemExit(f"--finished: {arguments.work_dir} holds no run of size {arguments.size} with these steps")
    results.sort(key=lambda result: (result["task"], result["arm"], result["seed"]))
    config = {
        "size": arguments.size,
        "device": arguments.device,
        "steps": {result["task"]: result["steps"] for result in results},
        "base_steps": max(result["base_steps"] for result in results),
        "lr": sorted({result["lr"] for result in results}),
        "data": sorted({result["data"] for result in results}),
        "arms": list(dict.fromkeys(result["arm"] for result in results)),
    }
    is_usual = arguments.size == "3M" and arguments.steps is None
    name = "pure" if is_usual else f"pure_{arguments.size}_{results[0]['steps']}"
    path = write_result(name, config, figures_of(results), {"samples": results})
    draw(results, path.with_suffix(".png"))
    print(table(results))
    print(path)


def table(results: list[dict[str, Any]]) -> str:
    """One line for each task and arm: the mean over the seeds, then each seed."""
    lines = ["task      arm            bits per byte   by seed            bytes a weight   ms a step   zeros   flips"]
    for task, arm in dict.fromkeys((result["task"], result["arm"]) for result in results):
        mine = [result for result in results if (result["task"], result["arm"]) == (task, arm)]
        mean = sum(result["bpb"] for result in mine) / len(mine)
        each = " ".join(f"{result['bpb']:.4f}" for result in mine)
        last = mine[-1]
        lines.append(
            f"{task:9} {arm:14} {mean:13.4f}   {each:18} {last['bytes_per_weight']:14.2f} "
            f"{last['ms_per_step']:11.0f} {last['zeros']:7.3f} {last['flips_mean']:7.4f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
