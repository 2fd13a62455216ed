"""The tool that measures what ``--sequential`` saves."""

from __future__ import annotations

import sys
from functools import partial

import pytest

import analogy
from tools import sequential_saving


def test_a_folder_with_images_is_not_measured(tmp_path):
    with pytest.raises(FileExistsError):
        sequential_saving.cost(tmp_path, sequential=True, limit=1)


@pytest.mark.slow
def test_both_runs_are_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(analogy, "run", partial(analogy.run, categories=("color",)))
    monkeypatch.setattr(sys, "argv", ["sequential_saving", str(tmp_path / "new"), "--limit", "1"])
    sequential_saving.main()
    part, whole, ratio = capsys.readouterr().out.splitlines()[-3:]
    assert part.split()[0] == "sequential"
    assert whole.split()[:2] == ["full", "12"]  # 1 pair, 4 strengths, 3 seeds
    assert float(ratio.split()[1].rstrip(",")) <= 1
