"""A few seconds of engine/tests/fuzz with the plain compiler: the reader and the tokenizer on damaged input.

The long, coverage-guided run is `engine/tests/fuzz/run.sh SECONDS` with clang.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).resolve().parents[2] / "engine" / "tests" / "fuzz" / "run.sh"


def sanitizers_work(compiler: str, folder: Path) -> bool:
    source = folder / "probe_sanitizers.c"
    source.write_text("int main(void) { return 0; }\n")
    command = [compiler, "-fsanitize=address,undefined", source, "-o", folder / "probe_sanitizers"]
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
def test_damaged_files_and_tokenizers_do_no_harm(tmp_path: Path) -> None:
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None or not sanitizers_work(compiler, tmp_path):
        pytest.skip("no C compiler with AddressSanitizer")
    environment = os.environ | {"NO_LIBFUZZER": "1", "PYTHON": sys.executable, "CC": compiler}
    folder = RUN.parents[3] / "build" / "fuzz-tests"  # kept: the objects serve until a source changes
    done = subprocess.run(["sh", RUN, "6", folder], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    inputs = [int(count) for count in re.findall(r"^(\d+) inputs from", done.stdout, re.MULTILINE)]
    assert len(inputs) == 2
    assert min(inputs) > 500, inputs  # a crawl would mean that seeds no longer open or that one input takes for ever
