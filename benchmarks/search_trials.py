"""What the two parts of the search benchmark share: maps of a trained model, measured once and kept."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from onebit.search.cache import ScoreCache
from onebit.search.curvature import curvature_of
from onebit.search.evaluator import Evaluator, HeldOut, held_out
from onebit.search.opening import checkpoint_fingerprint, open_model, texts_beside
from onebit.search.run import strategy_of
from onebit.search.runners import InProcess
from onebit.search.settings import EvaluationSettings
from onebit.search.space import Space, open_space
from onebit.search.trials import Budget, Exhausted, Trials

__all__ = ["Bench"]

_CHARACTERS_A_TOKEN = 8  # more than any tokenizer here gives


class Bench:
    """A checkpoint, its space, and text number `part` of valid.txt, each of `tokens` tokens."""

    def __init__(self, folder: Path, text: Path, tokens: int, part: int = 0, **space: Any) -> None:
        settings = EvaluationSettings(checkpoint=folder, val_data=text, max_tokens=tokens)
        self.model = open_model(settings)
        self.space: Space = open_space(self.model, **space, **texts_beside(settings))
        self.data = _text(folder, text, self.model, tokens, part)
        self.evaluator = Evaluator(self.model, self.data)
        self._file = folder.parent / "evaluations.sqlite"
        self._fingerprints = checkpoint_fingerprint(folder), self.data.fingerprint

    def trials(self, **options: Any) -> Trials:
        """A fresh count of evaluations over the shared cache; options of `Trials`, and of `Budget` as `budget`."""
        return Trials(
            self.space,
            Budget(**options.pop("budget", {})),
            InProcess(self.evaluator),
            ScoreCache(self._file, *self._fingerprints),
            curvature=curvature_of(self.model, self.data, self.space),
            **options,
        )

    def search(self, strategy: str, max_bytes: int, evaluations: int, seed: int = 0) -> Trials:
        """Run a strategy to its end."""
        trials = self.trials(budget={"max_bytes": max_bytes, "max_evaluations": evaluations}, seed=seed)
        with contextlib.suppress(Exhausted):
            strategy_of(strategy)(trials)
        return trials


def _text(folder: Path, text: Path, model: Any, tokens: int, part: int) -> HeldOut:
    from tokenizers import Tokenizer

    characters = tokens * _CHARACTERS_A_TOKEN
    piece = text.read_text("utf-8")[part * characters : (part + 1) * characters]
    return held_out(
        Tokenizer.from_file(str(folder / "tokenizer.json")),
        piece,
        vocab_size=model.config.vocab_size,
        context=model.config.max_seq_len,
        bos=model.config.bos_token_id,
        max_tokens=tokens,
    )
