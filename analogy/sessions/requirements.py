"""What a run needs, checked before it begins: files, packages, and what its limits measure.

Slow imports are made only where they are needed.
"""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from analogy.core.errors import AnalogyError, ModelError, OptionError, StoreError
from analogy.core.files import PlaceError, check_output, is_device
from analogy.core.records import Limit, Pair
from analogy.grid_metrics import Input, chosen_metrics
from analogy.models.places import EMBEDDED, shipped
from analogy.results.kept import prepare
from analogy.results.model import RESULTS_NAME
from analogy.settings.pairs import PairsError, PairsWarning, load_pairs, select
from analogy.settings.request import RunRequest
from analogy.writers import WRITERS, NeedsPackages, Output

if TYPE_CHECKING:
    from analogy.studies.study import Study

BASELINE = "baseline"
"""What a case of the regression gate measures; other cases measure metrics, by their names."""


def chosen_pairs(request: RunRequest) -> list[Pair]:
    """The pairs of a run's cases, without warnings.

    The study reads them again and then warns: a warning while tests are collected may be an error.

    Raises ``OptionError`` if the file or the selection cannot be used.
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


def outputs(request: RunRequest) -> list[tuple[str, Output]]:
    """The files that options name, each with its option, in the order in which they are written."""
    results, report = request.results, request.report
    return [
        *([] if results is None else [("--results", Output(results, "json"))]),
        *([] if report is None else [("--report", Output(report, "html"))]),
        *(("--write", output) for output in request.write),
    ]


def check_files(request: RunRequest) -> None:
    """Raise ``OptionError`` if a file of the run cannot be written or read, or a package that
    writes one is missing.
    """
    _check_place("--results", str(results_path(request)))
    for flag, output in outputs(request):
        _check_place(flag, output.path)
        check_writer(flag, output.writer)
    _check_no_file_twice(request)
    _check_quality(request)


def check_run_folder(study: Study) -> None:
    """Raise ``StoreError`` if results cannot be written into the run folder."""
    try:
        prepare(study.folder.path)
    except OSError as error:
        raise StoreError(
            f"run folder {study.folder.path}: expected a place for its results ({error}); choose "
            "another with --run-dir"
        ) from error


def check_gates(study: Study, request: RunRequest) -> None:
    """Raise ``OptionError`` if a limit or a baseline needs what this run cannot measure."""
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
    """Each limit and baseline that the user gave: its option, and what a case that checks it
    measures: the metric by its name, or all metrics of its kind.

    Raises ``OptionError`` for a metric that cannot be imported.
    """
    if request.limits:
        per = {metric.name: metric.per for metric in chosen_metrics(request.metrics)}
        for limit in request.limits:
            yield f"--limits {limit}", frozenset({limit.metric, per[limit.metric]})
    if request.gates:
        yield f"--baseline {request.baseline}", frozenset({BASELINE})


def no_references(study: Study, request: RunRequest) -> str | None:
    """The reason why there are no reference images; None if there are some."""
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
    named = [(flag, output.path) for flag, output in outputs(request)]
    if request.results is None:
        named.insert(0, ("--results", str(results_path(request))))
    if request.baseline is not None:
        named.insert(0, ("--baseline", request.baseline))
    flags: dict[str, str] = {}
    for flag, name in named:
        if Path(name).exists() and is_device(name):
            continue
        place = os.path.realpath(name)
        if place in flags:
            raise OptionError(
                place=flag,
                expected=f"another file than that of {flags[place]}, which it would replace",
                got=name,
            )
        flags[place] = flag


def check_writer(flag: str, name: str) -> None:
    """Raise ``OptionError`` if a writer cannot be imported, or its packages are not installed."""
    try:
        writer = WRITERS.get(name)
    except AnalogyError as error:
        raise OptionError(f"{flag}: {error}") from None
    if not isinstance(writer, NeedsPackages):
        return
    missing = [package for package in writer.packages if find_spec(package) is None]
    if missing:
        raise OptionError(
            place=flag,
            expected=" and ".join(writer.packages),
            got=f"no {' and no '.join(missing)}",
            advice=f"install them with {writer.install}",
        )


def _check_quality(request: RunRequest) -> None:
    """Refuse reference images or weights that are missing or cannot be used."""
    from analogy.core.images import ImageError, check_images, image_files

    if request.reference is not None:
        try:
            check_images(image_files(Path(request.reference)))
        except ImageError as error:
            raise OptionError(f"--reference: {error}") from None
    weights = request.lpips_weights
    if weights is not None and not Path(weights).is_file():
        raise OptionError(place="--lpips-weights", expected="a file", got=weights)
