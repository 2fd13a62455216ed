"""Methods compared look by look: the paired differences of each two stop by themselves."""

from __future__ import annotations

import looks
import pytest
from looks import normal, pairs_of, plant, write_pairs
from verbs import verb

from analogy.statistics.sequential import order

MEANS = {"word": 0.3, "lerp": 0.1, "slerp": 0.1}


def margin(job):
    """Word is better; lerp and slerp are alike. A pair's own margin is in all of them."""
    own = 0.2 * normal(job.pair.source_prompt)
    rest = 0.05 * normal(job.pair.source_prompt, job.alpha, job.method)
    return MEANS[job.method] + own + rest + 0.02 * normal(job.key)


@pytest.fixture
def compared(tmp_path, monkeypatch):
    """``analogy methods --sequential`` on 20 pairs of two categories: its output, its images."""
    monkeypatch.chdir(tmp_path)
    write_pairs(tmp_path / "pairs.csv", pairs_of("color", "object", n=10))

    def run(*options, **settings):
        planted = plant(margin, **settings)
        ran = verb(
            "methods", "--methods=word,lerp,slerp", "--pairs=pairs.csv", "--alphas=0.5,1",
            "--seeds=0,1,2", "--steps=2", "--sequential", f"--engine={looks.ENGINE}",
            "--run-dir=run", *options,
        )  # fmt: skip
        assert ran.exit_code == 0, ran.output
        return ran.output, planted.made

    return run


def images(made):
    return {name: sum(job.method == name for job in made) for name in MEANS}


def test_methods_that_differ_stop_early_and_those_that_do_not_go_on(compared):
    output, made = compared()
    # Of two alphas: 16 pairs with one seed tell word apart; lerp and slerp need 20 with three.
    assert images(made) == {"word": 2 * 16, "lerp": 2 * 60, "slerp": 2 * 60}
    assert not any(job.is_unsteered for job in made)
    rows = [line for line in output.splitlines() if " - " in line and "look" in line]
    assert {tuple(row.split()[:3]): row.split("look ")[1] for row in rows} == {
        ("word", "-", "lerp"): "1 of 3", ("word", "-", "slerp"): "1 of 3",
        tuple(next(r for r in rows if not r.startswith("word")).split()[:3]): "3 of 3",
    }  # fmt: skip
    assert "95%" not in output


def test_the_order_takes_the_categories_in_turn(compared):
    _, made = compared()
    mine = [job for job in made if job.method == "word"]
    assert {job.seed for job in mine} == {0}
    expected = set()
    for name in ("color", "object"):
        pairs = pairs_of(name, n=10)
        places = order([(pair.source_prompt, pair.target_prompt) for pair in pairs], 0)
        expected |= {pairs[i].id for i in places[:8]}
    assert {job.pair.id for job in mine} == expected


def test_killed_and_continued_and_in_other_batches_it_is_the_same(compared):
    output, made = compared()
    for i, size in enumerate((5, 38)):
        kills, again = 0, []
        while True:
            try:
                found, rest = compared(f"--run-dir={i}", batch_size=size, dies_after=100)
            except looks.Killed:
                kills += 1
                again += looks.plan.made
                continue
            again += rest
            break
        assert kills >= 2
        assert {job.key for job in again} == {job.key for job in made}
        tables = [text[text.index("method  ") : text.index("\ncost  ")] for text in (output, found)]
        assert tables[0] == tables[1]


def test_nothing_is_missing_in_a_finished_comparison(compared):
    compared()
    found = verb("verify", "run")
    assert "missing" not in found.output
    assert found.exit_code == 0, found.output
