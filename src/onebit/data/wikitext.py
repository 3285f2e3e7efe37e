"""WikiText-2 and WikiText-103 by name, into a folder that `--data` reads; or a message that says what to put where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onebit.data.hub import load_hub_dataset
from onebit.errors import DataError

__all__ = ["CORPORA", "SPLIT_FILES", "download_wikitext"]

CORPORA = {"wikitext-2": "wikitext-2-raw-v1", "wikitext-103": "wikitext-103-raw-v1"}
SPLIT_FILES = {"train": "train.txt", "validation": "valid.txt", "test": "test.txt"}
_HUB_NAME = "Salesforce/wikitext"


def download_wikitext(name: str, folder: Path) -> list[Path]:
    """Write train.txt, valid.txt and test.txt of a corpus; files that are there are kept.

    Raises:
        DataError: the hub cannot be reached; the message says which files to put into which folder.
    """
    targets = {split: folder / file for split, file in SPLIT_FILES.items()}
    if all(path.is_file() and path.stat().st_size for path in targets.values()):
        return list(targets.values())
    splits = _load(name, folder)
    folder.mkdir(parents=True, exist_ok=True)
    for split, path in targets.items():
        beside = path.with_suffix(".part")
        with beside.open("w", encoding="utf-8", newline="") as stream:
            for row in splits[split]:
                stream.write(row["text"])
        beside.replace(path)
    return list(targets.values())


def _load(name: str, folder: Path) -> Any:
    try:
        return load_hub_dataset(_HUB_NAME, CORPORA[name])
    except DataError as error:
        files = ", ".join(SPLIT_FILES.values())
        raise DataError(
            f"cannot download {name} ({error}). Put the raw corpus ({CORPORA[name]}) as {files} into '{folder}' "
            f"and train with --data {folder}"
        ) from None
