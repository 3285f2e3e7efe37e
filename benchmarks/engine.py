"""How near the engine comes to the machine's limits, and how it stands beside bitnet.cpp, llama.cpp and PyTorch.

Random weights in the shapes 2b4t, 700m and 45m. Each round measures the limits, the engine and the peers in turn and
appends every measurement to WORK/samples.jsonl, so a run can be stopped and taken up again in parts; the figures are
made from all the samples of WORK.

python benchmarks/engine.py WORK                          the engine alone, all shapes, three rounds, then the figures
python benchmarks/engine.py WORK --only 2b4t --rounds 1   a part: one round of one shape
python benchmarks/engine.py WORK --report                 only the figures of what is in WORK

--llama-python: a Python that has llama-cpp-python and gguf; --bitnet-bench: the llama-bench of bitnet.cpp. Peers have
a Q6_K head (from their own converters it would be larger), the engine int8. --torch adds PyTorch in bfloat16 on 700m.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engine_figures import figures, print_figures
from onebit.engine import Model
from onebit.engine.limits import int8_peak
from onebit.eval.speed import SpeedPlan, measure_speed
from onebit.formats.random_shapes import BODY_LAYOUTS, SHAPES, shape_file_name, write_shape

HERE = Path(__file__).resolve().parent
THREADS = (1, 2)
NEW_TOKENS = 64
PROMPTS, LONG_PROMPTS = (128, 512), (2048,)
PARTS = ("ours", "long", "layouts", "memory", "bitnet_cpp", "llama_cpp")
Sample = dict[str, Any]


def shape_file(work: Path, shape: str, layout: str) -> Path:
    """Our file of a shape, written when it is not there yet."""
    path = work / shape_file_name(shape, layout)
    if not path.is_file():
        print(f"writing {path.name}", file=sys.stderr, flush=True)
        write_shape(path, shape, layout)
    return path


def gguf_file(work: Path, shape: str, body: str, python: str) -> Path:
    """The peers' file of a shape, written by a Python that has gguf."""
    path = work / f"{shape}-{body}.gguf"
    if not path.is_file():
        print(f"writing {path.name}", file=sys.stderr, flush=True)
        description = json.dumps(asdict(SHAPES[shape]))
        partial = path.with_suffix(".partial")
        subprocess.run([python, str(HERE / "engine_gguf.py"), description, body, str(partial)], check=True)
        partial.rename(path)
    return path


def ours(work: Path, shape: str, prompts: tuple[int, ...] = PROMPTS) -> Iterator[Sample]:
    """The engine and the limits, one number of threads after the other."""
    path = shape_file(work, shape, BODY_LAYOUTS[0])
    for threads in THREADS:
        plan = SpeedPlan(prompt_lengths=prompts, new_tokens=NEW_TOKENS, threads=(threads,), kv="float16", rounds=1)
        result = measure_speed(path, plan)
        limits = {"gb_per_s": result.bandwidths[threads][0], "int8_gops": next(iter(result.peaks[threads]), None)}
        limits["avx512_gops"] = int8_peak("avx512", threads)  # beside tiles (AMX) the yardstick of the sets before
        limits["body_weights"] = result.bytes.body_weights
        yield {"part": "limits", "what": "limits", "tokens": 0, "threads": threads, "isa": result.isa, **limits}
        for speed in result.speeds:
            yield {
                "part": "ours",
                "what": speed.what,
                "tokens": speed.tokens,
                "threads": speed.threads,
                "rate": speed.rate,
                "typical": (speed.typical or speed.rates)[0],
                "limit": speed.limit,
            }


def long(work: Path, shape: str) -> Iterator[Sample]:
    """The same with a long prompt, and its matrix part: as many tokens, none of which attends further than in a short
    prompt."""
    yield from ours(work, shape, LONG_PROMPTS)
    model = Model(shape_file(work, shape, BODY_LAYOUTS[0]), threads=1, verify=False)
    for threads in THREADS:
        model.threads = threads
        for tokens in (PROMPTS[0], *LONG_PROMPTS):
            sample = {"part": "matrix", "what": "matrix", "tokens": tokens, "threads": threads}
            yield sample | {"rate": _matrix_rate(model, tokens)}


def _matrix_rate(model: Model, tokens: int) -> float:
    """Tokens/s of so many tokens in sequences of PROMPTS[0]."""
    count = tokens // PROMPTS[0]
    session = model.session(max_positions=PROMPTS[0], kv="float16", sequences=count)
    sequences = [sequence for sequence in range(count) for _ in range(PROMPTS[0])]
    ids = [token % 1000 for token in range(tokens)]
    started = time.perf_counter()
    session.forward_batch(ids, sequences, [False] * (tokens - 1) + [True])
    return tokens / (time.perf_counter() - started)


def layouts(work: Path, shape: str) -> Iterator[Sample]:
    """Decode of each layout in turn: whole tokens, and the body alone (no head), which is where they differ."""
    models = {layout: Model(shape_file(work, shape, layout), threads=1, verify=False) for layout in BODY_LAYOUTS}
    for threads in THREADS:
        for layout, model in models.items():
            model.threads = threads
            for what, logits in (("decode", "last"), ("body", "none")):
                rate = _decode_rate(model, logits)
                sample = {"part": "layouts", "layout": layout, "what": what, "tokens": NEW_TOKENS, "threads": threads}
                yield sample | {"rate": rate}


def _decode_rate(model: Model, logits: str) -> float:
    """Tokens/s by the median token, context empty at the start."""
    session = model.session(max_positions=NEW_TOKENS + 1, kv="float16")
    session.forward([1], logits)
    times = []
    for token in range(NEW_TOKENS):
        started = time.perf_counter()
        session.forward([token], logits)
        times.append(time.perf_counter() - started)
    return 1 / sorted(times)[NEW_TOKENS // 2]


MEMORY = """
import resource, sys
from onebit.engine import Model
def resident(): return int(open('/proc/self/statm').read().split()[1]) * resource.getpagesize()
import numpy
before = resident()
model = Model(sys.argv[1], threads=2, verify=False)
session = model.session(max_positions=int(sys.argv[2]), kv='float16')
session.prefill(list(range(int(sys.argv[2]) - 8)))
for token in range(8): session.decode(token)
print(resident() - before)
"""


def memory(work: Path, shape: str) -> Iterator[Sample]:
    """What the engine's process gains in resident memory over file and KV cache, the cache full."""
    from onebit.eval.speed import kv_bytes

    positions = 256
    path = shape_file(work, shape, BODY_LAYOUTS[0])
    command = [sys.executable, "-c", MEMORY, str(path), str(positions)]
    gained = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    model = Model(path, verify=False)
    beyond = gained - path.stat().st_size - positions * kv_bytes(model.description, "float16")
    yield {"part": "memory", "what": "beyond_file_and_kv_mb", "tokens": positions, "threads": 2, "rate": beyond / 1e6}


def bitnet_cpp(path: Path, bench: str, threads: int) -> Iterator[Sample]:
    """llama-bench of bitnet.cpp. Its prefill keeps a whole layer's outputs on the stack, of each thread."""
    stack = 512 << 20

    def raise_stack_limit() -> None:
        resource.setrlimit(resource.RLIMIT_STACK, (stack, resource.getrlimit(resource.RLIMIT_STACK)[1]))

    lengths = ",".join(map(str, PROMPTS))
    command = [bench, "-m", str(path), "-p", lengths, "-n", str(NEW_TOKENS), "-t", str(threads), "-r", "1"]
    run = subprocess.run(
        [*command, "-o", "json"],
        check=True,
        capture_output=True,
        text=True,
        preexec_fn=raise_stack_limit,
        env=os.environ | {"OMP_STACKSIZE": str(stack >> 10)},
    )
    for test in json.loads(run.stdout[run.stdout.index("[") :]):
        what = "prefill" if test["n_prompt"] else "decode"
        yield {"what": what, "tokens": test["n_prompt"] or test["n_gen"], "rate": test["avg_ts"]}


def llama_cpp(path: Path, python: str, threads: int) -> Iterator[Sample]:
    """llama.cpp through llama-cpp-python."""
    command = [python, str(HERE / "engine_llama.py"), str(path), str(threads), str(NEW_TOKENS), *map(str, PROMPTS)]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    yield from map(json.loads, run.stdout.splitlines())


def torch_bfloat16(shape: str) -> Iterator[Sample]:
    """Prefill of the same shape as a plain bfloat16 Llama in PyTorch."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    d = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=d.vocab_size,
        hidden_size=d.hidden_size,
        intermediate_size=d.intermediate_size,
        num_hidden_layers=d.num_layers,
        num_attention_heads=d.num_heads,
        num_key_value_heads=d.num_key_value_heads,
        tie_word_embeddings=True,
    )
    torch.set_default_dtype(torch.bfloat16)
    model = LlamaForCausalLM(config).eval()
    for threads in THREADS:
        torch.set_num_threads(threads)
        for length in PROMPTS:
            ids = torch.arange(length)[None]
            with torch.inference_mode():
                model(ids, logits_to_keep=1)
                started = time.perf_counter()
                model(ids, logits_to_keep=1)
            sample = {"part": "torch", "what": "prefill", "tokens": length, "threads": threads}
            yield sample | {"rate": length / (time.perf_counter() - started)}


def part_samples(arguments: argparse.Namespace, shape: str, part: str) -> Iterator[Sample]:
    """One part of a round; peers that were not named are left out."""
    work: Path = arguments.work
    if part == "bitnet_cpp" and arguments.bitnet_bench:
        path = gguf_file(work, shape, "I2_S", arguments.llama_python)
        for threads in THREADS:
            for sample in bitnet_cpp(path, arguments.bitnet_bench, threads):
                yield {"part": part, "threads": threads, **sample}
    elif part == "llama_cpp" and arguments.llama_python:
        path = gguf_file(work, shape, "TQ2_0", arguments.llama_python)
        for threads in THREADS:
            for sample in llama_cpp(path, arguments.llama_python, threads):
                yield {"part": part, "threads": threads, **sample}
    elif part in ("ours", "long", "layouts", "memory"):
        yield from {"ours": ours, "long": long, "layouts": layouts, "memory": memory}[part](work, shape)


def measure(arguments: argparse.Namespace) -> None:
    """The rounds that were asked for; every sample is on disk before the next one is measured."""
    with (arguments.work / "samples.jsonl").open("a", encoding="utf-8") as log:

        def keep(shape: str, sample: Sample) -> None:
            log.write(json.dumps({"shape": shape, "time": round(time.time()), **sample}) + "\n")
            log.flush()

        for number in range(arguments.rounds):
            for shape in arguments.only or SHAPES:
                for part in arguments.parts:
                    began = time.monotonic()
                    for sample in part_samples(arguments, shape, part):
                        keep(shape, sample)
                    print(f"round {number + 1} {shape} {part}: {time.monotonic() - began:.0f} s", file=sys.stderr)
        if arguments.torch:
            for sample in torch_bfloat16("700m"):
                keep("700m", sample)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for models and samples; they are kept and used again")
    parser.add_argument("--only", nargs="+", choices=list(SHAPES), help="these shapes")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="these parts of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--llama-python", help="a Python that has llama-cpp-python and gguf")
    parser.add_argument("--bitnet-bench", help="bitnet.cpp's llama-bench")
    parser.add_argument("--torch", action="store_true", help="measure PyTorch bfloat16 on 700m once")
    parser.add_argument("--report", action="store_true", help="measure nothing, make the figures")
    parser.add_argument("--no-report", action="store_true", help="measure only")
    arguments = parser.parse_args()
    if arguments.bitnet_bench and not arguments.llama_python:
        parser.error("--bitnet-bench needs --llama-python too: its model is written with gguf")
    arguments.work.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # torch's threads must not spin beside the next measurement
    if not arguments.report:
        measure(arguments)
    if not arguments.no_report:
        report(arguments.work)


def report(work: Path) -> None:
    """Figures on the terminal and in benchmarks/results."""
    from record import write_result

    samples = [json.loads(line) for line in (work / "samples.jsonl").read_text("utf-8").splitlines()]
    found = figures(samples)
    print_figures(found)
    kernels = {}
    for shape in SHAPES:
        path = work / shape_file_name(shape)
        if path.is_file():
            kernels = {line.partition(": ")[0]: line.partition(": ")[2] for line in Model(path, verify=False).kernels()}
    config = {
        "shapes": {shape: asdict(description) for shape, description in SHAPES.items()},
        "new_tokens": NEW_TOKENS,
        "prompts": PROMPTS + LONG_PROMPTS,
        "kv": "float16",
        "kernels": kernels,
    }
    print(write_result("engine", config, found, {"samples": samples}))


if __name__ == "__main__":
    main()
