"""Does the server give a batch's speed to its clients, and does it hold many of them for long?

    python benchmarks/server.py [--shape 2b4t] [--minutes 5] [--streams 64] [--threads 2]
    python benchmarks/server.py --quick     a small shape, seconds, nothing is recorded

Throughput: `onebit serve` on random weights of --shape, 64 new tokens a request, greedy; one client alone and eight at
once take turns in every round. `server_throughput_8_over_1` is the ratio of tokens a second, the median of rounds;
`share_of_int8_peak` what eight streams' products are of the measured peak of the int8 dot product.

Soak: --streams clients of the model inside onebit, each with one request after another, for --minutes; beside them
clients that leave in the middle, bodies that are no JSON, prompts beyond the context and wrong keys. An error is any
status but the expected one, and a stream that ends without [DONE]. Memory is what Linux says is resident; its growth is
the median of the last fifth of the time less that of the second fifth, the first being the warm-up.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from onebit.engine import Model
from onebit.engine.limits import int8_peak, linear_isas
from onebit.formats.onebit_file import read, write
from onebit.formats.random_shapes import shape_file_name, write_shape

KEY = "soak"
NEW_TOKENS = 64
PROMPT = list(range(5, 37))


@contextmanager
def served(model: str, *options: str) -> Iterator[tuple[str, int]]:
    """(address, process id) of `onebit serve`."""
    command = [sys.executable, "-m", "onebit.cli.main", "serve", model, "--port", "0", "--name", "model", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split()[1].rstrip("/"), process.pid
    finally:
        process.terminate()
        process.wait(60)


def give_tokenizer(path: Path, layout: str) -> tuple[int, str]:
    """Put a tokenizer of bytes into a model without one: (its weights in linear layers, their instruction set)."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(alphabet)}, []))
    tokenizer.decoder = decoders.ByteLevel()
    file = read(path)
    write(path.with_suffix(".new"), replace(file, tokenizer_json=tokenizer.to_str()))
    path.with_suffix(".new").replace(path)
    shapes = [tensor.shape for name, tensor in file.tensors.items() if "embed" not in name and tensor.shape[0] > 1]
    isa = linear_isas(Model(path).kernels())[layout]
    return sum(rows * cols for rows, cols in shapes), isa


async def tokens_of(client: httpx.AsyncClient, body: dict[str, Any]) -> int:
    """New tokens of one answer."""
    answer = await client.post("/v1/completions", json=body)
    answer.raise_for_status()
    return int(answer.json()["usage"]["completion_tokens"])


async def throughput(address: str, streams: int) -> float:
    """Tokens a second of so many clients at once, reading prompts included."""
    async with httpx.AsyncClient(base_url=address, timeout=600) as client:
        bodies = [
            {"model": "model", "prompt": [*PROMPT, i], "max_tokens": NEW_TOKENS, "temperature": 0}
            for i in range(streams)
        ]
        began = time.perf_counter()
        counts = await asyncio.gather(*(tokens_of(client, body) for body in bodies))
        return sum(counts) / (time.perf_counter() - began)


class Soak:
    """Clients of all kinds until a time, and what they met."""

    def __init__(self, address: str, until: float) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self.client = httpx.AsyncClient(
            base_url=address, timeout=300, limits=limits, headers={"authorization": f"Bearer {KEY}"}
        )
        self.until = until
        self.answers: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()

    async def run(self, streams: int) -> None:
        async with self.client:
            troublesome = (self.leaving, self.malformed, self.too_long, self.unknown)
            await asyncio.gather(
                *(self.streaming(i) for i in range(streams)), *(self.now_and_then(kind) for kind in troublesome)
            )

    async def streaming(self, number: int) -> None:
        """One stream after another."""
        seed = number
        while time.monotonic() < self.until:
            seed += 1000
            body = {"model": "model", "prompt": f"def f{number}(", "max_tokens": 48, "seed": seed, "stream": True}
            try:
                async with self.client.stream("POST", "/v1/completions", json=body) as answer:
                    lines = [line async for line in answer.aiter_lines() if line]
                self._note("stream", answer.status_code == 200 and lines[-1] == "data: [DONE]")
            except httpx.HTTPError as problem:
                self._note(f"stream: {type(problem).__name__}", False)

    async def now_and_then(self, kind: Any) -> None:
        while time.monotonic() < self.until:
            try:
                await kind()
            except httpx.HTTPError as problem:
                self._note(f"{kind.__name__}: {type(problem).__name__}", False)
            await asyncio.sleep(0.2)

    async def leaving(self) -> None:
        body = {"model": "model", "prompt": "import ", "max_tokens": 200, "stream": True}
        async with self.client.stream("POST", "/v1/completions", json=body) as answer:
            async for _ in answer.aiter_lines():
                break
        self._note("leaving", answer.status_code == 200)

    async def malformed(self) -> None:
        answer = await self.client.post("/v1/completions", content=b'{"model": "model", "prom')
        self._note("malformed", answer.status_code == 400)

    async def too_long(self) -> None:
        body = {"model": "model", "prompt": "x = 1\n" * 20_000}
        self._note("too long", (await self.client.post("/v1/completions", json=body)).status_code == 400)

    async def unknown(self) -> None:
        headers = {"authorization": "Bearer nobody"}
        self._note("wrong key", (await self.client.get("/v1/models", headers=headers)).status_code == 401)

    def _note(self, kind: str, is_right: bool) -> None:
        (self.answers if is_right else self.errors)[kind] += 1


def resident_mb(process: int) -> float:
    """Resident memory of a process, in megabytes."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


async def soak(address: str, process: int, streams: int, seconds: float) -> dict[str, Any]:
    """Errors, answers, and memory over time."""
    began = time.monotonic()
    work = Soak(address, began + seconds)
    memory: list[tuple[float, float]] = []

    async def watch() -> None:
        while time.monotonic() < work.until:
            memory.append((time.monotonic() - began, resident_mb(process)))
            await asyncio.sleep(min(1.0, seconds / 20))

    await asyncio.gather(work.run(streams), watch())
    fifths = [[mb for when, mb in memory if n <= 5 * when / seconds < n + 1] for n in range(5)]
    return {
        "errors": dict(work.errors),
        "answers": dict(work.answers),
        "memory_mb": memory,
        "growth_mb": statistics.median(fifths[4]) - statistics.median(fifths[1]),
        "seconds": time.monotonic() - began,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="2b4t", help="of random weights [default: 2b4t]")
    parser.add_argument("--layout", default="ternary_t16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="to see that it works; numbers mean nothing")
    arguments = parser.parse_args()
    shape, rounds, minutes = arguments.shape, arguments.rounds, arguments.minutes
    if arguments.quick:
        shape, rounds, minutes = "45m", 1, 0.1
    threads = ("--threads", str(arguments.threads))
    ratios, speeds = [], {1: [], 8: []}  # type: ignore[var-annotated]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / shape_file_name(shape, arguments.layout)
        write_shape(path, shape, arguments.layout)
        weights, isa = give_tokenizer(path, arguments.layout)
        with served(str(path), "--slots", "8", "--context", "256", *threads) as (address, _):
            asyncio.run(throughput(address, 8))
            for _ in range(rounds):
                for streams in speeds:
                    speeds[streams].append(asyncio.run(throughput(address, streams)))
                ratios.append(speeds[8][-1] / speeds[1][-1])
                print(f"1 stream {speeds[1][-1]:.2f}, 8 streams {speeds[8][-1]:.2f} tokens/s", flush=True)
    limits = ("--api-key", KEY, "--slots", "16", *threads)
    with served("tiny", *limits) as (address, process):
        told = asyncio.run(soak(address, process, arguments.streams, 60 * minutes))
    print(told["answers"], told["errors"], f"growth {told['growth_mb']:.1f} MB")
    figures = {
        "server_throughput_8_over_1": statistics.median(ratios),
        "tokens_per_s_1_stream": statistics.median(speeds[1]),
        "tokens_per_s_8_streams": statistics.median(speeds[8]),
        "server_errors_64_streams": sum(told["errors"].values()),
        "server_memory_growth_mb": told["growth_mb"],
        "soak_answers": sum(told["answers"].values()),
        "soak_seconds": told["seconds"],
    }
    peak = int8_peak(isa, arguments.threads)
    if peak is not None:
        figures["share_of_int8_peak_8_streams"] = figures["tokens_per_s_8_streams"] * 2 * weights / 1e9 / peak
    for name, value in figures.items():
        print(f"{name:<34} {value:10.4g}")
    if arguments.quick:
        print("quick: nothing is recorded")
        return
    from record import write_result

    config = {name: getattr(arguments, name) for name in ("shape", "layout", "rounds", "minutes", "streams", "threads")}
    config |= {"new_tokens": NEW_TOKENS, "prompt_tokens": len(PROMPT) + 1}
    record = write_result("server", config, figures, {"samples": {"tokens_per_s": speeds, "soak": told}})
    draw(told["memory_mb"], record.with_suffix(".png"))
    print(record)


def draw(memory_mb: list[tuple[float, float]], path: Path) -> None:
    """Resident memory over the soak."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 3))
    axis.plot([when / 60 for when, _ in memory_mb], [mb for _, mb in memory_mb], color="#1f6feb", linewidth=1)
    axis.set(xlabel="minutes", ylabel="resident memory of the server, MB", ylim=(0, None))
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
