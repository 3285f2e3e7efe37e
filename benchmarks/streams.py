"""How much faster are several streams in one session than one after the other?

    python benchmarks/streams.py [--streams 8] [--threads 1] [--new-tokens 48] [--rounds 5]

Random weights of the 45m shape (hidden 512, 6 layers, vocabulary 50257): decode reads the weights once a step, for all
streams together. One stream and several take turns, round by round, and the medians are compared. With one thread the
clock is that of the thread, which other programs do not disturb much; with more it is the one on the wall.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "src")]

SHAPE: dict[str, Any] = {
    "vocab_size": 50257,
    "hidden_size": 512,
    "num_layers": 6,
    "num_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "intermediate_size": 2048,
    "max_seq_len": 1024,
    "mlp": "swiglu",
    "eos": None,
    "bos": None,
}
PROMPT = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--model", type=Path, help="a .1bit file [default: random weights]")
    parser.add_argument("--no-record", action="store_true", help="write no result file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.model or random_model(Path(folder))
        rounds = measure(path, arguments)
    figures = {name: statistics.median(speeds) for name, speeds in rounds.items()}
    figures["speedup"] = figures[f"streams_{arguments.streams}_tokens_per_s"] / figures["streams_1_tokens_per_s"]
    for name, value in figures.items():
        print(f"{name:<28} {value:10.2f}")
    if not arguments.no_record:
        from record import write_result

        config = {name: value for name, value in vars(arguments).items() if name not in ("model", "no_record")}
        path = write_result("streams", config | {"shape": SHAPE, "prompt": PROMPT}, figures, {"samples": rounds})
        print(f"written: {path}")


def random_model(folder: Path) -> Path:
    """The 45m shape with an int8 head, as `onebit export` writes it."""
    from onebit.formats.onebit_file import write
    from onebit.formats.random_model import random_description, random_file

    path = folder / "45m.1bit"
    write(path, random_file(random_description(**SHAPE), embedding_layout="int8", head_activation="int8"))
    return path


def measure(path: Path, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """New tokens a second after the prompts, one stream and several in turn."""
    from onebit.engine import Batch, Model

    model = Model(path, threads=arguments.threads)
    clock = time.thread_time if arguments.threads == 1 else time.perf_counter
    batches = {
        count: Batch(model, count, max_positions=PROMPT + arguments.new_tokens) for count in (1, arguments.streams)
    }
    speeds: dict[str, list[float]] = {f"streams_{count}_tokens_per_s": [] for count in batches}
    for turn in range(arguments.rounds):
        for count, batch in batches.items():
            for stream in range(count):
                prompt = [(turn * 997 + stream * 131 + i * 7) % 50257 for i in range(PROMPT)]
                batch.submit(
                    prompt, max_new_tokens=arguments.new_tokens, temperature=arguments.temperature, seed=stream
                )
            speeds[f"streams_{count}_tokens_per_s"].append(_decode_speed(batch, count, clock))
    return speeds


def _decode_speed(batch: Any, count: int, clock: Callable[[], float]) -> float:
    """From the step in which all streams write to the first end."""
    tokens, began = 0, 0.0
    while True:
        events = batch.step()
        if began and len(events) == count:
            tokens += count
        if not began and len(events) == count:
            began = clock()
        if any(event.stopped_by for event in events):
            seconds = clock() - began
            for _ in batch.run():
                pass
            return tokens / seconds


if __name__ == "__main__":
    main()
