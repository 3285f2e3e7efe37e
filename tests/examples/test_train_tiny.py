"""The script of the tiny model from its first step to the file, far too short to be any good."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "train_tiny.py"


@pytest.mark.slow
def test_train_tiny_makes_a_file_of_the_promised_size(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--steps", "3", "--threads", "1", "--output-dir", str(tmp_path / "tiny")]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    size = (tmp_path / "tiny" / "tiny.1bit").stat().st_size
    assert 1_000_000 < size <= 1_500_000
    assert (tmp_path / "tiny" / "tiny_manifest.json").is_file()
