"""docs/models.md says which pipelines are tested, and which are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import family_table

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"


@pytest.mark.parametrize("table", [family_table.tested, family_table.refused])
def test_the_page_has_the_table(table):
    """If it does not, ``python -m tools.family_table`` prints what it should have."""
    assert table() in PAGE.read_text("utf-8")
