"""Write docs/reference/cli/*.md from what the commands say of themselves; --check only tells whether they are stale.

python tools/make_cli_pages.py           write the pages, remove those of commands that are gone
python tools/make_cli_pages.py --check   exit 1 and name the stale pages
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from onebit.cli.main import COMMANDS

PAGES = Path(__file__).resolve().parents[1] / "docs" / "reference" / "cli"
NOTE = "<!-- Written by tools/make_cli_pages.py from --help; edit the command, not this page. -->\n"


def help_of(*command: str) -> str:
    """What `onebit COMMAND --help` prints, as wide as a page and without colours."""
    environment = {
        **os.environ,
        "COLUMNS": "100",
        "TERMINAL_WIDTH": "100",
        "NO_COLOR": "1",
        "_TYPER_FORCE_DISABLE_TERMINAL": "1",
    }
    environment.pop("FORCE_COLOR", None)
    run = subprocess.run(
        [sys.executable, "-m", "onebit.cli.main", *command, "--help"], capture_output=True, text=True, env=environment
    )
    if run.returncode != 0:
        sys.exit(f"onebit {' '.join(command)} --help failed: {run.stderr.strip()}")
    return "\n".join(line.rstrip() for line in run.stdout.strip().splitlines())


def pages() -> dict[str, str]:
    """File name -> content of every page."""
    with ThreadPoolExecutor(2) as pool:
        texts = dict(zip(COMMANDS, pool.map(help_of, COMMANDS), strict=True))
    made = {"index.md": _index()}
    for name, text in texts.items():
        made[f"{name}.md"] = f"{NOTE}\n# onebit {name}\n\n{COMMANDS[name].help}\n\n```text\n{text}\n```\n"
    return made


def _index() -> str:
    lines = [NOTE, "# Commands", "", "Flags are shown with hyphens and accepted with underscores too."]
    panel = ""
    for name, command in COMMANDS.items():
        if command.panel != panel:
            panel = command.panel
            lines += ["", f"## {panel}", ""]
        lines.append(f"- [`onebit {name}`]({name}.md): {command.help}")
    return "\n".join(lines) + "\n"


def stale(made: dict[str, str]) -> list[str]:
    """Names of pages that differ from what is on disk, missing and superfluous ones included."""
    there = {path.name: path.read_text(encoding="utf-8") for path in PAGES.glob("*.md")}
    return sorted(name for name in there.keys() | made.keys() if there.get(name) != made.get(name))


def main() -> None:
    """Write or check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a page is stale")
    check = parser.parse_args().check
    made = pages()
    old = stale(made)
    if check:
        if old:
            sys.exit(f"stale pages in docs/reference/cli: {', '.join(old)}; run: make docs")
        return
    PAGES.mkdir(parents=True, exist_ok=True)
    for name in old:
        if name in made:
            (PAGES / name).write_text(made[name], encoding="utf-8")
        else:
            (PAGES / name).unlink()
    print(f"docs/reference/cli: {len(old)} of {len(made)} pages written")


if __name__ == "__main__":
    main()
