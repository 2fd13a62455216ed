"""Sides in turn and the table of how they compare, on sides of known rates."""

from __future__ import annotations

import pytest

from tools.side_by_side import Row, Table, compare, in_turn, rate


def test_a_rate_is_the_count_over_the_clocks_time():
    times = iter([10.0, 14.0])
    done = []
    assert rate(8, lambda: done.append(1), lambda: next(times)) == 2.0
    assert done == [1]


def test_sides_take_turns_and_each_is_first_in_its_turn():
    order = []

    def side(name, speed):
        def run(round):
            order.append((round, name))
            return speed + round

        return run

    rates = in_turn({"a": side("a", 1.0), "b": side("b", 10.0)}, rounds=3)
    assert rates == {"a": [1.0, 2.0, 3.0], "b": [10.0, 11.0, 12.0]}
    assert order == [(0, "a"), (0, "b"), (1, "b"), (1, "a"), (2, "a"), (2, "b")]


def test_the_ratio_is_the_median_over_rounds_not_the_ratio_of_medians():
    rates = {"ours": [4.0, 9.0, 30.0], "theirs": [1.0, 3.0, 15.0]}
    row = compare("work", rates, "ours", "theirs", unit="images/s", bar=3.0)
    assert (row.ours, row.theirs, row.ratio) == (9.0, 3.0, 3.0)
    slow_minute = {"ours": [4.0, 1.0, 4.0], "theirs": [2.0, 0.5, 1.0]}
    assert compare("work", slow_minute, "ours", "theirs", unit="1/s").ratio == 2.0


@pytest.mark.parametrize(("ratio", "holds"), [(1.99, False), (2.0, True), (3.0, True)])
def test_a_bar_is_reached_at_its_value(ratio, holds):
    assert Row("work", "peer", "1/s", ratio, 1.0, ratio, 2.0).holds is holds
    assert Row("work", "peer", "1/s", ratio, 1.0, ratio).holds


def test_the_table_says_what_holds_and_what_was_not_measured():
    rows = [Row("a", "x", "1/s", 30.0, 10.0, 3.0, 2.0), Row("b", "y", "1/s", 8.0, 10.0, 0.8, 0.9)]
    lines = Table([*rows, Row("c", "z", "1/s", 1.0, 1.0, 1.0)], ["d: no bfloat16"]).lines()
    assert lines[2:] == [
        "| a | x | 30 | 10 | 1/s | 3.00 | 2 | yes |",
        "| b | y | 8 | 10 | 1/s | 0.80 | 0.9 | **no** |",
        "| c | z | 1 | 1 | 1/s | 1.00 |  |  |",
        "",
        "- d: no bfloat16",
    ]
    assert "ratio 0.80, bar 0.9" in str(rows[1])
