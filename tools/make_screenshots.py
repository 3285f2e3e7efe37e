"""Draw the pictures of docs/pictures anew: python tools/make_screenshots.py [--report FILE.html]

Needs Chromium (ONEBIT_CHROMIUM names its program, `chromium` unless set) and the extras serve and dev. The chat page is
that of `onebit serve` with the small model inside onebit; the report is one that `onebit eval --report` wrote.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, sync_playwright

PICTURES = Path(__file__).resolve().parent.parent / "docs" / "pictures"
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
READY, BUSY = "#send:not([disabled])", "article[aria-busy]"
ASKED = "def read_lines(path):\n    "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", type=Path, help="a page of onebit eval")
    report = parser.parse_args().report
    PICTURES.mkdir(exist_ok=True)
    with sync_playwright() as tool, served("tiny") as address:
        program = shutil.which(os.environ.get("ONEBIT_CHROMIUM", "chromium"))
        browser = tool.chromium.launch(executable_path=program, args=QUIET)
        chat(browser, address, PICTURES / "chat.png", width=1100, height=640, color_scheme="light")
        chat(browser, address, PICTURES / "chat-phone.png", width=390, height=700, color_scheme="dark")
        if report is not None:
            page = browser.new_page(viewport={"width": 1100, "height": 900}, color_scheme="light")
            page.goto(report.resolve().as_uri())
            page.screenshot(path=PICTURES / "report.png")
        browser.close()


@contextmanager
def served(model: str) -> Iterator[str]:
    """The address of a server."""
    command = [sys.executable, "-m", "onebit.cli.main", "serve", model, "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split()[1]
    finally:
        process.terminate()
        process.wait(60)


def chat(browser: Browser, address: str, path: Path, *, width: int, height: int, **options: Any) -> None:
    """A question and its answer."""
    page = browser.new_page(viewport={"width": width, "height": height}, **options)
    page.goto(address)
    page.wait_for_selector(READY)
    page.click("#show-settings")
    for name, value in (("temperature", "0.7"), ("seed", "5"), ("maxNewTokens", "120")):
        page.fill(f"#set-{name}", value)
    page.click("#close")
    page.fill("#message", ASKED)
    page.press("#message", "Enter")
    page.wait_for_selector(BUSY, state="detached")
    page.screenshot(path=path)
    page.close()


if __name__ == "__main__":
    main()
