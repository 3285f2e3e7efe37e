"""Write the measured numbers of README.md from benchmarks/results; --check only tells whether they are stale.

python tools/make_numbers.py           write what stands between the two marks
python tools/make_numbers.py --check   exit 1 when it is stale
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "README.md"
BEGIN, END = "<!-- numbers: written by tools/make_numbers.py -->", "<!-- end of numbers -->"
TEXTS = {"wikitext2": "WikiText-2", "tinyshakespeare": "tinyshakespeare"}


def newest(benchmark: str) -> tuple[Path, dict[str, Any]] | None:
    """The latest result file of a benchmark, whatever the machine, or None."""
    results = [(path, json.loads(path.read_text("utf-8"))) for path in RESULTS.glob(f"{benchmark}_*.json")]
    found = [(path, result) for path, result in results if result["benchmark"] == benchmark]
    return max(found, key=lambda item: str(item[1]["date"]), default=None)


def source(path: Path, result: dict[str, Any]) -> str:
    name = path.relative_to(ROOT).as_posix()
    return f"[{result['benchmark']}, {result['machine']['processor']}, {result['date'][:10]}]({name})"


def quality(path: Path, result: dict[str, Any]) -> list[str]:
    """Ternary and binary beside the float twin, a row for each text and method."""
    figures, config = result["figures"], result["config"]
    lines = [
        f"**Quality beside a float twin**: {config['layer_weights'] / 1e6:.1f} million weights in the layers, "
        f"{config['steps']} steps from scratch, mean of {len(config['seeds'])} seeds, each method at its own rate "
        f"({source(path, result)}).",
        "",
        "| validation text | weights | loss, nats a token | over the float twin | bits a byte | perplexity a word |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for text, title in TEXTS.items():
        for method in ("float", "ternary", "binary"):
            name = f"{method}_{text}"
            if f"{name}_loss" not in figures:
                continue
            ratio = figures.get(f"{method}_over_float_{text}")
            lines.append(
                f"| {title} | {method} | {figures[f'{name}_loss']:.3f} | {f'{ratio:.3f}' if ratio else ''} "
                f"| {figures[f'{name}_bits_per_byte']:.3f} | {figures[f'{name}_ppl_per_word']:,.0f} |"
            )
    return lines


def parity(path: Path, result: dict[str, Any]) -> list[str]:
    """Engine against torch, a row for each kind of activations."""
    figures = result["figures"]
    lines = [
        f"**Engine against torch**: largest difference of logits over the largest logit, {figures['cases']} "
        f"configurations ({source(path, result)}). With int8 activations one rounding that falls the other way "
        "is a real jump, and along a text later tokens carry it on.",
        "",
        "| activations | median | 99th percentile | largest | 200 greedy tokens identical |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    kinds = {"none": "none", "int8": "int8", "int8_long": "int8, along 200 tokens", "sign": "sign"}
    for kind, title in kinds.items():
        median, p99, most = (figures[f"{kind}_{name}"] for name in ("median", "p99", "max"))
        same = figures.get(f"{kind}_greedy_identical")
        lines.append(f"| {title} | {median:.0e} | {p99:.0e} | {most:.0e} | {'' if same is None else f'{same:.0%}'} |")
    return lines


def speed(path: Path, result: dict[str, Any]) -> list[str]:
    """The engine beside the machine's limits and its peers, a row for each shape and number of threads."""
    figures = result["figures"]
    lines = [
        f"**Speed beside the limit**: random ternary weights of three shapes, int8 head, KV cache float16, medians of "
        f"interleaved rounds ({source(path, result)}). The limit of decode is a pure read of the bytes that a token "
        "reads, the limit of prefill the int8 dot product out of registers; the peers' heads are Q6_K.",
        "",
        "| shape, threads | decode, tokens/s | of the limit | x bitnet.cpp | x llama.cpp "
        "| prefill 512, tokens/s | of the peak | x bitnet.cpp | x llama.cpp |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for shape in ("2b4t", "700m", "45m"):
        for threads in ("1t", "2t"):
            if f"{shape}_decode_tokens_per_s_{threads}" not in figures:
                continue
            cells = [f"{shape}, {threads[0]}"]
            for what, limit in (("decode", "limit"), ("prefill512", "peak")):
                cells.append(_cell(figures, f"{shape}_{what}_tokens_per_s_{threads}", ",.0f"))
                cells.append(_cell(figures, f"{shape}_{what}_over_{limit}_{threads}", ".0%"))
                for peer in ("bitnet_cpp", "llama_cpp"):
                    cells.append(_cell(figures, f"{shape}_{what}_over_{peer}_{threads}", ".2f"))
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _cell(figures: dict[str, float], name: str, how: str) -> str:
    return format(figures[name], how) if name in figures else ""


FINE_TUNED = {
    "base": "float base",
    "float": "float twin, fine-tuned",
    "naive": "twin, rounded, not trained",
    "naive_calibrated": "twin, calibrated, not trained",
    "ste": "ternary at once, labels alone",
    "lambda": "with the lambda schedule",
    "ste_mixdistill": "at once, half labels, half the twin's answers",
    "ste_calibrated_mixdistill": "the same from a calibrated start",
}


def finetune(path: Path, result: dict[str, Any]) -> list[str]:
    """What is left of a float model that was turned ternary, the arms that a user chooses between."""
    figures, config = result["figures"], result["config"]
    lines = [
        f"**Turned ternary**: a Qwen3-shaped model fine-tuned for {config['steps']} steps, ternary in groups of 128, "
        f"beside its float twin after the same steps; all ingredients are in the record ({source(path, result)}).",
        "",
        "| arm | seeds | loss, nats a token | over the float twin | KL to the twin |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for arm, title in FINE_TUNED.items():
        if f"{arm}_loss" not in figures:
            continue
        ratio, kl = figures.get(f"{arm}_over_float"), figures.get(f"{arm}_kl_twin")
        lines.append(
            f"| {title} | {figures[f'{arm}_seeds']} | {figures[f'{arm}_loss']:.3f} "
            f"| {f'{ratio:.3f}' if ratio else ''} | {f'{kl:.2f}' if kl else ''} |"
        )
    return lines


PURE = {
    "float": "float twin",
    "hybrid": "hybrid: float latents, AdamW",
    "int8": "pure, int8 counters",
    "int4": "pure, int4 counters",
    "none": "pure, no counters",
    "shadow": "`Shadow` (AdamW)",
    "shadow_sgd": "`ShadowSGD`",
    "gradient_buffer": "`GradientBuffer`",
    "bop": "`Bop`",
    "dqt": "`DQT`",
}


def pure(path: Path, result: dict[str, Any]) -> list[str]:
    """Pure training beside the hybrid and its float twin, from scratch and in fine-tuning."""
    figures, config = result["figures"], result["config"]
    lines = [
        f"**Trained without latents**: {config['size']} weights in the layers, {config['steps']['scratch']} steps from "
        f"scratch and {config['steps'].get('finetune', 0)} of fine-tuning on another text, bits a byte, each method at "
        f"its own rate; ratios seed by seed ({source(path, result)}).",
        "",
        "| method | bytes a weight | from scratch | over the hybrid | fine-tuned | over the hybrid | seeds |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for method, title in PURE.items():
        if f"{method}_scratch_bits_per_byte" not in figures:
            continue
        cells = [_cell(figures, f"bytes_per_weight_{method}", ".2f")]
        for task in ("scratch", "finetune"):
            cells.append(_cell(figures, f"{method}_{task}_bits_per_byte", ".3f"))
            cells.append(_cell(figures, f"{method}_over_hybrid_{task}", ".3f"))
        seeds = [figures.get(f"{method}_{task}_seeds") for task in ("scratch", "finetune")]
        cells.append(", ".join(str(count) for count in seeds if count is not None))
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return lines


def pure_longer(path: Path, result: dict[str, Any]) -> list[str]:
    """How the counters fare beside the hybrid in a longer run."""
    figures, config = result["figures"], result["config"]
    told = [
        f"{title} {figures[f'{method}_over_hybrid_scratch']:.3f} ({count} seed{'s' * (count > 1)})"
        for method, title in PURE.items()
        if method != "hybrid" and (count := figures.get(f"{method}_scratch_seeds"))
    ]
    return [
        f"The same after {config['steps']['scratch']:,} steps from scratch, loss over the hybrid's: {'; '.join(told)} "
        f"({source(path, result)})."
    ]


BUDGETS = (10, 30, 50, 70, 90)
SIZES = {"ternary": "uniform ternary", "ternary_int4": "half-way to int4", "int4_int8": "half-way to int8"}


def search(path: Path, result: dict[str, Any]) -> list[str]:
    """How near to the true optimum each strategy comes, and what found maps are worth beside random ones."""
    figures, config = result["figures"], result["config"]
    lines = [
        f"**Bit-widths searched**: loss above the true optimum of {figures['maps']:,} maps, all of them measured, at "
        f"five sizes ({source(path, result)}).",
        "",
        f"| strategy | evaluations | {' | '.join(f'{percent} % of the way' for percent in BUDGETS)} |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for strategy in ("sensitivity", "expander", "evolution", "random"):
        gaps = [f"{figures[f'optimum_gap_{strategy}_{percent}']:.2f} %" for percent in BUDGETS]
        lines.append(f"| {strategy} | {figures[f'evaluations_share_{strategy}']:.1f} % | {' | '.join(gaps)} |")
    lines += [
        "",
        f"Eight layers, every matrix by itself, five levels, {config['evaluations']} evaluations each; loss on text "
        "that no search saw:",
        "",
        "| size | sensitivity | expander | random, mean of 5 | random, best of 5 | seeds that sensitivity beats |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for size, title in SIZES.items():
        if f"loss_sensitivity_{size}" not in figures:
            continue
        names = ("loss_sensitivity", "loss_expander", "loss_random_mean", "loss_random_best")
        cells = [_cell(figures, f"{name}_{size}", ".3f") for name in names]
        lines.append(f"| {title} | {' | '.join(cells)} | {figures[f'beats_random_share_{size}']:.0%} |")
    if "healed_loss_found" in figures:
        lines += [
            "",
            f"Uniform ternary itself has {figures['loss_uniform_ternary']:.3f}; after {config['heal_steps']} steps of "
            f"training each it has {figures['healed_loss_ternary']:.3f}, the map of its size that `sensitivity` found "
            f"{figures['healed_loss_found']:.3f}.",
        ]
    return lines


def server(path: Path, result: dict[str, Any]) -> list[str]:
    """Many clients beside one, and many for long."""
    figures, config = result["figures"], result["config"]
    one, eight = (f"{figures[f'tokens_per_s_{streams}']:.0f}" for streams in ("1_stream", "8_streams"))
    ratio, share = figures["server_throughput_8_over_1"], figures["share_of_int8_peak_8_streams"]
    minutes, answers = figures["soak_seconds"] / 60, figures["soak_answers"]
    errors, growth = figures["server_errors_64_streams"], figures["server_memory_growth_mb"]
    return [
        f"**Served**: {config['shape']} with {config['threads']} threads, {config['new_tokens']} tokens an answer: "
        f"{one} tokens/s to one client, {eight} to eight at once, {ratio:.1f} times as many and {share:.0%} of the "
        f"peak of the int8 dot product. The small model inside onebit to {config['streams']} clients for "
        f"{minutes:.0f} minutes, beside others that leave, send nonsense, too much or a wrong key: {answers:,} "
        f"answers, {errors} errors, memory {growth:+.1f} MB after warm-up ({source(path, result)})."
    ]


TABLES: dict[str, Callable[[Path, dict[str, Any]], list[str]]] = {
    "quality": quality,
    "finetune": finetune,
    "pure": pure,
    "pure_3M_1600": pure_longer,
    "search": search,
    "parity": parity,
    "engine": speed,
    "server": server,
}


def block() -> str:
    """Everything between the marks."""
    parts = []
    for benchmark, table in TABLES.items():
        found = newest(benchmark)
        if found is not None:
            parts.append("\n".join(table(*found)))
    return f"{BEGIN}\n" + "\n\n".join(parts) + f"\n{END}"


def main() -> None:
    """Write or check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when the numbers are stale")
    check = parser.parse_args().check
    page = PAGE.read_text("utf-8")
    before, mark, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        sys.exit(f"{PAGE.name} lacks the marks {BEGIN} and {END}")
    made = before + block() + after
    if made == page:
        return
    if check:
        sys.exit(f"the numbers in {PAGE.name} are not those of benchmarks/results; run: make docs")
    PAGE.write_text(made, encoding="utf-8")
    print(f"{PAGE.name}: numbers written")


if __name__ == "__main__":
    main()
