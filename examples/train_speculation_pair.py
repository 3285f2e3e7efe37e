"""Train a pair for speculative decoding: a ternary model of 25 million weights and a draft 10 times smaller.

    python examples/train_speculation_pair.py --output-dir runs/pair    # 100 minutes of an idle core
    python examples/train_speculation_pair.py --output-dir runs/pair --target-minutes 1 --draft-minutes 1

What a speculation benchmark needs of a pair is that the target is predictable on code and that the draft agrees with
it; a low loss matters less. Hence:

- text: the standard library of the Python that runs this (`stdlib`), 3 % of its files held out by their name's hash;
  benchmarks/speculation.py takes its prompts from those alone;
- one window of four of the target's is an edit, as code-editing models are trained on: a piece of code, a line
  `# edited`, and the piece again with one identifier renamed; another is a short piece of text over and over. They
  teach to copy, which prompt look-up needs and which comes late: after 800 steps the target still predicted a copy no
  better than new text, while the tiny model of the package, after 4,000 steps of plain text, gets 65 % of its tokens;
- target: BitNet's decoder, 8 layers of 512, relu squared without gates and sub-norms (benchmarks/LOG.md says why),
  25,165,824 ternary weights, windows of 256 tokens, Muon. It grows: two layers first, which see four times the tokens
  in the same time and learn to copy, then four, then eight, each new one adding nothing at its start;
- draft: 2 layers of 320 (2,457,600 ternary weights), the same tokenizer. Few layers, because a draft's time is spent
  between its layers, and two are the least that can copy. It learns from a pool of windows that the target labelled
  with its 32 likeliest tokens: training text, edits, and the target's own continuations, greedy and sampled, which are
  what a draft meets.

The budget is wall-clock time. A killed run goes on from its last checkpoint when started again. The result is
target.1bit and draft.1bit (2 bits a weight, int8 embedding); weights are not kept in the repository.

Shape suffixes: N tokens of a text, B windows in a batch, T positions of a window, K likeliest tokens, V vocabulary.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onebit.data import TextTokenizer, open_split, tokenizer_for
from onebit.engine import Model
from onebit.formats.export import from_model
from onebit.formats.onebit_file import write
from onebit.models import OneBitConfig, OneBitForCausalLM
from onebit.optim import Muon, decaying_parameter_names, muon_groups

VOCABULARY = 2048
WINDOW = 256
POSITIONS = 512
HELD_OUT = 0.03
EDIT_LINE = "\n# edited\n"
KEPT = 32  # the target's likeliest tokens that a label of the draft holds
SAVE_SECONDS = 180
IGNORED = -100
COMMON: dict[str, Any] = {"use_swiglu": False, "use_sub_norm": False, "max_seq_len": POSITIONS}
GROWTH = ((2, 0.3), (4, 0.25), (8, 0.45))  # layers of the target, and the share of its minutes they are trained for
TARGET: dict[str, Any] = {"hidden_size": 512, "num_layers": 8, "num_heads": 8, "intermediate_size": 2048}
DRAFT: dict[str, Any] = {"hidden_size": 320, "num_layers": 2, "num_heads": 5, "intermediate_size": 1280}


@dataclass(frozen=True, kw_only=True)
class Text:
    """What both models are trained on: a stream of tokens, and windows that hold an edit each."""

    tokenizer: TextTokenizer
    train_N: Tensor
    held_N: Tensor
    edits_BT: Tensor


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Windows with what the target makes of them: its likeliest next tokens and their log probabilities."""

    tokens_BT: Tensor
    ids_BTK: Tensor
    logp_BTK: Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/pair"))
    parser.add_argument("--target-minutes", type=float, default=75.0)
    parser.add_argument("--draft-minutes", type=float, default=15.0)
    parser.add_argument("--pool-windows", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    folder: Path = arguments.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    text = read_text(folder)
    target = train_target(folder, text, arguments.target_minutes)
    export(target, text, folder / "target.1bit")
    pool = label(folder, target, text, arguments.pool_windows)
    draft = train_draft(folder, pool, text, arguments.draft_minutes)
    export(draft, text, folder / "draft.1bit")


def read_text(folder: Path) -> Text:
    """Tokenizer, training tokens, held-out tokens and edits, the same on every machine with this Python."""
    split = open_split("stdlib", val_fraction=HELD_OUT)
    tokenizer = tokenizer_for(split.train, VOCABULARY, folder / "cache", print)
    file = folder / "cache" / "text.pt"
    if not file.is_file():
        assert split.validation is not None
        pieces = [piece.text for piece in split.train.pieces()]
        held = [piece.text for piece in split.validation.pieces()]
        save(file, {"train": flat(pieces, tokenizer), "held": flat(held, tokenizer), "edits": edits(pieces, tokenizer)})
    kept = torch.load(file, weights_only=True)
    say(f"{len(kept['train'])} training tokens, {len(kept['held'])} held out, {len(kept['edits'])} edits")
    return Text(tokenizer=tokenizer, train_N=kept["train"], held_N=kept["held"], edits_BT=kept["edits"])


def flat(pieces: list[str], tokenizer: TextTokenizer) -> Tensor:
    """All pieces as one stream of ids, the end of a document between them."""
    ids: list[int] = []
    for encoding in tokenizer.tokenizer.encode_batch(pieces):
        ids += [*encoding.ids, tokenizer.eos_token_id]
    return torch.tensor(ids, dtype=torch.int64)


def edits(pieces: list[str], tokenizer: TextTokenizer, count: int = 6000) -> Tensor:
    """Windows of a piece of code, EDIT_LINE and the same code with one identifier renamed, [count, WINDOW + 1]."""
    choose = random.Random(0)
    names = sorted(set(re.findall(r"\b[a-z_]{4,12}\b", " ".join(choose.sample(pieces, min(40, len(pieces)))))))
    rows = []
    while len(rows) < count:
        lines = choose.choice(pieces).splitlines(keepends=True)
        start = choose.randrange(len(lines)) if lines else 0
        before = "".join(lines[start : start + choose.randint(4, 16)]).rstrip("\n")
        found = re.findall(r"\b[A-Za-z_]{3,}\b", before)
        if not found:
            continue
        after = re.sub(rf"\b{choose.choice(found)}\b", choose.choice(names), before)
        ids = tokenizer.tokenizer.encode(before + EDIT_LINE + after + "\n").ids[: WINDOW + 1]
        if len(ids) > WINDOW // 3:
            rows.append(ids + [IGNORED] * (WINDOW + 1 - len(ids)))
    return torch.tensor(rows, dtype=torch.int64)


def train_target(folder: Path, text: Text, minutes: float) -> OneBitForCausalLM:
    """The target, from next tokens."""
    choose = torch.Generator().manual_seed(1)

    def loss_of(model: OneBitForCausalLM) -> Tensor:
        rows = [*windows(text.train_N, 2, choose), pick(text.edits_BT, 1, choose)[0], repeat(text, choose)]
        return next_token_loss(model, torch.stack(rows))

    model = None
    for num_layers, share in GROWTH:
        grown = make(TARGET | {"num_layers": num_layers}, text.tokenizer)
        if model is not None:
            grow(model, grown)
        model, is_last = grown, num_layers == TARGET["num_layers"]
        file = folder / ("target.pt" if is_last else f"target_{num_layers}_layers.pt")
        train(model, loss_of, file, share * minutes, 4e-3, lambda m=model: held_out_loss(m, text), decay=is_last)
    assert model is not None
    return model


@torch.no_grad()
def grow(small: OneBitForCausalLM, large: OneBitForCausalLM) -> None:
    """`large` begins as `small` with layers on top that add nothing yet: what they write with is zero."""
    trained = small.state_dict()
    large.load_state_dict(trained, strict=False)
    for name, parameter in large.named_parameters():
        if name not in trained and name.endswith(("o_proj.weight", "down_proj.weight")):
            parameter.zero_()


def train_draft(folder: Path, pool: Pool, text: Text, minutes: float) -> OneBitForCausalLM:
    """The draft, from what the target said about the windows of the pool."""
    choose = torch.Generator().manual_seed(2)

    def loss_of(model: OneBitForCausalLM) -> Tensor:
        rows = torch.randint(len(pool.tokens_BT), (8,), generator=choose)
        logits_BTV = logits(model, pool.tokens_BT[rows].long())
        likely_BTK = logits_BTV.log_softmax(-1).gather(-1, pool.ids_BTK[rows].long())
        return -(pool.logp_BTK[rows].float().exp() * likely_BTK).sum(-1).mean()

    model = make(DRAFT, text.tokenizer)
    train(model, loss_of, folder / "draft.pt", minutes, 8e-3, lambda: held_out_loss(model, text))
    return model


@torch.no_grad()
def label(folder: Path, target: OneBitForCausalLM, text: Text, count: int) -> Pool:
    """A quarter text, a quarter edits, half the target's own continuations (half of those greedy), labelled by it."""
    file = folder / "cache" / "pool.pt"
    if not file.is_file():
        target.eval()
        choose = torch.Generator().manual_seed(3)
        rows = [torch.stack(windows(text.train_N, count // 4, choose))[:, :WINDOW]]
        rows.append(pick(text.edits_BT, count // 4, choose)[:, :WINDOW].clamp_min(0))
        model = Model(folder / "target.1bit", threads=1)
        for temperature in (0.0, 1.0):
            rows.append(continuations(model, rows[0], rows[1], count // 4, temperature))
            say(f"{count // 4} continuations at temperature {temperature}")
        tokens_BT = torch.cat(rows)
        ids, logp = [], []
        for part_BT in tokens_BT.split(8):
            top = logits(target, part_BT).log_softmax(-1).topk(KEPT)
            ids.append(top.indices.to(torch.int16))
            logp.append(top.values.half())
        save(file, {"tokens": tokens_BT.to(torch.int16), "ids": torch.cat(ids), "logp": torch.cat(logp)})
        say(f"{len(tokens_BT)} windows labelled")
    kept = torch.load(file, weights_only=True)
    return Pool(tokens_BT=kept["tokens"], ids_BTK=kept["ids"], logp_BTK=kept["logp"])


def continuations(model: Model, text_BT: Tensor, edits_BT: Tensor, count: int, temperature: float) -> Tensor:
    """What the target writes after the first 64 tokens of texts and 144 of edits, as one stream cut into windows."""
    stream: list[int] = []
    for i in itertools.count():
        if len(stream) >= count * WINDOW:
            return torch.tensor(stream[: count * WINDOW]).view(count, WINDOW)
        rows_BT, length = ((text_BT, 64), (edits_BT, 144))[i % 2]
        prompt = rows_BT[i // 2 % len(rows_BT), :length].tolist()
        generation = model.generate(
            prompt, max_new_tokens=WINDOW - length, temperature=temperature, seed=i, lookup=True
        )
        for _ in generation:
            pass
        stream += prompt + generation.ids
    raise AssertionError


def train(
    model: OneBitForCausalLM,
    loss_of: Callable[[OneBitForCausalLM], Tensor],
    checkpoint: Path,
    minutes: float,
    rate: float,
    evaluate: Callable[[], float],
    decay: bool = True,
) -> None:
    """Muon over `minutes` of wall-clock time, decaying linearly or not, from the checkpoint if there is one."""
    optimizer = Muon(muon_groups(model, decaying_parameter_names(model), 0.1), rate)
    step, spent = restore(checkpoint, model, optimizer)
    began, saved, losses = time.monotonic() - spent, time.monotonic(), []
    model.train()
    while (spent := time.monotonic() - began) < 60.0 * minutes:
        share = spent / (60.0 * minutes)
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 50, (1.0 - share) / 0.95 if decay else 1.0)
        loss = loss_of(model)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
        step += 1
        if step % 50 == 0:
            say(f"{checkpoint.stem} step {step}, {100 * share:.0f} %, loss {sum(losses[-50:]) / 50:.3f}")
        if time.monotonic() - saved > SAVE_SECONDS:
            keep(checkpoint, model, optimizer, step, time.monotonic() - began)
            saved = time.monotonic()
    if losses:
        keep(checkpoint, model, optimizer, step, time.monotonic() - began)
    say(f"{checkpoint.stem}: {step} steps, held-out loss {evaluate():.3f} nats a token")


def restore(checkpoint: Path, model: OneBitForCausalLM, optimizer: Muon) -> tuple[int, float]:
    """Step and seconds spent, with model and optimizer as they were; (0, 0) without a checkpoint."""
    if not checkpoint.is_file():
        return 0, 0.0
    kept = torch.load(checkpoint, weights_only=True)
    model.load_state_dict(kept["model"])
    optimizer.load_state_dict(kept["optimizer"])
    return int(kept["step"]), float(kept["seconds"])


def keep(checkpoint: Path, model: OneBitForCausalLM, optimizer: Muon, step: int, seconds: float) -> None:
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "seconds": seconds}
    save(checkpoint, state)


def save(file: Path, state: dict[str, Any]) -> None:
    """torch.save, whole or not at all."""
    partial = file.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, file)


def make(shape: dict[str, Any], tokenizer: TextTokenizer) -> OneBitForCausalLM:
    torch.manual_seed(0)
    end = tokenizer.eos_token_id
    return OneBitForCausalLM(
        OneBitConfig.preset("bitnet", **COMMON, **shape, vocab_size=tokenizer.vocab_size, eos_token_id=end)
    )


def export(model: OneBitForCausalLM, text: Text, file: Path) -> None:
    exported = from_model(model.eval(), text.tokenizer.tokenizer, pack_mode="ternary", embedding_level="int8")
    write(file, exported)
    say(f"{file}: {file.stat().st_size} bytes")


def windows(tokens_N: Tensor, count: int, choose: torch.Generator) -> list[Tensor]:
    """WINDOW + 1 tokens from `count` random places."""
    starts = torch.randint(len(tokens_N) - WINDOW - 1, (count,), generator=choose)
    return [tokens_N[start : start + WINDOW + 1] for start in starts.tolist()]


def pick(rows_BT: Tensor, count: int, choose: torch.Generator) -> Tensor:
    return rows_BT[torch.randint(len(rows_BT), (count,), generator=choose)]


def repeat(text: Text, choose: torch.Generator) -> Tensor:
    """A window of 12 to 63 tokens of text over and over."""
    size = int(torch.randint(12, 64, (1,), generator=choose))
    piece_N = windows(text.train_N, 1, choose)[0][:size]
    return piece_N.repeat(WINDOW // size + 2)[: WINDOW + 1]


def logits(model: OneBitForCausalLM, tokens_BT: Tensor) -> Tensor:
    """[B, T, V], float32; matrix products in bfloat16 where tiles (AMX) make them the faster ones."""
    with torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu._is_amx_tile_supported()):
        logits_BTV: Tensor = model(input_ids=tokens_BT, use_cache=False).logits
    return logits_BTV.float()


def next_token_loss(model: OneBitForCausalLM, rows_BT: Tensor) -> Tensor:
    logits_BTV = logits(model, rows_BT[:, :-1].clamp_min(0))
    return F.cross_entropy(logits_BTV.flatten(0, 1), rows_BT[:, 1:].flatten(), ignore_index=IGNORED)


@torch.no_grad()
def held_out_loss(model: OneBitForCausalLM, text: Text) -> float:
    """Mean over 32 windows of the held-out files, in nats per token."""
    model.eval()
    rows_BT = torch.stack(windows(text.held_N, 32, torch.Generator().manual_seed(4)))
    return sum(float(next_token_loss(model, part_BT)) for part_BT in rows_BT.split(8)) / 4


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


if __name__ == "__main__":
    main()
