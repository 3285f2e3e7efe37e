"""The page of `onebit eval --report` in headless Chromium: complete without a network, on a phone, by axe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from onebit.eval.record import ResultRecord
from onebit.eval.report import render


@pytest.fixture
def report(tmp_path: Path) -> str:
    """Its address."""
    accuracy = "task/quiz/acc"
    better = {"higher_is_better": {accuracy: True}}
    records = [
        ResultRecord(
            benchmark="eval",
            config={"model": f"folder/{name}", "data": f"{name}.txt", "runtime": "engine", **better},
            figures={"bits_per_byte": loss, "size_bytes": size, accuracy: 0.5, "task/quiz/acc_stderr": 0.1},
        )
        for name, loss, size in (("a-model-of-a-rather-long-name.1bit", 1.2, 9e5), ("b.1bit", 1.1, 9e8))
    ]
    path = tmp_path / "report.html"
    path.write_text(render(records), encoding="utf-8")
    return path.as_uri()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1100, 360])
def test_it_reads_well_everywhere(browser: Any, report: str, scheme: str, width: int) -> None:
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="needs axe-playwright-python, of the extra dev"
    )
    page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 800})
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(report)
    assert asked == [report]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # the table scrolls by itself
    for summary in page.locator("summary").all():
        summary.click()
    found = [(each["id"], each["nodes"][0]["html"]) for each in axe.Axe().run(page).response["violations"]]
    assert not found
    page.close()
