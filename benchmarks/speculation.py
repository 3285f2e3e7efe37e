"""How much faster is text with speculation? On the pair of examples/train_speculation_pair.py, with held-out prompts.

    python benchmarks/speculation.py --pair runs/pair      the folder with target.1bit and draft.1bit
    python benchmarks/speculation.py                       trains the pair first, 100 minutes

Two kinds of prompts come from the files that training never saw: an edit (a piece of code, a line `# edited`, and the
beginning of the piece with one identifier renamed, to be completed) and new code (a piece to go on from). Each is
continued greedily without speculation, with look-up, with the draft and with both, in turns, so that what else the
machine does falls on all alike; the texts must be identical. A speed is all new tokens but the first of each text over
the time of decoding them, a figure the median over rounds. Sampled text is timed too, at temperature 0.8.

The cost of a pass over T tokens, beside that over one, says how much there is to gain: figures `pass_of_T_over_1`.
"""

from __future__ import annotations

import argparse
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onebit.data import open_split
from onebit.engine import Model
from record import write_result

TRAIN = Path(__file__).resolve().parent.parent / "examples" / "train_speculation_pair.py"
HELD_OUT, EDIT_LINE = 0.03, "\n# edited\n"  # as in the training script
PASSES = (1, 2, 3, 4, 6, 8, 12, 16)
SAMPLED = {"temperature": 0.8, "top_p": 0.95, "seed": 1}


@dataclass(frozen=True)
class Prompt:
    """Tokens to go on from, and how many to write."""

    ids: list[int]
    new_tokens: int


@dataclass
class Measured:
    """Of one way of writing: seconds and new tokens of each round, and what speculation did in all."""

    seconds: list[float]
    tokens: int = 0
    passes: int = 0
    proposed: int = 0
    accepted: int = 0
    drafted: int = 0

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / len(self.seconds) / statistics.median(self.seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", type=Path, default=Path("runs/pair"))
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--prompts", type=int, default=8, help="of each kind")
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--speculate-tokens", type=int, default=None)
    parser.add_argument("--no-record", action="store_true")
    arguments = parser.parse_args()
    pair: Path = arguments.pair
    if not (pair / "draft.1bit").is_file():
        subprocess.run([sys.executable, str(TRAIN), "--output-dir", str(pair)], check=True)
    figures: dict[str, float] = {}
    samples: dict[str, Any] = {}
    for threads in arguments.threads:
        measure(pair, threads, arguments, figures, samples)
    if not arguments.no_record:
        config = {key: value.name if isinstance(value, Path) else value for key, value in vars(arguments).items()}
        config |= {"sizes": {name: sizes(Model(pair / f"{name}.1bit")) for name in ("target", "draft")}}
        print(write_result("speculation", config, figures, {"samples": samples}))


def measure(
    pair: Path, threads: int, arguments: argparse.Namespace, figures: dict[str, float], samples: dict[str, Any]
) -> None:
    target, draft = (Model(pair / name, threads=threads) for name in ("target.1bit", "draft.1bit"))
    suffix = f"{threads}t"
    for tokens, over in pass_costs(target).items():
        figures[f"pass_of_{tokens}_over_1_{suffix}"] = over
    figures[f"draft_pass_over_1_{suffix}"] = pass_seconds(draft, 1) / pass_seconds(target, 1)
    print("  ".join(f"{name} {value:.2f}" for name, value in figures.items() if name.endswith(suffix)))
    ways: dict[str, dict[str, Any]] = {
        "plain": {},
        "lookup": {"lookup": True},
        "draft": {"draft": draft},
        "both": {"draft": draft, "lookup": True},
    }
    for way in ways.values():
        if way:
            way["speculate_tokens"] = arguments.speculate_tokens
    prompts = held_out_prompts(target, arguments.prompts, arguments.new_tokens)
    for kind, some in prompts.items():
        for style, sampling in (("greedy", {}), ("sampled", SAMPLED)):
            results = take_turns(target, some, ways, sampling, arguments.rounds)
            for way, result in results.items():
                name = f"{kind}_{style}_{way}_{suffix}"
                samples[name] = vars(result)
                figures[f"{name}_tokens_per_s"] = result.tokens_per_s
                if way != "plain":
                    figures[f"{name}_over_plain"] = result.tokens_per_s / results["plain"].tokens_per_s
                    figures[f"{name}_acceptance"] = result.accepted / max(result.proposed, 1)
                    figures[f"{name}_tokens_per_pass"] = result.tokens / max(result.passes, 1)
            report(f"{kind}, {style}, {threads} thread{'s' * (threads > 1)}", results)
    figures[f"lookup_over_plain_{suffix}"] = figures[f"edit_greedy_lookup_{suffix}_over_plain"]
    figures[f"draft_over_plain_{suffix}"] = figures[f"new_greedy_draft_{suffix}_over_plain"]


def take_turns(
    target: Model, prompts: list[Prompt], ways: dict[str, dict[str, Any]], sampling: dict[str, Any], rounds: int
) -> dict[str, Measured]:
    """Every way writes every text in each round; greedy texts, and sampled ones without a draft, must be the same."""
    results = {way: Measured([0.0] * rounds) for way in ways}
    for turn in range(rounds):
        for prompt in prompts:
            texts: dict[str, list[int]] = {}
            for way, options in ways.items():
                generation = target.generate(prompt.ids, max_new_tokens=prompt.new_tokens, **sampling, **options)
                for _ in generation:
                    pass
                texts[way] = generation.ids
                count(results[way], turn, generation.stats)
            for way, ids in texts.items():
                if not (sampling and "draft" in ways[way]) and ids != texts["plain"]:
                    sys.exit(f"error: {way} changed the text")
    return results


def count(result: Measured, turn: int, stats: Any) -> None:
    result.seconds[turn] += stats.decode_seconds
    result.tokens += stats.new_tokens - 1
    for name in ("passes", "proposed", "accepted", "drafted"):
        setattr(result, name, getattr(result, name) + getattr(stats, name))


def report(title: str, results: dict[str, Measured]) -> None:
    print(title)
    for way, r in results.items():
        line = f"  {way:7} {r.tokens_per_s:7.0f} tokens/s  {r.tokens_per_s / results['plain'].tokens_per_s:5.2f} x"
        if r.passes:
            line += (
                f"  {r.tokens / r.passes:5.2f} tokens a pass, {r.accepted}/{r.proposed} accepted, {r.drafted} drafted"
            )
        print(line, flush=True)


def held_out_prompts(model: Model, count: int, new_tokens: int) -> dict[str, list[Prompt]]:
    """`count` edits and `count` pieces of new code, from files that training never saw; the same on every machine."""
    held = open_split("stdlib", val_fraction=HELD_OUT).validation
    assert held is not None
    texts = [piece.text for piece in held.pieces() if len(piece.text) > 2000]
    choose = random.Random(0)
    return {
        "edit": [edit(model, choose, texts) for _ in range(count)],
        "new": [Prompt(model.encode(piece(choose, texts, 16))[:96], new_tokens) for _ in range(count)],
    }


def piece(choose: random.Random, texts: list[str], num_lines: int) -> str:
    lines = choose.choice(texts).splitlines(keepends=True)
    starts = [i for i, line in enumerate(lines[:-num_lines]) if line.lstrip().startswith(("def ", "class "))]
    start = choose.choice(starts) if starts else 0
    return "".join(lines[start : start + num_lines])


def edit(model: Model, choose: random.Random, texts: list[str]) -> Prompt:
    """A function, and the first tokens of its copy with an identifier renamed."""
    while True:
        before = piece(choose, texts, choose.randint(6, 12)).rstrip("\n")
        names = [name for name in re.findall(r"\b[a-z_]{4,}\b", before) if before.count(name) > 1]
        if not names:
            continue
        after = re.sub(rf"\b{choose.choice(names)}\b", "renamed", before)
        begin, copy = model.encode(before + EDIT_LINE), model.encode(after)
        if 60 <= len(copy) <= 110:
            return Prompt(begin + copy[:16], len(copy) - 16)


def pass_costs(model: Model) -> dict[int, float]:
    """A pass over T tokens after 128, in passes over one; measured in turns."""
    samples: dict[int, list[float]] = {tokens: [] for tokens in PASSES}
    run = passes(model)
    for _ in range(30):
        for tokens in PASSES:
            samples[tokens].append(run(tokens))
    one = statistics.median(samples[1])
    return {tokens: statistics.median(seconds) / one for tokens, seconds in samples.items() if tokens > 1}


def pass_seconds(model: Model, tokens: int) -> float:
    run = passes(model)
    return statistics.median(run(tokens) for _ in range(60))


def passes(model: Model) -> Callable[[int], float]:
    session = model.session(256)
    session.prefill([5] * 128)

    def run(tokens: int) -> float:
        began = time.perf_counter()
        session.forward([7] * tokens, "all")
        seconds = time.perf_counter() - began
        session.truncate(128)
        return seconds

    return run


def sizes(model: Model) -> dict[str, int]:
    """Weights of the body and of embedding and head, and bytes of all."""
    tensors = model.tensors()
    body = sum(t.rows * t.cols for t in tensors if t.layout.startswith("ternary"))
    return {
        "ternary_weights": body,
        "other_weights": sum(t.rows * t.cols for t in tensors) - body,
        "bytes": sum(t.data_bytes for t in tensors),
    }


if __name__ == "__main__":
    main()
