"""One result file per measurement: benchmarks/results/<benchmark>_<hardware>_<YYYYMM>.json.

A number in the README, the docs or a page comes from such a file and from nowhere else, so a file says enough to be
judged without its author: which commit, which machine, which versions, the whole configuration. It is written by the
script that measured, never edited by hand. benchmarks/README.md describes the keys.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onebit.eval.record import ResultRecord

RESULTS = Path(__file__).resolve().parent / "results"


def write_result(
    benchmark: str, config: Mapping[str, Any], figures: Mapping[str, float], extra: Mapping[str, Any] | None = None
) -> Path:
    """Write the result file of one measurement and return its path.

    Args:
        benchmark: name of the script that measured, the first part of the file name; letters, digits, `_` and `-`.
        config: everything that was chosen: model shape, data, steps, seeds, flags. Any JSON value.
        figures: flat, name -> finite number, the unit in the name (`decode_tokens_per_s`, `file_mb`).
        extra: further top-level keys, such as `samples` (every run of a spread) or `notes`.

    A second call in the same month on the same machine replaces the first: git keeps the older one.

    Raises:
        ValueError: a bad name, a figure that is no finite number, an extra key that would hide a standard one.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", benchmark):
        raise ValueError(f"benchmark name {benchmark!r}: expected letters, digits, '_' and '-' only")
    for name, value in figures.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"figure {name!r} is {value!r}: expected a finite number")
    record = ResultRecord(benchmark=benchmark, config=config, figures=figures)
    result = record.to_dict()
    if taken := sorted(set(result) & set(extra or {})):
        raise ValueError(f"extra keys {taken} are standard keys: put them into config or figures")
    result |= dict(extra or {})
    RESULTS.mkdir(parents=True, exist_ok=True)
    month = record.date[:7].replace("-", "")
    path = RESULTS / f"{benchmark}_{record.machine['name']}_{month}.json"
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path
