"""The measurement of a plan's conditionings in memory, on small shapes."""

from __future__ import annotations

import pytest

from tools import text_memory

SMALL = ("--tokens=4", "--dim=8", "--batch=2")


@pytest.mark.parametrize(
    ("limit", "code", "said"), [(64.0, 0, "below the limit of 64"), (0.001, 1, "not below")]
)
def test_the_limit_decides(capsys, limit, code, said):
    assert text_memory.main([*SMALL, f"--limit={limit}"]) == code
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("909 texts of 400 pairs, 4 x 8 in bfloat16: 0.00 GiB in memory")
    assert [line.partition(":")[0] for line in lines[2:6]] == ["word", "lerp", "category", "random"]
    assert lines[-1].startswith(said)
