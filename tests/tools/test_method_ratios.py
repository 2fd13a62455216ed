"""The table of what methods cost: whom it compares, with which bars, by which work."""

from __future__ import annotations

from tools import method_ratios
from tools.method_ratios import ratios


def test_each_method_is_held_to_its_bar_by_the_rows_that_it_computes(monkeypatch):
    """With a clock by which every batch takes a second, a rate is the rows of a batch."""
    ticks = iter(range(10_000))
    monkeypatch.setattr(method_ratios.time, "process_time", lambda: float(next(ticks)))
    table = ratios(["switch", "guidance", "activation"], steps=1, rounds=2, images=3)
    found = {(row.work, row.against): (row.ours, row.theirs, row.bar) for row in table.rows}
    assert found == {
        ("switch", "unsteered"): (6, 6, None),
        ("switch", "word"): (6, 6, 0.97),
        ("guidance", "unsteered"): (9, 6, 0.9),
        ("guidance", "word"): (9, 6, None),
        ("activation", "unsteered"): (6, 6, 0.85),
        ("activation", "word"): (6, 6, None),
        ("word", "unsteered"): (6, 6, None),
    }
    assert {row.ratio for row in table.rows} == {1.0, 1.5}
    assert "switch against word: 1.000 to 1.000" in table.notes
