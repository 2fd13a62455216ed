"""The looks of a sequential study: which images are due, and which figures they give.

Scores are planted; no image is made.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from itertools import chain
from statistics import NormalDist

import numpy as np
import pytest
from looks import pairs_of, write_pairs

from analogy.core.records import UNSTEERED, Cell, Verdict
from analogy.results.reading import from_json
from analogy.results.writing import to_json
from analogy.statistics.bootstrap import bootstrap_ci
from analogy.store.grid import Role
from analogy.studies.sequential import chosen_pairs

COLOR = pairs_of("color")
BOTH = pairs_of("color", "object")
SEEDS = (7, 3, 5)
ALPHAS = (0.5, 1.0, 2.0)

STRAIGHT, LATER, NEVER, DOWN = "straight", "later", "never", "down"


def spread(n):
    """n normal quantiles in a fixed order without a trend: mean 0, standard deviation 1."""
    made = np.array([NormalDist().inv_cdf((i + 0.5) / n) for i in range(n)])
    made = np.random.default_rng(n).permutation(made)
    return (made - made.mean()) / made.std(ddof=1)


NOISE = {
    STRAIGHT: 0.3 + 0.05 * np.resize(spread(16), 20),
    DOWN: -0.3 - 0.05 * np.resize(spread(16), 20),
    # t is 3.6 with the first 16 pairs, whose p is .0013, and 4.5 with all 20, whose p is .0001: the
    # levels of the two looks are .0007 and .0013.
    LATER: np.concatenate([0.1 * (3.6 / 4 + spread(16)), np.full(4, 0.1 * 3.6 / 4)]),
    NEVER: 0.05 * spread(20),
}


def planted(study, kinds):
    """Margins by job: ``kinds`` says how each alpha's run along the recorded order."""
    places = {pair.id: i for pairs in study.plan.pairs.values() for i, pair in enumerate(pairs)}

    def margin(job):
        kind = kinds[job.alpha] if job.alpha in kinds else kinds[job.pair.category, job.alpha]
        seed = study.config.seeds.index(job.seed)
        return NOISE[kind][places[job.pair.id]] + 0.002 * seed

    return margin


@pytest.fixture
def make(make_study):
    """A sequential study of 20 pairs and 3 seeds."""

    def build(**changed):
        settings = {"pairs": COLOR, "sequential": True, "seeds": SEEDS, "alphas": ALPHAS}
        return make_study(**{**settings, **changed})

    return build


def work(study, fill, margin, cells=None):
    """Score what is due, round by round, until nothing is; returns the rounds."""
    rounds, known = [], set()
    while left := [
        job for job in study.plan.due(cells or study.plan.cells) if job.key not in known
    ]:
        fill(study, margin, left)
        known |= {job.key for job in left}
        rounds.append(left)
    return rounds


def counts(study, jobs):
    """Images by alpha."""
    return {alpha: sum(job.alpha == alpha for job in jobs) for alpha in study.config.grid_alphas}


# --- which images are due


def test_the_first_round_is_the_first_16_pairs_of_the_order_with_the_first_seed(make):
    study = make()
    due = study.plan.due(study.plan.cells)
    ids = [pair.id for pair in study.plan.pairs["color"][:16]]
    assert {job.pair.id for job in due} == {*ids}
    assert {job.seed for job in due} == {7}
    assert counts(study, due) == {0.0: 16, 0.5: 16, 1.0: 16, 2.0: 16}
    keys = [job.key for job in study.grid.jobs()]
    assert [job.key for job in due] == [key for key in keys if key in {j.key for j in due}]


def test_images_of_each_cell_are_those_of_its_looks(make, fill):
    study = make()
    kinds = {UNSTEERED: DOWN, 0.5: NEVER, 1.0: LATER, 2.0: STRAIGHT}
    rounds = work(study, fill, planted(study, kinds))
    # Looks at 16 and 20 pairs with one seed, then at 20 with three. The gains, 0.2 and more, are
    # decided at the first look.
    assert [counts(study, jobs) for jobs in rounds] == [
        {0.0: 16, 0.5: 16, 1.0: 16, 2.0: 16},
        {0.0: 0, 0.5: 4, 1.0: 4, 2.0: 0},
        {0.0: 0, 0.5: 40, 1.0: 0, 2.0: 0},
    ]
    found = study.analysis().cells
    assert {cell.alpha: (of.margin.verdict, of.stop.look) for cell, of in found.items()} == {
        0.5: (Verdict.INCONCLUSIVE, 3), 1.0: (Verdict.SUCCESS, 2), 2.0: (Verdict.SUCCESS, 1),
    }  # fmt: skip
    assert {of.gain_stop.look for of in found.values()} == {1}
    made = counts(study, study.jobs())
    assert made == {0.0: 16, 0.5: 60, 1.0: 20, 2.0: 16}
    saved = study.saved()
    assert (saved.images, saved.of) == (112, 4 * 60)


def test_unsteered_images_go_on_with_a_gain_that_is_open(make, fill):
    study = make(alphas=(0.5, 2.0))
    kinds = {UNSTEERED: NEVER, 0.5: NEVER, 2.0: STRAIGHT}
    rounds = work(study, fill, planted(study, kinds))
    assert [counts(study, jobs) for jobs in rounds] == [
        {0.0: 16, 0.5: 16, 2.0: 16}, {0.0: 4, 0.5: 4, 2.0: 0}, {0.0: 40, 0.5: 40, 2.0: 0},
    ]  # fmt: skip


def test_a_cell_that_stopped_takes_no_further_look_for_its_gain(make, fill):
    """Unsteered margins as the cell's own: the gain of the cell of alpha 2 is 0 and undecided."""
    study = make(alphas=(2.0,))
    rounds = work(study, fill, planted(study, {UNSTEERED: STRAIGHT, 2.0: STRAIGHT}))
    assert [counts(study, jobs) for jobs in rounds] == [{0.0: 16, 2.0: 16}]
    [cell] = study.analysis().cells.values()
    assert (cell.stop.look, cell.gain_stop.look) == (1, 1)
    assert (cell.margin.verdict, cell.gain.verdict) == (Verdict.SUCCESS, Verdict.INCONCLUSIVE)


def test_full_unsteered_makes_the_unsteered_images_of_every_look_of_a_cell(make, fill):
    study = make(full_unsteered=True)
    kinds = {UNSTEERED: DOWN, 0.5: NEVER, 1.0: LATER, 2.0: STRAIGHT}
    rounds = work(study, fill, planted(study, kinds))
    assert counts(study, [*chain(*rounds)]) == {0.0: 60, 0.5: 60, 1.0: 20, 2.0: 16}


def test_null_and_target_images_are_due_along_with_what_they_are_compared_with(make, fill):
    study = make(alphas=(0.5, 2.0), control=True, target=True)
    margin = planted(study, {UNSTEERED: DOWN, 0.5: NEVER, 2.0: STRAIGHT, 1.0: STRAIGHT})
    work(study, fill, margin)
    due = {job.key for job in study.jobs()}
    of = {
        (role, alpha): sum(job.key in due for job in study.grid.jobs(role, alpha=alpha))
        for role, alpha in [
            (Role.UNSTEERED, 0.0), (Role.STEERED, 0.5), (Role.STEERED, 2.0), (Role.NULL, 0.5),
            (Role.NULL, 2.0), (Role.TARGET, None),
        ]
    }  # fmt: skip
    assert [*of.values()] == [16, 60, 16, 60, 16, 16]
    found = study.analysis()
    assert found.targets["color"].margin.n == 16
    assert [each.null.margin.n for each in found.cells.values()] == [20, 16]


def test_futility_stops_what_would_hardly_be_decided(make, fill):
    kinds = {UNSTEERED: DOWN, 0.5: NEVER, 1.0: LATER, 2.0: STRAIGHT}
    study = make(futility=True)
    rounds = work(study, fill, planted(study, kinds))
    assert counts(study, [*chain(*rounds)])[0.5] < 60
    found = study.cell("color", 0.5)
    assert (found.margin.verdict, found.stop.is_early) == (Verdict.INCONCLUSIVE, True)
    assert found.stop.p_seq == 1.0


def test_the_looks_do_not_depend_on_the_cells_that_are_asked_for(make, fill):
    """Of one cell the same images as in the whole, and the unsteered ones of its own gain."""
    kinds = {
        ("color", 0.5): NEVER, ("color", 2.0): STRAIGHT, ("object", 0.5): LATER,
        ("object", 2.0): NEVER, UNSTEERED: DOWN,
    }  # fmt: skip
    whole = make(pairs=BOTH, alphas=(0.5, 2.0))
    margin = planted(whole, kinds)
    work(whole, fill, margin)
    for cell in whole.plan.cells:
        alone = make(pairs=BOTH, alphas=(0.5, 2.0))
        rounds = work(alone, fill, margin, [cell])
        assert {job.pair.category for job in chain(*rounds)} == {cell.category}
        found, expected = alone.cell(*cell), whole.cell(*cell)
        assert found.stop.to_dict() == expected.stop.to_dict()
        assert found.margin == expected.margin
        assert found.gain == expected.gain
        assert found.items == expected.items


# --- decisions are of the look's block


def test_scores_beyond_a_look_change_nothing(make, fill):
    kinds = {UNSTEERED: DOWN, 0.5: NEVER, 1.0: LATER, 2.0: STRAIGHT}
    study = make()
    margin = planted(study, kinds)
    work(study, fill, margin)
    mine = to_json(study.results())
    due = {job.key for job in study.jobs()}
    rest = [job for job in study.grid.jobs() if job.key not in due]
    assert len(rest) == 4 * 60 - 112
    fill(study, lambda job: -1.0, rest)  # every one of which would turn a verdict
    again = to_json(study.results())
    for name in ("cells", "controls", "alphas", "categories", "overall", "sequential"):
        assert again[name] == mine[name]


def test_nothing_is_decided_before_a_look_is_whole(make, fill):
    """15 of 16 pairs are not looked at, however clear; nor are 17 instead of 16."""
    study = make(alphas=(2.0,))
    margin = planted(study, {UNSTEERED: DOWN, 2.0: STRAIGHT})
    order = [pair.id for pair in study.plan.pairs["color"]]
    jobs = [job for job in study.grid.jobs() if job.seed == 7]
    without = [job for job in jobs if job.pair.id != order[4]]
    fill(study, margin, without)
    cell = study.cell("color", 2.0)
    assert (cell.margin.verdict, cell.margin.n, cell.margin.n_items) == ("incomplete", 16, 15)
    assert cell.stop is None
    assert study.overall().margin.verdict is Verdict.INCOMPLETE
    fill(study, margin, [job for job in jobs if job.pair.id == order[4]])
    cell = study.cell("color", 2.0)
    assert (cell.stop.pairs, cell.stop.seeds, cell.margin.n) == (16, 1, 16)
    assert {*cell.items} == {*order[:16]}


def test_figures_are_of_the_looks_margins_with_its_interval(make, fill):
    study = make()
    kinds = {UNSTEERED: DOWN, 0.5: NEVER, 1.0: LATER, 2.0: STRAIGHT}
    work(study, fill, planted(study, kinds))
    found = study.analysis()
    for alpha, kind, items, level in [
        (0.5, NEVER, NOISE[NEVER] + 0.002, 0.023),
        (1.0, LATER, NOISE[LATER], 0.0013),
        (2.0, STRAIGHT, NOISE[STRAIGHT][:16], 0.0007),
    ]:
        cell = found.cells["color", alpha]
        assert cell.margin.mean == pytest.approx(items.mean()), kind
        assert cell.stop.level == pytest.approx(level)
        low, high = bootstrap_ci(
            items, confidence=1 - 2 * level, n_resamples=max(10_000, int(np.ceil(10 / level)))
        )
        assert (cell.margin.ci_low, cell.margin.ci_high) == pytest.approx((low, high), abs=2e-4)
        naive = bootstrap_ci(items)
        assert cell.margin.ci_low < naive[0]
        assert cell.margin.ci_high > naive[1]
        assert cell.margin.n_needed is None
        gains = items[:16] - NOISE[DOWN][:16] - (0.002 if alpha == 0.5 else 0)
        assert cell.gain.mean == pytest.approx(gains.mean())
    # All together on what all cells have: 16 pairs and the first seed.
    first = np.mean([NOISE[kind][:16] for kind in (NEVER, LATER, STRAIGHT)])
    assert found.overall.margin.mean == pytest.approx(first)
    assert (found.overall.stop.pairs, found.overall.stop.seeds, found.overall.margin.n) == (
        16,
        1,
        16,
    )


def test_the_sequential_p_holds_the_levels_of_the_looks_before(make, fill):
    study = make()
    kinds = {UNSTEERED: DOWN, 0.5: NEVER, 1.0: LATER, 2.0: STRAIGHT}
    work(study, fill, planted(study, kinds))
    cells = study.analysis().cells
    larger = {cell.alpha: max(of.margin.p, of.margin.p_bootstrap) for cell, of in cells.items()}
    p_seq = {cell.alpha: of.stop.p_seq for cell, of in cells.items()}
    assert p_seq[2.0] == pytest.approx(larger[2.0])
    assert p_seq[1.0] == pytest.approx(0.0007 + larger[1.0])
    assert p_seq[0.5] == pytest.approx(0.0007 + 0.0013 + larger[0.5])
    # Holm's of three cells.
    assert cells["color", 2.0].p_holm == pytest.approx(3 * p_seq[2.0])
    assert cells["color", 1.0].p_holm == pytest.approx(2 * p_seq[1.0])


def test_the_sign_of_all_margins_exchanges_success_and_failure(make, fill):
    study, other = make(), make()
    kinds = {UNSTEERED: NEVER, 0.5: NEVER, 1.0: LATER, 2.0: STRAIGHT}
    margin = planted(study, kinds)
    work(study, fill, margin)
    work(other, fill, lambda job: -margin(job))
    turned = {"success": "failure", "failure": "success", "inconclusive": "inconclusive"}
    for cell, of in study.analysis().cells.items():
        down = other.cell(*cell)
        assert down.margin.verdict == turned[of.margin.verdict]
        assert down.stop.look == of.stop.look
        assert down.margin.mean == pytest.approx(-of.margin.mean)


def test_a_category_of_equal_margins_stops_at_the_first_look(make, fill):
    study = make(alphas=(0.5, 2.0))
    rounds = work(study, fill, lambda job: 0.1 * job.alpha)
    assert len(rounds) == 1
    assert [of.margin.verdict for of in study.analysis().cells.values()] == ["success"] * 2


# --- the order


def test_the_order_is_by_a_digest_of_seed_and_prompts(make):
    study = make(order_seed=4)

    def known_by(pair):
        text = "\0".join(["4", pair.source_prompt, pair.target_prompt])
        return hashlib.sha256(text.encode()).hexdigest()

    assert [*study.plan.pairs["color"]] == sorted(COLOR, key=known_by)


def test_another_seed_gives_another_order_with_another_digest(make):
    first, same, other = make(), make(pairs=COLOR[::-1]), make(order_seed=1)
    assert first.plan.pairs == same.plan.pairs
    assert first.plan.pairs != other.plan.pairs
    assert first.results().saved.order == same.results().saved.order
    assert first.results().saved.order["color"] != other.results().saved.order["color"]
    assert (first.results().saved.order_seed, other.results().saved.order_seed) == (0, 1)
    assert len(first.results().saved.order["color"]) == 64


def test_a_limit_takes_the_first_of_the_random_order(config, tmp_path):
    file = write_pairs(tmp_path / "pairs.csv", BOTH)
    settings = replace(config, pairs=file, sequential=True, limit=7, order_seed=2)
    chosen = chosen_pairs(settings)
    every = chosen_pairs(replace(settings, limit=None))
    assert every == BOTH
    for category in ("color", "object"):
        mine = [pair for pair in every if pair.category == category]
        by_digest = sorted(mine, key=lambda pair: hashlib.sha256(
            "\0".join(["2", pair.source_prompt, pair.target_prompt]).encode()
        ).hexdigest())  # fmt: skip
        assert {p.id for p in chosen if p.category == category} == {p.id for p in by_digest[:7]}
    assert chosen == [pair for pair in BOTH if pair in chosen]
    assert chosen != chosen_pairs(replace(settings, order_seed=3))
    in_the_files_order = chosen_pairs(replace(settings, sequential=False, order_seed=0))
    assert in_the_files_order == [*BOTH[:7], *BOTH[20:27]]


# --- results


def test_results_are_the_same_after_reading_what_was_written(make, fill):
    study = make(pairs=BOTH, alphas=(0.5, 2.0), control=True, target=True)
    kinds = {
        ("color", 0.5): NEVER, ("color", 2.0): STRAIGHT, ("object", 0.5): LATER,
        ("object", 2.0): NEVER, UNSTEERED: DOWN, 1.0: STRAIGHT,
    }  # fmt: skip
    work(study, fill, planted(study, kinds))
    made = study.results()
    written = to_json(made)
    read = from_json(written)
    assert to_json(read) == written
    assert read.saved == made.saved
    for cell, of in made.analysis.cells.items():
        assert read.analysis.cells[cell].seeds == of.seeds
        assert read.analysis.cells[cell].stop.to_dict() == of.stop.to_dict()
        assert read.analysis.cells[cell].gain_stop.to_dict() == of.gain_stop.to_dict()
    assert {len(row) for row in read.analysis.cells["color", 0.5].seeds.values()} == {3}
    assert {len(row) for row in read.analysis.cells["color", 2.0].seeds.values()} == {1}


def test_results_of_a_run_that_is_not_sequential_say_nothing_of_looks(make, fill):
    study = make(sequential=False)
    fill(study, lambda job: 0.1 + 0.01 * (sum(job.pair.id.encode()) % 7))
    written = to_json(study.results())
    assert "sequential" not in written
    assert not any("stop" in cell for cell in written["cells"])


def test_the_share_of_the_variance_between_pairs_is_of_the_last_looks(make, fill):
    study = make(alphas=(0.5, 2.0))
    work(study, fill, planted(study, {UNSTEERED: DOWN, 0.5: NEVER, 2.0: STRAIGHT}))
    by_hand = 0.05**2 / (0.05**2 + 0.0)  # seeds shift all pairs alike and by little
    assert study.cell("color", 0.5).stop.icc == pytest.approx(by_hand, abs=0.01)
    assert np.isnan(study.cell("color", 2.0).stop.icc)


@pytest.mark.parametrize(("n", "looks"), [
    (5, [(5, 3)]), (12, [(12, 1), (12, 3)]), (50, [(16, 1), (30, 1), (50, 1), (50, 3)]),
])  # fmt: skip
def test_the_looks_follow_the_number_of_pairs(make, n, looks):
    study = make(pairs=pairs_of("color", n=n))
    assert [(look.pairs, look.seeds) for look in study.plan.designs["color"].looks] == looks


def test_one_seed_has_its_last_look_at_all_pairs(make):
    study = make(seeds=(0,))
    assert [(look.pairs, look.seeds) for look in study.plan.designs["color"].looks] == [
        (16, 1), (20, 1),
    ]  # fmt: skip


def test_early_levels_are_shared_by_the_cells_of_the_grid(make):
    study = make(
        pairs=pairs_of("color", "object", "size"), alphas=tuple(a / 4 for a in range(1, 17))
    )
    early = [look.level for look in study.plan.designs["color"].looks[:-1]]
    assert sum(early) == pytest.approx(0.05 / 48)
    assert Cell("size", 4.0) in study.plan.cells
