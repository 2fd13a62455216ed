"""A run of several steering methods in one run folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from analogy.generation.engine import Progress, no_progress
from analogy.settings.request import RunRequest
from analogy.steering.base import default_alphas
from analogy.store.grid import Job, once
from analogy.studies import sequential_methods
from analogy.studies.cost import method_cost
from analogy.studies.method_comparison import (
    MethodComparison,
    blind_categories,
    compare_methods,
)
from analogy.studies.sequential_methods import MethodsPlan
from analogy.studies.study import Study


def open_methods(
    request: RunRequest, names: Sequence[str], *, own_alphas: bool = False
) -> list[Study]:
    """A study for each of the methods, from one request, all in the same open run folder.

    ``names``: two or more, as :func:`~analogy.settings.options.parse_methods` reads them; they
    replace the request's method. ``own_alphas``: whether each method uses its own default strengths
    in place of the request's. Raises what :meth:`Study.open` does.
    """
    alphas = {name: default_alphas(name) if own_alphas else request.alphas for name in names}
    first = Study.open(replace(request, method=names[0], alphas=alphas[names[0]]), methods=names)
    try:
        studies = [first, *(first.by(name, alphas[name]) for name in names[1:])]
        for study in studies:
            study.record(request.lora, is_comparison=True)
    except BaseException:
        first.folder.close()
        raise
    return studies


def all_jobs(studies: Sequence[Study]) -> list[Job]:
    """The jobs of all the methods. Unsteered images belong to no method and occur once.

    Unsteered images come first: every later batch then has images of one method only, and its time
    is that method's cost. In a sequential run only the jobs that are due by now.
    """
    if studies[0].config.sequential:
        return MethodsPlan(studies).due()
    jobs = once(job for study in studies for job in study.jobs())
    return sorted(jobs, key=lambda job: not job.is_unsteered)


def run_methods(studies: Sequence[Study], progress: Progress = no_progress) -> MethodComparison:
    """Generate and score the missing images of all methods, and compare them.

    The first study does all the work, so the models are loaded once. In a sequential run, images
    are made until the comparison of every two methods has stopped.
    """
    first = studies[0]
    blind = blind_categories(first)
    if first.config.sequential:
        plan = MethodsPlan(studies)
        while left := first.left(plan.due()):
            first.generate(left, progress)
            first.score(left)
        found = sequential_methods.compare(plan, blind)
    else:
        jobs = all_jobs(studies)
        first.generate(jobs, progress)
        first.score(jobs)
        tables = {study.config.method: study.table() for study in studies}
        found = compare_methods(tables, first.judged, blind=blind)
    costs = {study.config.method: method_cost(first.folder, study.config) for study in studies}
    return replace(found, costs={name: cost for name, cost in costs.items() if cost is not None})
