"""The cases of a run, for pytest and ``analogy run``: needed images and decisions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from analogy.core.records import Cell
from analogy.grid_metrics import Per
from analogy.sessions import findings, gate
from analogy.sessions.findings import Finding
from analogy.sessions.session import Session
from analogy.store.grid import Job, once


@dataclass(frozen=True, slots=True)
class Case:
    """One check of a run: the images that it needs, and the function that decides it.

    ``rounds``: yields the images to generate and score, round by round. There is one round, except
    in a sequential run, where a round's scores decide whether another one follows.
    """

    rounds: Callable[[], Iterator[Sequence[Job]]]
    decide: Callable[[], Finding]


def all_cases(session: Session) -> Iterator[Case]:
    """Every case of the session, in the order of ``pytest benchmarks``, so that both make the same
    batches.
    """
    for cell in cells(session):
        yield margin(session, cell)
    yield overall(session)
    for cell in cells(session):
        yield quality(session, cell)
    for alpha in (0.0, *session.study.config.alphas):
        yield distribution(session, alpha)
    if session.baseline is not None:
        for cell_or_whole in (*cells(session), None):
            yield regression(session, cell_or_whole)


def cells(session: Session) -> list[Cell]:
    """Every category at every alpha."""
    study = session.study
    return [Cell(category, a) for category in study.categories for a in study.config.alphas]


def margin(session: Session, cell: Cell) -> Case:
    """Steering succeeds in this category at this alpha."""
    return Case(_of_cell(session, cell), lambda: findings.of_cell(session, cell))


def overall(session: Session) -> Case:
    """Steering succeeds over all categories and alphas together."""
    return Case(_rounds(session, session.study.jobs), lambda: findings.of_overall(session))


def quality(session: Session, cell: Cell) -> Case:
    """The metrics of single images are within the user's limits in this cell."""

    def decide() -> Finding:
        found = session.study.quality.cell(cell, lpips=session.lpips)
        return findings.of_quality(session, str(cell), found, Per.IMAGE)

    return Case(_of_cell(session, cell), decide)


def distribution(session: Session, alpha: float) -> Case:
    """The distances of all images at this alpha from the references are within the limits."""

    def decide() -> Finding:
        found = session.study.quality.alpha(alpha, references=session.references)
        return findings.of_quality(session, f"alpha {alpha:g}", found, Per.SET)

    study = session.study
    # In a sequential run the pairs and seeds that all cells have depend on every cell.
    jobs = study.jobs if study.config.sequential else partial(study.jobs, alpha=alpha)
    return Case(_rounds(session, jobs), decide)


def regression(session: Session, cell: Cell | None) -> Case:
    """The cell, or all cells together (None), is not worse than in the baseline."""
    study = session.study
    jobs: Callable[[], Sequence[Job]]
    if cell is None:
        jobs = study.jobs
    elif study.config.sequential and session.baseline is not None:
        jobs = partial(gate.jobs, session, session.baseline, cell)
    else:
        jobs = partial(study.cell_jobs, *cell)
    return Case(_rounds(session, jobs), lambda: findings.of_regression(session, cell))


def _of_cell(session: Session, cell: Cell) -> Callable[[], Iterator[Sequence[Job]]]:
    return _rounds(session, partial(session.study.cell_jobs, *cell))


def _rounds(
    session: Session, jobs: Callable[[], Sequence[Job]]
) -> Callable[[], Iterator[Sequence[Job]]]:
    """The rounds of a case. ``jobs`` returns the jobs that it needs by now.

    A round of a sequential run also has the images that all planned cells need next, so that
    batches are full.
    """
    study = session.study

    def one() -> Iterator[Sequence[Job]]:
        yield jobs()

    def several() -> Iterator[Sequence[Job]]:
        while study.left(jobs()):
            yield study.left(once([*jobs(), *study.plan.due(session.planned)]))

    return several if study.config.sequential else one
