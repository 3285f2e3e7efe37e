"""Speculation: the same greedy text, the same sampled text with look-up, the same distribution with a draft."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE

import onebit
from onebit.engine import Model, Sampler, Speculation
from onebit.engine import _library as c
from onebit.engine.speculate import look_up
from onebit.errors import EngineError
from onebit.formats import onebit_file
from onebit.formats.random_model import random_description, random_file

TINY = Path(onebit.__file__).parent / "tiny" / "tiny.1bit"
TINY_TOKENIZER = Tokenizer(BPE({chr(ord("a") + token): token for token in range(20)}, []))
CODE = "def add(self, name, value):\n    self.items[name] = value\n\ndef add(self, name, value):\n    self."
SAMPLING: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 3},
    {"temperature": 1.3, "top_p": 0.7, "min_p": 0.05},
    {"temperature": 1.0, "repetition_penalty": 1.5},
]


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Model]:
    """``random_model(vocab_size=..., seed=...)``: small, without end token or tokenizer."""
    folder = tmp_path_factory.mktemp("models")

    def make(seed: int = 0, vocab_size: int = 8, tokenizer: str | None = None, **fields: Any) -> Model:
        path = folder / f"{len(list(folder.iterdir()))}.1bit"
        description = random_description(vocab_size=vocab_size, bos=None, eos=None, **fields)
        onebit_file.write(path, random_file(description, seed=seed, tokenizer_json=tokenizer))
        return Model(path, threads=1)

    return make


class Ids:
    """Generation without a tokenizer: the new ids only."""

    def __init__(self, model: Model, prompt: list[int], new: int, draft: Model | None = None, **options: Any) -> None:
        sampling = {key: options.pop(key) for key in list(options) if key in {*Sampler.__init__.__annotations__}}
        window = 64 if sampling.get("repetition_penalty", 1.0) != 1.0 else 0
        sampler, session = Sampler(**sampling), model.session()
        self.ids = [sampler(session.prefill(prompt), session.tokens[-window:] if window else [])]
        drafting = draft.session() if draft else None
        speculation = Speculation(session, sampler, draft=drafting, window=window, **options) if options else None
        while len(self.ids) < new:
            if speculation is not None:
                self.ids += speculation.step(self.ids[-1], new - len(self.ids))
            else:
                logits = session.decode(self.ids[-1])
                self.ids.append(sampler(logits, session.tokens[-window:] if window else []))
        assert session.tokens == [*prompt, *self.ids[:-1]]
        assert session.position == len(session.tokens)
        if drafting is not None:
            assert drafting.tokens == session.tokens[: drafting.position]
        self.counts = speculation.counts if speculation is not None else None


@pytest.fixture(scope="module")
def tiny() -> Model:
    return Model(TINY, threads=1)


@pytest.mark.parametrize("tokens", [1, 4, 31])
@pytest.mark.parametrize("fixed", [False, True])
def test_greedy_text_is_the_same(tiny: Model, tokens: int, fixed: bool) -> None:
    prompt = tiny.encode(CODE)
    plain = Ids(tiny, prompt, 40).ids
    for sources in ({"lookup": True}, {"draft": tiny}, {"lookup": True, "draft": tiny}):
        options = {"lookup": False} | sources | {"tokens": tokens, "fixed": fixed}
        run = Ids(tiny, prompt, 40, **options)
        assert run.ids == plain
        if sources == {"draft": tiny} and fixed:
            assert run.counts.accepted == run.counts.proposed > 0  # it agrees with itself


@pytest.mark.parametrize("penalty", [1.0, 1.4])
def test_garbage_drafts_change_nothing(random_model: Callable[..., Model], penalty: float) -> None:
    target = random_model(seed=1, vocab_size=50)
    plain = Ids(target, [3, 4, 5], 40, repetition_penalty=penalty)
    for draft in (random_model(seed=2, vocab_size=50), random_model(seed=3, vocab_size=50, max_seq_len=16)):
        for options in ({"fixed": True}, {"fixed": False}, {"lookup": True}, {"tokens": 2, "fixed": True}):
            assert Ids(target, [3, 4, 5], 40, draft=draft, repetition_penalty=penalty, **options).ids == plain.ids


@pytest.mark.parametrize("sampling", SAMPLING)
def test_sampled_text_is_the_same_with_lookup(tiny: Model, sampling: dict[str, Any]) -> None:
    prompt = tiny.encode(CODE)
    for seed in range(3):
        plain = Ids(tiny, prompt, 30, seed=seed, **sampling).ids
        assert Ids(tiny, prompt, 30, lookup=True, fixed=True, seed=seed, **sampling).ids == plain
        assert Ids(tiny, prompt, 30, lookup=True, fixed=False, seed=seed, **sampling).ids == plain


@pytest.mark.parametrize("sampling", SAMPLING)
def test_a_drafts_distribution_is_the_models(random_model: Callable[..., Model], sampling: dict[str, Any]) -> None:
    """Chi-squared over second and third tokens that speculation wrote, against their exact probabilities."""
    target, draft, prompt, runs = random_model(seed=4), random_model(seed=5), [1, 2, 1], 3000
    seen = Counter(
        tuple(Ids(target, prompt, 4, draft=draft, tokens=2, fixed=True, seed=seed, **sampling).ids[1:3])
        for seed in range(runs)
    )
    expected = _pairs(target, prompt, sampling)
    assert not set(seen) - {pair for pair, p in expected.items() if p > 0}
    common = {pair: p for pair, p in expected.items() if p * runs >= 5}
    rest = 1.0 - sum(common.values())
    statistic = sum((seen[pair] - runs * p) ** 2 / (runs * p) for pair, p in common.items())
    if rest * runs >= 5:
        statistic += (sum(n for pair, n in seen.items() if pair not in common) - runs * rest) ** 2 / (runs * rest)
    freedom = max(len(common) - 1, 1)
    # 99.99 % of the chi-squared distribution (Wilson and Hilferty), so that it fails by chance once in 10 000 seeds
    assert statistic < freedom * (1 - 2 / (9 * freedom) + 3.72 * np.sqrt(2 / (9 * freedom))) ** 3


def _pairs(model: Model, prompt: list[int], sampling: dict[str, Any]) -> dict[tuple[int, int], float]:
    """Exact probabilities of (second, third) new tokens."""
    vocab = model.description.vocab_size
    pairs: Counter[tuple[int, int]] = Counter()
    for first in range(vocab):
        p_first = probabilities(model.logits(prompt)[-1], prompt, **sampling)[first]
        for second in range(vocab) if p_first else ():
            p_second = probabilities(model.logits([*prompt, first])[-1], [*prompt, first], **sampling)[second]
            if not p_second:
                continue
            thirds = probabilities(model.logits([*prompt, first, second])[-1], [*prompt, first, second], **sampling)
            for third in range(vocab):
                pairs[second, third] += p_first * p_second * thirds[third]
    return pairs


def probabilities(
    logits: np.ndarray,
    recent: list[int],
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
) -> np.ndarray:
    """What the sampler is documented to do, in float64."""
    logits = logits.astype(np.float64)
    for token in set(recent):
        logits[token] = logits[token] / repetition_penalty if logits[token] > 0 else logits[token] * repetition_penalty
    p = np.exp((logits - logits.max()) / temperature)
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    kept = order[: top_k or p.size]
    mass = np.cumsum(p[kept]) / p[kept].sum()
    kept = kept[: int(np.searchsorted(mass, top_p)) + 1] if top_p < 1 else kept
    kept = kept[p[kept] >= min_p * p.max()]
    out = np.zeros_like(p)
    out[kept] = p[kept] / p[kept].sum()
    return out


@pytest.mark.parametrize("seed", range(3))
def test_verify_accepts_with_the_exact_probabilities(seed: int) -> None:
    """ob_verify alone, over many numbers: first token and second, given that the first was accepted."""
    random = np.random.default_rng(seed)
    vocab, runs = 5, 20_000
    logits = random.standard_normal((2, vocab)).astype(np.float32)
    p = np.exp(logits[0]) / np.exp(logits[0]).sum()
    q = random.dirichlet(np.ones(vocab)).astype(np.float32)
    sampler, first = Sampler(temperature=1.0, seed=seed), Counter[int]()
    lengths: Counter[int] = Counter()
    for _ in range(runs):
        proposed = int(random.choice(vocab, p=q / q.sum(dtype=np.float64)))
        tokens = verify(sampler, logits, [proposed], q[None])
        first[tokens[0]] += 1
        lengths[len(tokens)] += 1
    counts = np.array([first[token] for token in range(vocab)])
    assert (((counts - runs * p) ** 2) / (runs * p)).sum() < 23.5  # 99.99 % at 4 degrees of freedom
    assert lengths[2] / runs == pytest.approx(np.minimum(p, q).sum(), abs=0.015)


def verify(sampler: Sampler, logits: np.ndarray, proposed: list[int], q: np.ndarray | None = None) -> list[int]:
    vocab = logits.shape[1]
    recent, arena = np.array(proposed, np.uint32), np.empty(vocab + 1, np.uint64)
    out, count, error = np.empty(len(proposed) + 1, np.uint32), ctypes.c_uint32(), c.Error()
    status = c.library().ob_verify(
        ctypes.byref(sampler.state),
        *(logits.ctypes.data, vocab, recent.ctypes.data, 0, 0, len(proposed), None if q is None else q.ctypes.data),
        *(arena.ctypes.data, arena.nbytes, out.ctypes.data, ctypes.byref(count), ctypes.byref(error)),
    )
    c.check(status, error)
    return out[: count.value].tolist()


def test_verify_stops_at_numbers_that_are_none() -> None:
    logits = np.array([[0, 1, 0], [0, np.nan, 0], [0, 1, 0]], np.float32)
    assert verify(Sampler(), logits, [1, 1]) == [1]
    with pytest.raises(EngineError, match="not numbers"):
        verify(Sampler(), logits[1:], [1])
    with pytest.raises(EngineError, match="outside the vocabulary"):
        verify(Sampler(), logits, [3, 1])


@pytest.mark.parametrize(
    ("tokens", "expected", "match"),
    [
        ([1, 2, 3, 9, 1, 2, 3], [9, 1, 2, 3], 3),
        ([5, 2, 7, 1, 2, 8, 1, 2], [8, 1, 2, 8], 2),  # the longer piece, not the later one
        ([2, 7, 2, 8, 2], [8, 2, 8, 2], 1),  # of equals the latest; round where the text ends
        ([4, 4], [4, 4, 4, 4], 1),
        ([1, 2, 3], [], 0),
        ([1], [], 0),
    ],
)
def test_lookup(tokens: list[int], expected: list[int], match: int) -> None:
    assert look_up(tokens, 4) == (expected, match)


def test_lookup_agrees_with_a_search() -> None:
    random = np.random.default_rng(0)
    for _ in range(300):
        tokens = random.integers(0, 3, random.integers(2, 40)).tolist()
        best = (0, 0)
        for end in range(1, len(tokens)):
            length = 0
            while length < min(end, 12) and tokens[end - 1 - length] == tokens[-1 - length]:
                length += 1
            best = max(best, (length, end)) if length else best
        assert look_up(tokens, 1) == (([tokens[best[1]]], best[0]) if best[0] else ([], 0))


def test_generation_with_speculation(tiny: Model) -> None:
    plain = tiny.generate(CODE, max_new_tokens=40, stop="\n\n")
    text = "".join(plain)
    for options in (
        {"lookup": True},
        {"draft": tiny},
        {"draft": tiny.session(), "lookup": True, "speculate_tokens": 3},
    ):
        session = tiny.session()
        run = tiny.generate(CODE, max_new_tokens=40, stop="\n\n", session=session, **options)
        assert "".join(run) == text
        assert run.ids == plain.ids
        assert run.stats.stopped_by == plain.stats.stopped_by
        assert session.tokens == [*tiny.encode(CODE), *run.ids][: session.position]
        assert session.position in (len(session.tokens), len(tiny.encode(CODE)) + len(run.ids) - 1)
        assert 0 < run.stats.passes <= run.stats.new_tokens
        assert run.stats.passes + run.stats.accepted >= run.stats.new_tokens - 1


def test_the_context_ends_where_it_does_without(random_model: Callable[..., Model]) -> None:
    model = random_model(seed=6, vocab_size=20, max_seq_len=16)
    draft = random_model(seed=6, vocab_size=20, max_seq_len=16)
    plain = Ids(model, [1, 2], 15).ids
    assert Ids(model, [1, 2], 15, draft=draft, fixed=True).ids == plain
    session, sampler = model.session(), Sampler()
    ids = [sampler(session.prefill([1, 2]))]
    speculation = Speculation(session, sampler, lookup=True, fixed=True)
    while session.position < session.max_positions:
        ids += speculation.step(ids[-1], 100)
    assert ids == plain
    with pytest.raises(EngineError, match="full"):
        speculation.step(ids[-1], 1)


@pytest.mark.parametrize("position", ["rope", "learned"])
def test_a_full_context_shifts(random_model: Callable[..., Model], position: str) -> None:
    tokenizer = TINY_TOKENIZER.to_str()
    model = random_model(seed=7, vocab_size=20, max_seq_len=16, position=position, tokenizer=tokenizer)
    draft = random_model(seed=8, vocab_size=20, max_seq_len=12, position=position, tokenizer=tokenizer)
    runs = []
    for options in ({}, {"lookup": True}, {"draft": draft}):
        generation = model.generate([1, 2, 3], max_new_tokens=60, context_shift=2, **options)
        list(generation)
        assert generation.stats.stopped_by == "length"
        runs.append(generation.ids)
    assert len(runs[0]) == 60
    assert runs[1] == runs[0]
    assert runs[2] == runs[0]
    with pytest.raises(EngineError, match="context_shift must keep 0 to 14"):
        model.generate([1], context_shift=15, session=model.session())


def test_a_drafts_conversation_goes_on(tiny: Model) -> None:
    session, draft = tiny.session(), tiny.session()
    first = tiny.generate(CODE, max_new_tokens=9, session=session, draft=draft)
    list(first)
    longer = [*tiny.encode(CODE), *first.ids[:5], 7, 8]
    plain = tiny.generate(longer, max_new_tokens=9)
    again = tiny.generate(longer, max_new_tokens=9, session=session, draft=draft)
    assert "".join(again) == "".join(plain)


def test_a_seed_gives_the_same_text_again(tiny: Model) -> None:
    options: dict[str, Any] = {"temperature": 0.8, "top_p": 0.9, "seed": 5, "draft": tiny, "max_new_tokens": 30}
    first, second = tiny.generate(CODE, **options), tiny.generate(CODE, **options)
    assert "".join(first) == "".join(second)
    assert first.stats.proposed == second.stats.proposed > 0


def test_memory_is_a_few_rows_of_logits(tiny: Model) -> None:
    vocab = tiny.description.vocab_size
    greedy = Speculation(tiny.session(), Sampler(), lookup=True, tokens=7)
    assert greedy.memory_bytes < (8 * 4 + 8) * vocab + 8192
    sampled = Speculation(tiny.session(), Sampler(temperature=1.0), draft=tiny.session(), tokens=7)
    assert sampled.memory_bytes < ((8 + 1 + 7) * 4 + 8) * vocab + 8192


def test_refusals(tiny: Model, random_model: Callable[..., Model]) -> None:
    other = random_model(vocab_size=9)
    with pytest.raises(EngineError, match=r"9 tokens, tiny\.1bit 2048"):
        tiny.generate([1], draft=other)
    with pytest.raises(EngineError, match="must be the same"):
        Speculation(tiny.session(), Sampler(), draft=other.session())
    with pytest.raises(EngineError, match="a draft or look-up"):
        Speculation(tiny.session(), Sampler())
    for tokens in (0, 32):
        with pytest.raises(EngineError, match="1 to 31"):
            Speculation(tiny.session(), Sampler(), lookup=True, tokens=tokens)
    session = tiny.session()
    with pytest.raises(EngineError, match="own"):
        Speculation(session, Sampler(), draft=session)
