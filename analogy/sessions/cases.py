"""The cases of a run, for pytest and for ``analogy run``: the images each needs, its decision."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from analogy.core.records import Cell
from analogy.grid_metrics import Per
from analogy.sessions import findings
from analogy.sessions.findings import Finding
from analogy.sessions.session import Session
from analogy.store.grid import Job


@dataclass(frozen=True, slots=True)
class Case:
    """One question about a run: the images that it needs, and the function that answers it."""

    jobs: Sequence[Job]
    decide: Callable[[], Finding]


def all_cases(session: Session) -> Iterator[Case]:
    """Every case of the session, in the order of ``pytest benchmarks``, so that batches are equal.

    Cases are made lazily.
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
    return Case(session.study.cell_jobs(*cell), lambda: findings.of_cell(session, cell))


def overall(session: Session) -> Case:
    """Steering succeeds over all categories and alphas together."""
    return Case(session.study.jobs(), lambda: findings.of_overall(session))


def quality(session: Session, cell: Cell) -> Case:
    """The metrics of single images are within the user's limits in this cell."""

    def decide() -> Finding:
        found = session.study.quality.cell(cell, lpips=session.lpips)
        return findings.of_quality(session, str(cell), found, Per.IMAGE)

    return Case(session.study.cell_jobs(*cell), decide)


def distribution(session: Session, alpha: float) -> Case:
    """The distances of all images at this alpha from the references are within the limits."""

    def decide() -> Finding:
        found = session.study.quality.alpha(alpha, references=session.references)
        return findings.of_quality(session, f"alpha {alpha:g}", found, Per.SET)

    return Case(session.study.jobs(alpha=alpha), decide)


def regression(session: Session, cell: Cell | None) -> Case:
    """The cell, or all cells together (None), is not worse than in the baseline."""
    jobs = session.study.jobs() if cell is None else session.study.cell_jobs(*cell)
    return Case(jobs, lambda: findings.of_regression(session, cell))
