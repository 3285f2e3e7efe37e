"""What does it take to turn a float model into a ternary one? Each ingredient beside the fine-tuned float twin.

    python benchmarks/finetune.py [--data-dir DIR] [--only lambda ste+distill ...] [--steps N] [--seeds 1 2 3] [--quick]

DIR holds `wikitext-2/{test,valid}.txt` and `tinyshakespeare/input.txt`. Without it the text is the standard library.

Protocol. A small Qwen3-shaped float base is trained on one text (--base-data) and on the first half of the training
text of another (--data), with its own byte-level BPE, and kept: a model of wider text that has met the domain. Every
arm starts from it and is fine-tuned on the second half for the same number of steps, with the same batches in the
same order for a seed, the same optimizer, clipping and shape of the schedule. The peak rate is the best of one grid
in shorter runs on a seed that is used for nothing else: from the twin's rate on, neighbours are tried until the best
lies between two worse ones; arms that differ in sub-norms, pure distillation or the start have their own, those that
differ in anything else share one. A run is judged at its best checkpoint, chosen on a part of the validation text:
its loss over all of that text in float32, and KL(float base || arm) and KL(float twin || arm) per token. There is no
third split: both choices see the validation text, for all arms alike. The twin is the float base fine-tuned for the
same steps; as a teacher or as a start it costs its own steps once more, which the seconds of a student do not hold.
The best recipe is the best trained arm; the best that does not start from the twin is told beside it. Seeds differ in
batches; the base is one.

An arm is a name with ingredients: base and float (no conversion), naive (the twin, converted and not trained), ste
(all at once) and lambda (warm-up over 40 % of the steps), then any of +subnorms +distill (KL to the twin alone)
+mixdistill (half labels, half KL to the twin) +twin (starts from it instead of the base) +rotation +calibrated +g64
+g256 (groups of 128 otherwise) +tables (embedding and head too). Each result is added to --work-dir/results.jsonl at
once: a benchmark that was killed loses the run in flight, and two of them, with --only or --seeds in another order,
share the work.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "src")]

from finetune_figures import default_arms, effects, figures_of, ingredients_of, rate_arm, table  # noqa: E402
from finetune_runs import Runs, Texts, job_of, say, tune  # noqa: E402

DATASETS = ("wikitext2", "tinyshakespeare", "stdlib")
LEARNING_RATES = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 16e-3)
SHAPE: dict[str, Any] = {
    "hidden_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 768,
    "max_position_embeddings": 256,
}
QUICK_SHAPE = SHAPE | {"hidden_size": 64, "num_hidden_layers": 2, "head_dim": 16, "intermediate_size": 256}
QUICK = {"steps": 40, "tune_steps": 20, "base_steps": 200, "vocab_size": 512, "calibration_windows": 32}


def main() -> None:
    arguments = parse_arguments()
    import torch

    torch.set_num_threads(1)
    runs = Runs(arguments, *prepare(arguments), base_key(arguments))
    arms = arguments.only
    tuned_arms = list(dict.fromkeys(rate_arm(arm) for arm in ["float", *arms] if ingredients_of(arm).trains))
    tunes = len(arguments.lrs) > 1
    finals = arguments.steps * len(arguments.seeds) * sum(ingredients_of(arm).trains for arm in arms)
    runs.total_steps = finals + tunes * len(tuned_arms) * 3 * arguments.tune_steps  # an arm takes 3 or more
    rates: dict[str, float] = {}
    for arm in tuned_arms:
        rates[arm] = tune(runs, arm, rates, arguments) if tunes else arguments.lrs[0]
    # Seed by seed, so that a benchmark that is cut short still holds complete comparisons.
    jobs = (job_of(runs, arm, rates, seed, arguments.steps) for seed in arguments.seeds for arm in arms)
    samples = [runs.result(job) for job in jobs if not arguments.finished or runs.has(job)]
    figures, best = figures_of(samples)
    print(table(samples, figures), *effects(samples), sep="\n")
    if arguments.quick:
        print("quick: nothing is recorded")
        return
    record(arguments, rates, figures, best, samples, list(runs.results.values()))


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="folder with wikitext-2/ and tinyshakespeare/")
    parser.add_argument(
        "--base-data", choices=DATASETS, help="wider text of the base; wikitext2, stdlib without a folder"
    )
    parser.add_argument(
        "--data", choices=DATASETS, help="text of fine-tuning; tinyshakespeare, stdlib without a folder"
    )
    parser.add_argument("--only", nargs="+", metavar="ARM", help="arms instead of all; float and ste are always there")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--lrs", nargs="+", type=float, default=list(LEARNING_RATES), help="one rate: no tuning")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--tune-steps", type=int, default=120)
    parser.add_argument("--base-steps", type=int, default=1500)
    parser.add_argument("--base-lr", type=float, default=8e-3)
    parser.add_argument("--vocab-size", type=int, default=2048)
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="muon", help="of fine-tuning")
    parser.add_argument("--calibration-windows", type=int, default=256, help="of 128 tokens")
    parser.add_argument("--work-dir", type=Path, default=HERE.parent / "runs" / "finetune")
    parser.add_argument("--finished", action="store_true", help="record the runs that are finished, without the others")
    parser.add_argument("--quick", action="store_true", help="a minute, to see that it works; numbers mean little")
    arguments = parser.parse_args(argv)
    has_folder = arguments.data_dir is not None
    arguments.base_data = arguments.base_data or ("wikitext2" if has_folder else "stdlib")
    arguments.data = arguments.data or ("tinyshakespeare" if has_folder else "stdlib")
    if not has_folder and {arguments.base_data, arguments.data} != {"stdlib"}:
        parser.error("--data-dir is needed for wikitext2 and tinyshakespeare")
    try:
        chosen = dict.fromkeys(arguments.only or default_arms())
        arguments.only = [arm for arm in dict.fromkeys(["base", "float", "ste", *chosen]) if ingredients_of(arm)]
    except ValueError as error:
        parser.error(f"--only: {error}")
    arguments.shape = QUICK_SHAPE if arguments.quick else SHAPE
    if arguments.quick:
        vars(arguments).update(QUICK, lrs=[2e-3], seeds=[1])
    return arguments


def prepare(arguments: argparse.Namespace) -> tuple[Any, Texts]:
    """The float base, trained when the work folder does not hold it yet, and the tokens of the fine-tuning text."""
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    from quality_texts import texts

    data_dir = None if arguments.data_dir is None else str(arguments.data_dir)
    whole, validation = texts(arguments.data, data_dir)
    met, text = whole[: len(whole) // 2], whole[len(whole) // 2 :]
    base_text = met if arguments.base_data == arguments.data else texts(arguments.base_data, data_dir)[0] + met
    folder = arguments.work_dir / f"base_{base_key(arguments)}"
    if not folder.is_dir():
        train_base(arguments, base_text, validation, folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model: Any = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    train_N, validation_N = (torch.tensor(tokenizer.encode(t).ids) for t in (text, validation))
    return model.eval(), Texts(train_N, validation_N, len(validation.encode()), len(validation.split()))


def base_key(arguments: argparse.Namespace) -> str:
    """What decides the base, as a short name."""
    names = ("base_data", "data", "base_steps", "base_lr", "vocab_size", "shape")
    told = {name: getattr(arguments, name) for name in names}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:8]


def train_base(arguments: argparse.Namespace, text: str, validation: str, folder: Path) -> None:
    """Train the float base with Muon and keep model and tokenizer; the folder appears when it is whole."""
    import torch

    from finetune_training import Plan, make_float_model, train
    from onebit.data import train_tokenizer

    made = train_tokenizer([text[i : i + 10_000] for i in range(0, len(text), 10_000)], arguments.vocab_size)
    train_N, validation_N = (torch.tensor(made.tokenizer.encode(t).ids) for t in (text, validation))
    torch.manual_seed(0)
    model: Any = make_float_model(arguments.shape, made.vocab_size)
    plan = Plan(learning_rate=arguments.base_lr, steps=arguments.base_steps, seed=0, weight_decay=0.1)
    train(model, train_N, validation_N, plan, say=lambda *told: say(f"base on {arguments.base_data}", *told))
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    made.tokenizer.save(str(partial / "tokenizer.json"))
    partial.rename(folder)


def record(
    arguments: argparse.Namespace,
    rates: dict[str, float],
    figures: dict[str, float],
    best: str,
    samples: list[dict[str, Any]],
    runs: list[dict[str, Any]],
) -> None:
    from finetune_figures import draw
    from record import write_result

    hidden = {"data_dir", "work_dir", "quick", "only", "finished"}
    config = {
        "protocol": (__doc__ or "").split("Protocol. ")[1].replace("\n\n", "\n").replace("\n", " ").strip(),
        **{name: value for name, value in vars(arguments).items() if name not in hidden},
        "arms": arguments.only,
        "learning_rates": rates,
        "best_recipe": best,
    }
    finals = {sample["name"] for sample in samples}
    tuning = [run for run in runs if run["name"] not in finals]
    path = write_result("finetune", config, figures, {"samples": samples, "tuning": tuning, "notes": effects(samples)})
    draw(samples, path.with_suffix(".png"))
    print(f"written: {path.name} and its picture")


if __name__ == "__main__":
    main()
