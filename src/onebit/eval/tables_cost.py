"""What it costs to store embedding and head in fewer bits, and to round the head's inputs: loss, measured at export.

The same tokens go through the model twice, once as it was trained and once with the tables of the file; the difference
of the two losses is taken token by token, so that a few thousand tokens show a hundredth of a percent. The text is what
training held out, where the manifest still leads to it.

Shapes: T tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebit.errors import DataError, OnebitError
from onebit.eval.evaluate import Progress, prepare
from onebit.eval.forms import Ids, TorchForm
from onebit.eval.perplexity import Window, token_losses, windows
from onebit.eval.stored_tables import StoredTables, head_activation_of, rounded_like
from onebit.formats.onebit_file import OneBitFile

__all__ = ["TablesCost", "describe_cost", "held_out_text", "measure_tables", "with_tables_cost"]

TOKENS = 4096
_WINDOW = 256  # a longer one would need gigabytes for the logits of a vocabulary of 128,000
_SECONDS = 60.0  # of measuring: a large model on a small machine then shows fewer tokens
_CHARACTERS = 40_000  # enough for TOKENS of any tokenizer that was trained on text
_OWN_TEXT = "textwrap.py of Python's library"


@dataclass(frozen=True, slots=True, kw_only=True)
class TablesCost:
    """Losses in nats per token on `tokens` tokens of `text`, with the tables as trained and as the file stores them.

    `standard_error` is that of `nats`, the mean difference.
    """

    embedding: str
    head: str
    head_activation: str
    loss_as_trained: float
    loss: float
    nats: float
    standard_error: float
    tokens: int
    text: str

    @property
    def percent(self) -> float:
        """The difference as a share of the loss as trained."""
        return 100.0 * self.nats / self.loss_as_trained

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a manifest."""
        return {name: getattr(self, name) for name in self.__slots__} | {"percent": self.percent}

    def __str__(self) -> str:
        return describe_cost(self.to_dict())


def describe_cost(cost: dict[str, Any]) -> str:
    """One line for the terminal, from the dictionary that a manifest holds."""
    tables = f"embedding and head {cost['head']}"
    if cost["embedding"] != cost["head"]:
        tables = f"embedding {cost['embedding']}, head {cost['head']}"
    inputs = "" if cost["head_activation"] == "none" else f", the head's inputs {cost['head_activation']}"
    return (
        f"{tables}{inputs}: {cost['nats']:+.5f} nats a token ({cost['percent']:+.3f} %, standard error"
        f" {cost['standard_error']:.5f}) beside the tables as trained, {cost['loss']:.4f} on {cost['tokens']:,}"
        f" tokens of {cost['text']}"
    )


def with_tables_cost(
    file: OneBitFile, form: TorchForm, val_data: str | None = None, progress: Progress | None = None
) -> tuple[OneBitFile, str | None]:
    """The file with the cost in its manifest (`tables_cost`), and the line to show; `form` is its checkpoint.

    `val_data`: the text to measure on, as `onebit train --val-data` names it. No line when nothing is rounded.
    """
    tables = StoredTables.of(file.tensors.values())
    if form.tokenizer is None:
        return file, "what embedding and head cost is not measured: there is no tokenizer.json to read a text with"
    settings = {"data": val_data, "val_data": val_data} if val_data else (file.manifest or {}).get("settings")
    text, name = held_out_text(settings or {}, must=val_data is not None)
    try:
        cost = measure_tables(form, tables, text, name, progress=progress)
    except DataError as error:
        if val_data is not None:
            raise
        return file, f"what embedding and head cost is not measured: {error}"
    if cost is None:
        return file, None
    return replace(file, manifest={**(file.manifest or {}), "tables_cost": cost.to_dict()}), str(cost)


def measure_tables(
    form: TorchForm,
    tables: StoredTables,
    text: str,
    name: str,
    *,
    max_tokens: int = TOKENS,
    seconds: float = _SECONDS,
    progress: Progress | None = None,
) -> TablesCost | None:
    """Loss of `text`, called `name`, with a file's tables and without; None when the file stores them as trained.

    At most `max_tokens`, and about as many as fit into `seconds`. Raises DataError when the checkpoint has no tokenizer
    to read the text with.
    """
    if not tables.rounded(form.model) and tables.head_activation == head_activation_of(form.model):
        return None
    if form.tokenizer is None:
        raise DataError(f"{form.name} has no tokenizer.json to read a text with")
    ids_T, _ = prepare(form.tokenizer, text, form.bos, max_tokens)
    trained_T, stored_T = _losses(form, tables, ids_T, seconds, progress)
    difference_T = stored_T - trained_T
    head = "lm_head" if "lm_head" in tables.levels else "model.embed_tokens"
    return TablesCost(
        embedding=tables.levels["model.embed_tokens"],
        head=tables.levels[head],
        head_activation=tables.head_activation,
        loss_as_trained=float(trained_T.mean()),
        loss=float(stored_T.mean()),
        nats=float(difference_T.mean()),
        standard_error=float(difference_T.std() / len(difference_T) ** 0.5),
        tokens=len(difference_T),
        text=name,
    )


def _losses(
    form: TorchForm, tables: StoredTables, ids_T: Ids, seconds: float, progress: Progress | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Loss of each token without and with the file's tables, on as many windows as fit the time."""
    cut = list(windows(len(ids_T), min(form.context, _WINDOW)))
    began, steps = time.monotonic(), 2 * len(cut)

    def loss_of(window: Window) -> NDArray[np.float64]:
        logits_TV = form.logits(ids_T[window.start : window.stop])
        return token_losses(logits_TV, ids_T[window.first_scored : window.stop + 1])

    def say(done: int) -> None:
        if progress is not None:
            progress(done, steps)

    trained, stored = [], []
    for window in cut:
        trained.append(loss_of(window))
        say(len(trained))
        if time.monotonic() - began > seconds / 2:
            steps = 2 * len(trained)
            break
    with rounded_like(form.model, tables):
        for window in cut[: len(trained)]:
            stored.append(loss_of(window))
            say(len(trained) + len(stored))
    return np.concatenate(trained), np.concatenate(stored)


def held_out_text(settings: dict[str, Any], *, must: bool = False, characters: int = _CHARACTERS) -> tuple[str, str]:
    """Some text that training held out and its name, by the settings of a training manifest.

    Data that does not lie here any more is replaced by a file of Python's library, or an error when it `must` be there.
    """
    try:
        found = _held_out(settings, characters)
    except (OnebitError, OSError, KeyError, TypeError):  # it has moved, or another program wrote the manifest
        if must:
            raise
        found = None
    if found is None and must:
        raise DataError(f"--val-data {settings.get('val_data')}: expected a file or folder of text, or stdlib")
    return found or (inspect.getsource(textwrap), _OWN_TEXT)


def _held_out(settings: dict[str, Any], characters: int) -> tuple[str, str] | None:
    from onebit.data import hold_out, open_source

    def at_hand(data: str) -> bool:
        return data == "stdlib" or Path(data).expanduser().exists()  # never a download for this

    data, own, column = settings["data"], settings.get("val_data"), settings.get("text_column", "text")
    if own is not None:
        source = open_source(own, text_column=column, streaming=True) if at_hand(own) else None
        source = source and (source.validation or source)
    elif at_hand(data):
        whole = open_source(data, text_column=column, streaming=True)  # its fingerprint would read every byte
        source = whole.validation or hold_out(whole, settings.get("val_fraction", 0.05))[1]
    else:
        return None
    return None if source is None else _beginning(source.pieces, f"{own or data}, held out", characters)


def _beginning(pieces: Callable[[], Any], name: str, characters: int) -> tuple[str, str] | None:
    text = ""
    for piece in pieces():
        text += piece.text
        if len(text) >= characters:
            break
    return (text[:characters], name) if text.strip() else None
