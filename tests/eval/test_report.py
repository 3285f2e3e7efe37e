"""The page that compares models: what it says of the records it is given, and that it says nothing else."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from onebit.errors import ConfigError, FormatError
from onebit.eval.charts import Bar, Spot, bars, front
from onebit.eval.judge import JudgeSettings
from onebit.eval.record import ResultRecord, read_records
from onebit.eval.report import render
from onebit.eval.summary import as_text, stderr_of

MACHINE = {"name": "here", "processor": "Some CPU", "gpu": None}
CONFIG = {"data": "texts/a.txt", "context": 256, "stride": 256, "bos": False, "runtime": "engine"}


def record(model: str, figures: dict[str, float], **changes: Any) -> ResultRecord:
    config, machine = {"model": model, **CONFIG, **changes.pop("config", {})}, changes.pop("machine", MACHINE)
    return ResultRecord(
        benchmark="eval", date="2026-11-27T00:00:00Z", commit="abc", machine=machine, config=config, figures=figures
    )


def rows_of(html: str) -> dict[str, list[str]]:
    """Of the table of figures: model -> cells, the best in stars."""
    table = re.search(r"<table>(.*?)</table>", html, re.DOTALL)
    assert table is not None
    rows = {}
    for row in re.findall(r"<tr>(.*?)</tr>", table[1], re.DOTALL):
        cells = re.findall(r"<t[dh]([^>]*)>(.*?)</t[dh]>", row, re.DOTALL)
        texts = [re.sub("<[^>]+>", "", text).replace("&#177;", "+-") for _, text in cells]
        rows[texts[0]] = [f"*{t}*" if "best" in a else t for (a, _), t in zip(cells[1:], texts[1:], strict=True)]
    return rows


def test_the_table_holds_the_figures_and_marks_the_best() -> None:
    accuracy, error = "task/quiz/acc", "task/quiz/acc_stderr"
    small = record(
        "m/small.1bit",
        {"bits_per_byte": 1.5, "size_bytes": 2e6, "tokens_per_s_decode": 90.0, accuracy: 0.5, error: 0.125},
        config={"higher_is_better": {accuracy: True}},
    )
    large = record("m/large.1bit", {"bits_per_byte": 1.25, "size_bytes": 5e6, accuracy: 0.75})
    html = render([small, large])
    rows = rows_of(html)
    assert rows["model"] == ["bits per byte", "size, MB", "tokens/s written", "quiz acc"]
    assert rows["small.1bit engine"] == ["1.5000", "*2.00*", "90.0", "0.5 +- 0.12"]  # one alone is not the best
    assert rows["large.1bit engine"] == ["*1.2500*", "5.00", "not measured", "*0.75*"]
    assert "Not measured alike" not in html
    for one in (small, large):
        assert json.dumps(one.to_dict()["figures"]).replace('"', "&quot;")[1:30] in html.replace("\n    ", " ")
    assert html.count("<svg") == 5  # size and loss, then a picture for each figure
    assert not re.search(r"(src|href)=|https?://(?!www.w3.org)", html)  # opens without a network


def test_it_says_what_was_not_measured_alike() -> None:
    ours = record("a.1bit", {"bits_per_byte": 1.0, "tokens_per_s_decode": 9.0}, config={"limit": None})
    theirs = record(
        "b.1bit",
        {"bits_per_byte": 1.1},
        config={"data": "other.txt", "limit": 10},
        machine={**MACHINE, "processor": "Another"},
    )
    html = render([ours, theirs])
    assert "the text that was scored differs (&quot;other.txt&quot;, &quot;texts/a.txt&quot;)" in html
    assert "how many questions of a task were asked differs (10, null)" in html
    assert "Speeds come from different machines" in html
    assert html.count("class=bad") == 3


def test_names_that_lie_do_not_become_html() -> None:
    html = render([record("<script>alert(1)</script>", {"bits_per_byte": 1.0, "task/<b>/acc": 1.0})])
    assert "<script>alert" not in html
    assert "task/<b>" not in html


def test_models_of_one_name_are_told_apart() -> None:
    figures = {"bits_per_byte": 1.0}
    rows = rows_of(render([record(name, figures) for name in ("a/m.1bit", "b/m.1bit", "c.1bit", "c.1bit")]))
    assert list(rows)[1:] == ["a/m.1bit engine", "b/m.1bit engine", "c.1bit (3) engine", "c.1bit (4) engine"]


def test_pictures_are_drawings_with_a_description() -> None:
    spots = [Spot("a", 1.0, 2.0), Spot("b", 2.0, 1.0), Spot("worse than both", 3.0, 3.0)]
    for picture in (
        front(spots, x_label="MB", y_label="loss", title="Size & loss"),
        bars([Bar("a", 2.0, "2", 0.5), Bar("<b>", 0.0, "0")], title="Size & loss"),
    ):
        svg = ET.fromstring(picture)
        assert svg.get("role") == "img"
        assert "Size & loss" in (svg.get("aria-label") or "")
    # Of what is beaten nothing is on the line: two spots and the corner between them.
    svg = ET.fromstring(front(spots, x_label="MB", y_label="loss", title="t"))
    line = next(it for it in svg.iter() if it.tag.endswith("polyline"))
    assert len((line.get("points") or "").split()) == 3


def test_records_come_back_from_a_file(tmp_path: Path) -> None:
    one = record("a.1bit", {"bits_per_byte": 1.0, "perplexity": float("inf")})
    path = tmp_path / "r.json"
    path.write_text(json.dumps([one.to_dict(), one.to_dict()]))
    assert read_records(path) == [read_records(path)[0]] * 2
    assert read_records(path)[0].figures["perplexity"] is None
    for lie in ("[]x", '{"benchmark": "eval"}', '[{"config": 1}]', json.dumps({**one.to_dict(), "figures": [1]}), "3"):
        path.write_text(lie)
        with pytest.raises(FormatError, match="not a record of onebit"):
            read_records(path)


def test_lines_for_a_terminal() -> None:
    text = as_text([record("a.1bit", {"size_bytes": 1e6, "bits_per_weight": 2.0, "task/quiz/f1/strict": 0.5})])
    assert "1.00 MB, 2.00 bits a weight" in text
    assert "quiz" in text
    assert "f1/strict 0.5000" in text
    assert stderr_of("task/quiz/f1/strict") == "task/quiz/f1_stderr/strict"


def test_nothing_to_measure() -> None:
    with pytest.raises(ConfigError, match="nothing to measure"):
        JudgeSettings()
