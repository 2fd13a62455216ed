"""How a case ends: the outcome, the reason, and the figures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from analogy.core.records import Cell, Estimate, Verdict
from analogy.core.strict_json import Json
from analogy.grid_metrics import Absent, Per
from analogy.metrics import SetScore
from analogy.report import text
from analogy.report.text_sequential import look
from analogy.results import comparison
from analogy.results.model import Mean, Stop
from analogy.sessions import gate
from analogy.sessions.session import Session
from analogy.settings.request import RunRequest
from analogy.world.known import unknown_note


class CaseOutcome(Enum):
    """How a case ends.

    ``known``: an expected failure, since the baseline has no success there; ``skipped``: the case
    could not be decided; ``inconclusive``: neither a success nor a failure.
    """

    PASSED = "passed"
    FAILED = "failed"
    KNOWN = "known"
    SKIPPED = "skipped"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one case, the reason, and its figures as JUnit's properties."""

    outcome: CaseOutcome
    message: str = ""
    figures: Mapping[str, Json] = field(default_factory=dict)


def of_cell(session: Session, cell: Cell) -> Finding:
    """Whether steering succeeds in this cell, whose images have been scored."""
    study = session.study
    figures, failed = study.cell(*cell), len(study.failures(study.cell_jobs(*cell)))
    known = session.known_verdict(cell)
    if known is not None:
        session.known.add(cell)
    more: dict[str, Json] = {}
    if figures.gain is not None:
        gain = figures.gain.to_dict()
        more = {f"gain_{name}": gain[name] for name in ("mean", "ci_low", "ci_high", "p")}
    if figures.share is not None:
        more["share_of_ceiling"] = figures.share
    found = _of_margin(str(cell), figures.margin, known, failed, more, figures.stop)
    return _ended(session, found, figures.margin, cell.category)


def of_overall(session: Session) -> Finding:
    """Whether steering succeeds over all cells together."""
    study = session.study
    failed = len(study.failures(study.jobs()))
    known = session.known_verdict(None)
    pool = study.overall()
    found = _of_margin("all categories and alphas", pool.margin, known, failed, {}, pool.stop)
    return _ended(session, found, pool.margin, None)


def _ended(session: Session, found: Finding, figures: Estimate, category: str | None) -> Finding:
    """The finding with a note about unknown words. If its figure is inconclusive, it gets the
    outcome that `Session.on_inconclusive` demands. ``category``: None for all.
    """
    words = session.unknown_words(category)
    if words:
        note = unknown_note(words, model=session.study.config.model)
        found = replace(found, message=f"{found.message}; {note}")
    outcomes = {"skip": CaseOutcome.INCONCLUSIVE, "pass": CaseOutcome.PASSED}
    is_open = found.outcome is CaseOutcome.FAILED and figures.verdict is Verdict.INCONCLUSIVE
    if not is_open or session.on_inconclusive not in outcomes:
        return found
    return replace(found, outcome=outcomes[session.on_inconclusive])


def _of_margin(
    what: str,
    figures: Estimate,
    known: str | None,
    failed: int,
    more: Mapping[str, Json],
    stop: Stop | None,
) -> Finding:
    """The finding on the margin of ``what``.

    ``known``: the baseline's verdict if a failure is expected; ``failed``: the number of failed
    images; ``more``: figures beside the margin's; ``stop``: the look, in a sequential run.
    """
    facts = {**more, "failed_images": failed, **figures.to_dict()}
    if stop is not None:
        facts |= {name: value for name, value in stop.to_dict().items() if value is not None}
    if figures.verdict in (Verdict.TOO_FEW, Verdict.INCOMPLETE, Verdict.BLIND):
        why = text.failed_images(failed) if failed else text.figures_line(figures, stop)
        message = f"{figures.verdict}: {what} cannot be decided ({why})"
        return Finding(CaseOutcome.SKIPPED, message, facts)
    message = f"{what}: {figures.verdict}, {text.figures_line(figures, stop)}"
    if stop is not None:
        message += f", {look(stop)}"
    if figures.verdict is Verdict.SUCCESS:
        return Finding(CaseOutcome.PASSED, message, facts)
    if known is not None:
        return Finding(CaseOutcome.KNOWN, f"known {known}; now {message}", facts)
    message += "; success needs the interval above 0"
    message += " and p < 0.05" if stop is None else ""
    return Finding(CaseOutcome.FAILED, message, facts)


def of_quality(
    session: Session,
    what: str,
    found: Mapping[str, Mean | SetScore],
    per: Per,
) -> Finding:
    """Whether the quality metrics of a cell, or of an alpha, are within the user's limits.

    ``found``: the measured figures by metric; ``per``: the kind of metrics that should have been
    measured. A limit on one that was not measured counts as broken.
    """
    metrics = session.study.quality.names(per)
    values = {name: _interval(figures) for name, figures in found.items() if figures.n}
    values = {name: value for name, value in values.items() if not math.isnan(value[0])}
    broken = []
    for limit in session.request.limits:
        if limit.metric in values:
            session.held.add(limit)
            value, low, high = values[limit.metric]
            if limit.is_broken(low, high):
                broken.append(f"{limit.metric} {value:.4g} [{low:.4g}, {high:.4g}], limit {limit}")
        elif limit.metric in metrics:
            broken.append(f"{limit.metric} was not measured, limit {limit}")
    facts: dict[str, Json] = {}
    for name, (value, low, high) in values.items():
        facts[name] = value
        if low < high:
            facts |= {f"{name}_ci_low": low, f"{name}_ci_high": high}
    if broken:
        return Finding(CaseOutcome.FAILED, f"{what}: {'; '.join(broken)}", facts)
    if not values or len(values) < len(found):
        why = _why_missing(session, found) if metrics else f"no metric per {per} is measured"
        return Finding(CaseOutcome.SKIPPED, f"{what}: {why}", facts)
    return Finding(CaseOutcome.PASSED, what, facts)


def _why_missing(session: Session, found: Mapping[str, Mean | SetScore]) -> str:
    """Why metrics of a cell or an alpha are missing."""
    references = session.study.quality.references
    if not found and isinstance(references, Absent):
        return f"nothing to compare with: {references.reason}"
    return "images are missing"


def _interval(figures: Mean | SetScore) -> tuple[float, float, float]:
    """A value with the ends of its interval. Without an interval both ends are the value."""
    if isinstance(figures, SetScore):
        return figures.value, figures.value, figures.value
    if math.isnan(figures.ci_low):
        return figures.mean, figures.mean, figures.mean
    return figures.mean, figures.ci_low, figures.ci_high


def of_regression(session: Session, cell: Cell | None) -> Finding:
    """Whether a cell, or all cells together (None), is not worse than in the baseline.

    Raises ``ValueError`` if the session has no baseline.
    """
    study, old, tolerance = session.study, session.baseline, session.request.tolerance
    if old is None:
        raise ValueError("of_regression: expected a session with a baseline, got none")
    if cell is None:
        change = comparison.compare_overall(old, study.results(), tolerance=tolerance)
    elif study.config.sequential:
        change = gate.state(session, old, cell).change
    else:
        change = comparison.compare_cell(
            old,
            study.cell(*cell),
            tolerance=tolerance,
            comparisons=comparison.n_comparisons(study.header()),
        )
    session.changes[cell] = change
    outcome = CaseOutcome.PASSED
    if not change.is_decided:
        outcome = CaseOutcome.SKIPPED
    elif change.outcome is comparison.Outcome.REGRESSED:
        outcome = CaseOutcome.FAILED
    return Finding(outcome, change.message(), change.to_dict())


def unmeasured(request: RunRequest, session: Session | None) -> Iterator[str]:
    """A line for each limit or baseline that the user gave and no case checked; such a run fails.

    ``session``: None if no case used one.
    """
    held = set() if session is None else session.held
    changes = [] if session is None else list(session.changes.values())
    for limit in request.limits:
        if limit not in held:
            yield f"limit     NOT measured, so no pass: {limit}"
    if not request.gates:
        return
    lacking = sum(change.outcome is comparison.Outcome.INCOMPLETE for change in changes)
    if not any(change.is_decided for change in changes):
        why = f"none of {len(changes)} comparisons decides" if changes else "no case compared"
        yield f"baseline  NOT compared with {request.baseline}, so no pass: {why}"
    elif lacking:
        yield (
            f"baseline  NOT all compared with {request.baseline}, so no pass: of {len(changes)} "
            f"comparisons {lacking} lack images"
        )
