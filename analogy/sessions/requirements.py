"""What a run needs, checked before it begins: files, packages, and what its bars are set on.

Nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from analogy.errors import ModelError, OptionError, StoreError
from analogy.files import PlaceError, check_output, is_device
from analogy.grid_metrics import Input, chosen_metrics
from analogy.kept import prepare
from analogy.models.places import EMBEDDED, shipped
from analogy.pairs import PairsError, PairsWarning, load_pairs, select
from analogy.records import Limit, Pair
from analogy.request import RunRequest
from analogy.results.model import RESULTS_NAME

if TYPE_CHECKING:
    from analogy.study import Study

BASELINE = "baseline"
"""What a case measures that compares a cell with the baseline; of others, their metrics' names."""


def chosen_pairs(request: RunRequest) -> list[Pair]:
    """The pairs of a run's cases, without warnings of what is doubtful.

    The study reads them again and then warns: a warning while tests are collected may be an error.

    Raises ``OptionError`` if the file or the choice cannot be used.
    """
    option = "--pairs"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PairsWarning)
            pairs = load_pairs(request.pairs or shipped("pairs.csv"))
        option = "--categories"
        return select(pairs, request.categories, request.limit)
    except PairsError as error:
        raise OptionError(f"{option}: {error}") from None


def results_path(request: RunRequest) -> Path:
    """The file that was named with ``--results``, or the default one."""
    return Path(request.results or RESULTS_NAME)


def check_files(request: RunRequest) -> None:
    """Raise ``OptionError`` if a file of the run cannot be written or read, or a package that
    writes one is missing.
    """
    _check_place("--results", str(results_path(request)))
    if request.report is not None:
        _check_place("--report", request.report)
        _check_packages()
    _check_no_file_twice(request)
    _check_quality(request)


def check_run_folder(study: Study) -> None:
    """Raise ``StoreError`` if the run folder has no place for results."""
    try:
        prepare(study.folder.path)
    except OSError as error:
        raise StoreError(
            f"run folder {study.folder.path}: expected a place for its results ({error}); choose "
            "another with --run-dir"
        ) from error


def check_gates(study: Study, request: RunRequest) -> None:
    """Raise ``OptionError`` if a bar was set on what this run cannot measure."""
    from analogy.metrics import Lpips
    from analogy.statistics.values import MIN_DECISIVE

    limits: dict[str, Limit] = {limit.metric: limit for limit in request.limits}
    limited = [metric for metric in study.quality.metrics if metric.name in limits]
    size = study.config.size
    for metric in limited:
        least = metric.smallest_side
        if size < least:
            raise OptionError(
                place=f"--limits {limits[metric.name]}",
                expected=f"images of {least} pixels a side or more, which {metric.name} needs",
                got=str(size),
            )
    for metric in limited:
        if Input.LPIPS in metric.inputs:
            try:
                Lpips("alex", weights=request.lpips_weights)
            except ModelError as error:
                raise OptionError(
                    f"--limits {limits[metric.name]}: expected LPIPS's network, name its weights "
                    f"with --lpips-weights FILE: {error}"
                ) from None
    of_sets = [limits[metric.name] for metric in limited if Input.REFERENCES in metric.inputs]
    if of_sets:
        missing = no_references(study, request)
        if missing is None and len(study.judged) * len(study.config.seeds) < 2:
            missing = "there is one image at each alpha, and 2 or more have a distance"
        if missing is not None:
            raise OptionError(f"--limits {of_sets[0]}: expected images to compare with: {missing}")
    if request.gates and len(study.judged) < MIN_DECISIVE:
        raise OptionError(
            place=f"--baseline {request.baseline}",
            expected=f"{MIN_DECISIVE} pairs or more, fewer decide nothing",
            got=str(len(study.judged)),
            advice="raise --limit or add pairs",
        )


def bars(request: RunRequest) -> Iterator[tuple[str, frozenset[str]]]:
    """Each bar that the user has set, in the words of its option, and what the cases measure that
    can be held to it: the metric by its name, or all metrics of its kind.

    Raises ``OptionError`` for a metric that cannot be imported.
    """
    if request.limits:
        per = {metric.name: metric.per for metric in chosen_metrics(request.metrics)}
        for limit in request.limits:
            yield f"--limits {limit}", frozenset({limit.metric, per[limit.metric]})
    if request.gates:
        yield f"--baseline {request.baseline}", frozenset({BASELINE})


def no_references(study: Study, request: RunRequest) -> str | None:
    """The reason why there is nothing to compare all images with; None if there is something."""
    if request.reference is not None:
        return None
    if study.config.model != EMBEDDED:
        return "name some with --reference FOLDER"
    from analogy.world import CaptionError
    from analogy.world.drawings import scenes

    try:
        for pair in study.pairs:
            scenes(pair, random.Random(0))
    except CaptionError as error:
        return f"no drawings of these pairs ({error})"
    return None


def _check_place(flag: str, name: str) -> None:
    try:
        check_output(name)
    except PlaceError as error:
        raise OptionError(f"{flag}: {error}") from None


def _check_no_file_twice(request: RunRequest) -> None:
    """Refuse a run that would write one of its files over another."""
    flags: dict[str, str] = {}
    for flag, name in (
        ("--baseline", request.baseline),
        ("--results", str(results_path(request))),
        ("--report", request.report),
    ):
        if not name or (Path(name).exists() and is_device(name)):
            continue
        if (other := flags.setdefault(os.path.realpath(name), flag)) != flag:
            raise OptionError(
                place=flag,
                expected=f"another file than that of {other}, which it would replace",
                got=name,
            )


def _check_packages() -> None:
    """Refuse a report whose packages are not installed."""
    missing = [name for name in ("jinja2", "matplotlib") if find_spec(name) is None]
    if missing:
        raise OptionError(
            place="--report",
            expected="jinja2 and matplotlib",
            got=f"no {' and no '.join(missing)}",
            advice="install them with pip install 'analogy-bench[report]'",
        )


def _check_quality(request: RunRequest) -> None:
    """Refuse a file of the quality metrics that is missing or cannot be used."""
    from analogy.images import ImageError, check_images, image_files

    if request.reference is not None:
        try:
            check_images(image_files(Path(request.reference)))
        except ImageError as error:
            raise OptionError(f"--reference: {error}") from None
    weights = request.lpips_weights
    if weights is not None and not Path(weights).is_file():
        raise OptionError(place="--lpips-weights", expected="a file", got=weights)
