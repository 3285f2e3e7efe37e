"""The demo end to end on a little text, run twice, and the report it writes."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("transformers")

from onebit.eval.charts import Bar, Line, Segment, ShareRow, bars, line_chart, share_rows, stacked_bars, ticks
from onebit.eval.demo_report import smoothed

ROOT = Path(__file__).parents[2]


def run_demo(folder: Path, text: Path) -> subprocess.CompletedProcess[str]:
    command = ["demo", "--output-dir", str(folder), "--data", str(text), "--max-steps", "4"]
    return subprocess.run(
        [sys.executable, "-m", "onebit.cli.main", *command], capture_output=True, text=True, timeout=280
    )


class Links(HTMLParser):
    """Everything a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found += [f"{tag} {value}" for name, value in attributes if name in {"src", "href", "srcset"}]


def test_demo_runs_twice_and_writes_a_page_that_needs_no_network(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "src").rglob("*.py"))[:60]))
    first = run_demo(tmp_path / "demo", text)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "What to try next" in first.stdout
    page = (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    links = Links()
    links.feed(page)
    assert not links.found
    assert "http" not in page
    assert "@import" not in page
    assert page.count("<svg") == 4
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(svg)
    assert (tmp_path / "demo" / "model.1bit").stat().st_size < 2_000_000
    assert len((tmp_path / "demo" / "sample.txt").read_text(encoding="utf-8").splitlines()) > 10
    second = run_demo(tmp_path / "demo", text)
    assert second.returncode == 0, second.stderr
    assert "already trained" in second.stdout


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 100, [0, 20, 40, 60, 80, 100]), (0, 1234, [0, 500, 1000]), (3.1, 3.9, [3.2, 3.4, 3.6, 3.8])],
)
def test_ticks_are_round_numbers(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_bars_have_lengths_in_proportion() -> None:
    svg = ElementTree.fromstring(bars([Bar("a", 10, "10"), Bar("b", 5, "5")], title="t"))
    widths = [float(rect.get("width", 0)) for rect in svg.iter("rect") if rect.get("class") == "accent"]
    assert widths == pytest.approx([470, 235])


def test_shares_fill_their_row() -> None:
    svg = ElementTree.fromstring(share_rows([("layer 0", [ShareRow("q", 0.25, 0.5, 0.25)])], title="t"))
    widths = [float(r.get("width", 0)) for r in svg.iter("rect") if float(r.get("y", 0)) > 20]
    assert sum(widths) == pytest.approx(470 - 96)
    assert widths[1] == pytest.approx(2 * widths[0])


def test_charts_escape_what_they_show_and_take_no_data() -> None:
    part = Segment("<b>", 1.0, "ternary")
    ElementTree.fromstring(stacked_bars([("a & b", [part])], unit="MB", title="<t>"))
    assert "nothing was logged" in line_chart([Line("x", [], "strong")], x_label="step", title="t")


def test_smoothing_keeps_a_constant() -> None:
    assert smoothed([(step, 2.0) for step in range(9)]) == [(float(step), 2.0) for step in range(9)]
