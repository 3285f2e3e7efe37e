"""The progress line: quiet at first, and a time left that does not count what came before the first step."""

from __future__ import annotations

import pytest

from onebit.cli import progress


def test_time_left_counts_from_the_first_call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    line = progress.ProgressLine("export", "tensors")
    now = 60.0  # a model was opened
    line(1, 11)
    assert capsys.readouterr().err == ""
    now = 61.0
    line(2, 11)
    assert capsys.readouterr().err == ""
    now = 62.0
    line(3, 11)
    assert capsys.readouterr().err == "export:  27% of 11 tensors, 8 s left\n"
    now = 63.0
    line(4, 11)
    line(11, 11)
    assert capsys.readouterr().err == ""
