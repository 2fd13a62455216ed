"""docs/security.md names tests that are there, and all that hold what it says."""

from __future__ import annotations

import re

from cases import ROOT


def test_every_test_that_the_page_names_is_there_and_each_of_these_is_named():
    page = (ROOT / "docs" / "security.md").read_text("utf-8")
    named = set(re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", page))
    assert len(named) > 50
    for file, name in named:
        assert re.search(rf"^def {name}\(", (ROOT / file).read_text("utf-8"), re.M), (file, name)
    files = list((ROOT / "tests").rglob("test_untrusted_*.py"))
    assert len(files) == 4
    there = {
        (file.relative_to(ROOT).as_posix(), name)
        for file in files
        for name in re.findall(r"^def (test_\w+)\(", file.read_text("utf-8"), re.M)
    }
    assert there - named == set()
