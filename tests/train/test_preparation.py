"""What happens to a run's folder when the run fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from onebit.errors import DataError
from onebit.train.preparation import output_folder


@pytest.mark.parametrize("made", ["before", "by the run"])
@pytest.mark.parametrize("has_checkpoint", [True, False])
def test_only_a_new_folder_without_a_checkpoint_goes_away(tmp_path: Path, made: str, has_checkpoint: bool) -> None:
    folder = tmp_path / "runs" / "mine"
    if made == "before":
        folder.mkdir(parents=True)

    def fail() -> None:
        with output_folder(folder):
            (folder / "cache").mkdir()
            if has_checkpoint:
                (folder / "checkpoint-500").mkdir()
            raise DataError("the loss is no number any more")

    with pytest.raises(DataError, match="no number"):
        fail()
    assert folder.exists() == (has_checkpoint or made == "before")
