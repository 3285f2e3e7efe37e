"""The code blocks of the documents that the feature list is made of: where they lie, and how a test runs one."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parents[1] / "examples"


class Block(NamedTuple):
    """A fenced block; heading: of its section."""

    heading: str
    language: str
    text: str


def blocks_of(name: str) -> list[Block]:
    """The blocks of tests/seeds/NAME.txt in their order."""
    found: list[Block] = []
    heading = ""
    for title, language, text in re.findall(
        r"^# ([^\n]+)$|^```(\w+)\n(.*?)^```$", (HERE / f"{name}.txt").read_text(encoding="utf-8"), re.S | re.M
    ):
        heading = title or heading
        if not title:
            found.append(Block(heading, language, text))
    return found


def commands_of(block: Block) -> list[list[str]]:
    """The words of each command line of a bash block, as bash splits them; comments are left out."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]
