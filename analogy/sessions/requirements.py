"""Checks what a run needs before it begins: files, packages, and the metrics of its limits."""

from __future__ import annotations

import os
import random
from pathlib import Path

from analogy.core.errors import ModelError, OptionError, StoreError
from analogy.core.files import PlaceError, check_output, is_device
from analogy.core.images import ImageError, check_images, image_files
from analogy.core.records import Limit
from analogy.grid_metrics import Input
from analogy.metrics import Lpips
from analogy.models.places import EMBEDDED
from analogy.results.kept import prepare
from analogy.results.model import RESULTS_NAME
from analogy.settings.config_file import keep_settings
from analogy.settings.request import RunRequest
from analogy.statistics.values import MIN_DECISIVE
from analogy.studies.study import Study
from analogy.world import CaptionError
from analogy.world.drawings import scenes
from analogy.writers import Output, check_writer


def results_path(request: RunRequest) -> Path:
    """The file that was named with ``--results``, or the default one."""
    return Path(request.results or RESULTS_NAME)


def outputs(request: RunRequest) -> list[tuple[str, Output]]:
    """The output files named by options, each with its option, in the order of writing."""
    results, report = request.results, request.report
    return [
        *([] if results is None else [("--results", Output(results, "json"))]),
        *([] if report is None else [("--report", Output(report, "html"))]),
        *(("--write", output) for output in request.write),
    ]


def check_files(request: RunRequest) -> None:
    """Raises ``OptionError`` if a file of the run cannot be written or read, or if a package that
    writes one is missing.
    """
    _check_place("--results", str(results_path(request)))
    for flag, output in outputs(request):
        _check_place(flag, output.path)
        check_writer(flag, output.writer)
    _check_no_file_twice(request)
    _check_quality(request)


def prepare_run_folder(study: Study, request: RunRequest) -> None:
    """Keep the settings in the run folder, and make a place for its results.

    Raises ``StoreError`` if they cannot be written there.
    """
    try:
        prepare(study.folder.path)
        keep_settings(study.folder.path, request, study.config)
    except OSError as error:
        raise StoreError(
            f"run folder {study.folder.path}: expected a place for its results ({error}); choose "
            "another with --run-dir"
        ) from error


def check_gates(study: Study, request: RunRequest) -> None:
    """Raises ``OptionError`` if this run cannot measure what a limit or a baseline needs."""
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


def no_references(study: Study, request: RunRequest) -> str | None:
    """The reason why there are no reference images; None if there are some."""
    if request.reference is not None:
        return None
    if study.config.model != EMBEDDED:
        return "name some with --reference FOLDER"
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
    """Raises ``OptionError`` if two files of the run have the same path."""
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


def _check_quality(request: RunRequest) -> None:
    """Raises ``OptionError`` if reference images or LPIPS weights are missing or invalid."""
    if request.reference is not None:
        try:
            check_images(image_files(Path(request.reference)))
        except ImageError as error:
            raise OptionError(f"--reference: {error}") from None
    weights = request.lpips_weights
    if weights is not None and not Path(weights).is_file():
        raise OptionError(place="--lpips-weights", expected="a file", got=weights)
