"""Rows for fine-tuning: conversations, prompts with completions, or text, from files, folders and data sets by name.

The columns that come out are TRL's: `text`, `messages`, or `prompt` and `completion` (with `tools` where there are
any). Common other names are put into these; a column that none of them needs is left out, because TRL would take some
of them for something else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onebit.data.documents import TextSource, hold_out, open_source
from onebit.data.hub import load_hub_dataset
from onebit.errors import DataError, MissingExtraError

__all__ = ["Rows", "bars_off", "is_conversation", "open_rows"]

_TABLES = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
_MIN_ROWS_TO_SPLIT = 20  # with fewer, a held-out share says nothing
_QUESTIONS, _ANSWERS = ("instruction", "question", "prompt"), ("output", "response", "answer", "completion")


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows to train on. is_text: they are documents of any length rather than samples of their own.

    source: what the rows themselves say they come from (`onebit selfgen` writes it into each), else the data's name.
    """

    train: Any
    validation: Any | None
    is_text: bool
    source: str


def open_rows(
    data: str,
    *,
    cache: Path,
    text_column: str = "text",
    val_data: str | None = None,
    val_fraction: float = 0.0,
    seed: int = 0,
    with_messages: bool = True,
    allow_download: bool = False,
) -> Rows:
    """Open what `--dataset-name` names: a .jsonl, .parquet or .txt file, a folder of them, `stdlib`, or a data set.

    with_messages: instructions with answers become messages for a chat template, else text. A share of the rows is held
    out when neither `val_data` nor the data set brings validation rows and there are at least 20.

    Raises:
        DataError: nothing there, nothing readable in it, or no column that can be trained on.
    """
    with bars_off():
        train, validation, is_text = _open(data, cache, text_column, val_fraction, allow_download)
        if val_data is not None:
            validation, _, _ = _open(val_data, cache, text_column, 0.0, allow_download)
        if validation is None and not is_text and val_fraction > 0 and len(train) >= _MIN_ROWS_TO_SPLIT:
            parts = train.train_test_split(test_size=val_fraction, seed=seed)
            train, validation = parts["train"], parts["test"]
        source = next(iter(train)).get("source") if len(train) else None
        train = _in_our_columns(train, data, text_column, with_messages)
        if validation is not None:
            validation = _in_our_columns(validation, val_data or data, text_column, with_messages)
    name = source if isinstance(source, str) and source else Path(data).stem
    return Rows(train=train, validation=validation, is_text=is_text, source=name)


def is_conversation(row: dict[str, Any]) -> bool:
    """Whether a row needs a chat template."""
    return "messages" in row or "conversations" in row or isinstance(row.get("prompt"), list)


@contextmanager
def bars_off() -> Iterator[None]:
    """No progress bars of `datasets` for this while."""
    datasets = _datasets()
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _open(
    data: str, cache: Path, text_column: str, val_fraction: float, allow_download: bool
) -> tuple[Any, Any | None, bool]:
    path = Path(data).expanduser()
    if path.suffix in _TABLES and not path.is_file() and not allow_download:
        raise DataError(f"no file '{data}'; give a .jsonl, .parquet or .txt file, or a folder of them")
    tables = _table_files(path)
    if tables:
        return _read_tables(tables, cache), None, False
    if data == "stdlib" or path.exists():
        source, held = hold_out(open_source(data, text_column=text_column), val_fraction)
        return _read_text(source, cache), None if held is None else _read_text(held, cache), True
    name, _, config = data.partition(":")
    try:
        splits = load_hub_dataset(name, config or None, allow_download=allow_download)
    except DataError as error:
        hint = "" if allow_download else "; give a file or folder, or --allow-download"
        raise DataError(f"'{data}' is no file or folder here, and as a data set: {error}{hint}") from None
    if "train" not in splits:
        raise DataError(f"the data set '{data}' has no split 'train', only {', '.join(splits)}")
    return splits["train"], splits.get("validation"), False


def _table_files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.suffix in (".jsonl", ".parquet"))
    return [path] if path.is_file() and path.suffix in _TABLES else []


def _read_tables(files: list[Path], cache: Path) -> Any:
    kinds = {_TABLES[file.suffix] for file in files}
    if len(kinds) > 1:
        raise DataError(f"'{files[0].parent}' holds both .jsonl and .parquet files; keep one kind in a folder")
    try:
        return _datasets().load_dataset(
            kinds.pop(), data_files=[str(file) for file in files], split="train", cache_dir=str(cache)
        )
    except Exception as error:  # `datasets` wraps what pyarrow says in kinds of its own
        reason: BaseException = error
        while reason.__cause__ is not None:
            reason = reason.__cause__
        raise DataError(f"cannot read '{files[0]}': {' '.join(str(reason).split())[:200]}") from None


def _read_text(source: TextSource, cache: Path) -> Any:
    datasets = _datasets()

    def rows() -> Iterator[dict[str, str]]:
        for piece in source.pieces():
            yield {"text": piece.text}

    return datasets.Dataset.from_generator(rows, cache_dir=str(cache), fingerprint=source.fingerprint)


def _in_our_columns(rows: Any, data: str, text_column: str, with_messages: bool) -> Any:
    """The same rows with TRL's columns and no others."""
    if len(rows) == 0:
        raise DataError(f"'{data}' holds no rows")
    columns = rows.column_names
    kept = [column for column in ("tools", "chat_template_kwargs") if column in columns]
    if "input_ids" in columns:
        return rows
    if {"prompt", "completion"} <= set(columns):
        return _checked(rows.select_columns(["prompt", "completion", *kept]), data)
    for column in ("messages", "conversations", text_column):
        if column in columns:
            return _checked(rows.select_columns([column, *kept]), data)
    question = next((name for name in _QUESTIONS if name in columns), None)
    answer = next((name for name in _ANSWERS if name in columns), None)
    if question is None or answer is None:
        raise DataError(
            f"'{data}' has the columns {', '.join(columns)}; expected '{text_column}', 'messages', or 'prompt' and "
            "'completion'; name a column of text with --dataset-text-field"
        )
    return _checked(
        rows.map(
            _prompt_and_completion,
            fn_kwargs={"question": question, "answer": answer, "with_messages": with_messages},
            remove_columns=columns,
        ),
        data,
    )


def _prompt_and_completion(row: dict[str, Any], question: str, answer: str, with_messages: bool) -> dict[str, Any]:
    asked, answered = str(row[question] or ""), str(row[answer] or "")
    if row.get("input"):
        asked += f"\n\n{row['input']}"
    if not with_messages:
        return {"prompt": f"{asked}\n", "completion": answered}
    return {
        "prompt": [{"role": "user", "content": asked}],
        "completion": [{"role": "assistant", "content": answered}],
    }


def _checked(rows: Any, data: str) -> Any:
    """Refuse a column that holds something else than its name says, by the first row."""
    row = next(iter(rows))
    for column, value in row.items():
        if column in ("tools", "chat_template_kwargs"):
            continue
        is_list = isinstance(value, list) and bool(value) and isinstance(value[0], dict)
        if not is_list and (column in ("messages", "conversations") or not isinstance(value, str)):
            kind = "an empty list" if value == [] else type(value).__name__
            wanted = "a list of messages" if column in ("messages", "conversations") else "text or a list of messages"
            raise DataError(f"'{data}': column '{column}' holds {kind}; expected {wanted}")
    return rows


def _datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise MissingExtraError("train", "fine-tuning") from None
    return datasets
