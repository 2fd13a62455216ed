"""docs/models.md says which pipelines are tested, and which are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from analogy.models.families import FAMILIES
from tools import family_table

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"


@pytest.mark.parametrize("table", [family_table.tested, family_table.refused])
def test_the_page_has_the_table(table):
    """If it does not, ``python -m tools.family_table`` prints what it should have."""
    assert table() in PAGE.read_text("utf-8")


def test_figures_are_read_from_a_junit_file(tmp_path):
    def junit(names):
        cases = "".join(
            f'<testcase name="test_a_class_is_carried[{name}]" time="1.25"><properties>'
            '<property name="batch" value="1.26e-06"/><property name="effect" value="0.2345"/>'
            f'</properties></testcase><testcase name="test_other[{name}]" time="0.5"/>'
            for name in names
        )
        (tmp_path / "junit.xml").write_text(
            f"<testsuites><testsuite>{cases}</testsuite></testsuites>"
        )
        return family_table.read_junit(tmp_path / "junit.xml")

    names = list(FAMILIES.builtin)
    measured = family_table.Measured(batch=1e-06, effect=0.23, seconds=1.8)
    assert junit([*names, "Other"]) == dict.fromkeys(names, measured)
    with pytest.raises(ValueError, match=f"missing: {names[0]}; write it"):
        junit(names[1:])
