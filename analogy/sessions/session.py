"""A session: one run's study with its request, its baseline and its progress."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from analogy.core.errors import ModelError, OptionError
from analogy.core.images import ImageError
from analogy.core.records import Cell, Limit, Pair
from analogy.grid_metrics import Absent
from analogy.judges.base import FeatureEncoder
from analogy.metrics import Lpips
from analogy.report.numbers import duration
from analogy.results import baseline as baselines
from analogy.results.differences import (
    SAMPLING,
    measurement_differences,
    subject_differences,
)
from analogy.results.reading import read
from analogy.sessions import requirements
from analogy.sessions.forecast import Forecast, notice
from analogy.sessions.progress import bar
from analogy.settings.request import RunRequest
from analogy.store.grid import Job, once
from analogy.studies.quality import References, no_features
from analogy.studies.study import Study
from analogy.world.drawings import drawings
from analogy.world.known import unknown_pairs

if TYPE_CHECKING:
    from analogy.results.comparison import Change
    from analogy.results.kept import Kept
    from analogy.results.model import Results

# Settings in which a run must equal the shipped baseline to be compared with it by default.
_OWN_SUBJECT = ("model", *SAMPLING)


class Session:
    """The state that the cases of one run share.

    - ``study``, ``request``: what is measured, and the user's options;
    - ``baseline``: comparable results of an earlier run, or None; ``note``: which baseline is used,
      or why there is none;
    - ``update``: the baseline file that this run's results will replace, or None;
    - ``is_strict``: whether failures count even in cells that do not succeed in the baseline;
    - ``planned``: the cells of the cases, in their order (a dict as an ordered set);
    - ``known``: the decided cells that do not succeed in the baseline;
    - ``room``: the columns beside pytest's dots for a progress bar, None outside of pytest;
    - ``held``: the limits that some case has checked;
    - ``changes``: the changes from the baseline, by cell or None for all cells together; if a case
      ran again, the latest;
    - ``lost``: why results could not be written, or None;
    - ``kept``: their place in the run folder; ``stays``: why the default results file was not
      replaced. Both are None until results are written.
    """

    def __init__(
        self,
        study: Study,
        request: RunRequest,
        *,
        note: str,
        baseline: Results | None = None,
        update: Path | None = None,
        is_strict: bool = False,
    ) -> None:
        self.study = study
        self.request = request
        self.note = note
        self.baseline = baseline
        self.update = update
        self.is_strict = is_strict
        self.planned: dict[Cell, None] = {}
        self.known: set[Cell] = set()
        self.held: set[Limit] = set()
        self.changes: dict[Cell | None, Change] = {}
        self.lost: str | None = None
        self.kept: Kept | None = None
        self.stays: str | None = None
        self.room: int | None = None
        self._bar: tqdm[Any] | None = None
        self._forecast: Forecast | None = None
        self._is_noticed = False
        self._lpips: Lpips | Absent | None = None
        self._references: References | Absent | None = None

    @classmethod
    def open(
        cls, request: RunRequest, pairs: Sequence[Pair] | None = None, *, is_strict: bool = False
    ) -> Session:
        """The session of a request, with its study and baseline. Loads no model.

        ``pairs``: used in place of the request's file.

        Raises an ``AnalogyError`` for every problem that can be found now and would stop the run
        later.
        """
        requirements.check_files(request)
        study = Study.open(request, pairs)
        try:
            requirements.prepare_run_folder(study, request)
            requirements.check_gates(study, request)
            return _with_baseline(study, request, is_strict=is_strict)
        except BaseException:
            study.close()
            raise

    @property
    def results(self) -> Path:
        """The results file that is written in addition to the one in the run folder."""
        return requirements.results_path(self.request)

    def known_verdict(self, cell: Cell | None) -> str | None:
        """The baseline's verdict on a cell, or on all together (None), if it is not a success.

        Returns None if it is a success, without a baseline, or in a strict run.
        """
        if self.baseline is None or self.is_strict:
            return None
        return baselines.known_not_to_succeed(self.baseline, cell, self.study.categories)

    def prepare(self) -> None:
        """Load what the planned cells still need, and LPIPS's weights if they were named.

        Raises what :meth:`Study.prepare` does.
        """
        jobs = self.jobs()
        self.study.prepare(jobs)
        if not self.study.config.sequential:
            self._forecast = Forecast(self.study, jobs)
        if self.request.lpips_weights is not None:
            self._lpips = self._load_lpips()

    @cached_property
    def unknown(self) -> dict[str, tuple[str, ...]]:
        """Pair id to those of its words that the embedded model, or judge, was not trained on."""
        config = self.study.config
        return unknown_pairs(self.study.pairs, model=config.model, judge=config.clip_model)

    def unknown_words(self, category: str | None = None) -> tuple[str, ...]:
        """The unknown words of a category's pairs, or of all pairs (None), each once."""
        return tuple(dict.fromkeys(
            word
            for pair in self.study.pairs
            if category in (None, pair.category)
            for word in self.unknown.get(pair.id, ())
        ))  # fmt: skip

    def jobs(self) -> list[Job]:
        """The jobs of the planned cells, each once; in a sequential run only those that are due."""
        return once(job for cell in self.planned for job in self.study.cell_jobs(*cell))

    @property
    def on_inconclusive(self) -> str:
        """The outcome of an inconclusive case: ``fail``, ``skip`` or ``pass``.

        By default it fails in a gate (``--baseline``, ``--limits`` or ``strict``) and is otherwise
        skipped.
        """
        is_gate = self.is_strict or self.request.gates or bool(self.request.limits)
        return self.request.inconclusive or ("fail" if is_gate else "skip")

    @property
    def lpips(self) -> Lpips | Absent:
        """LPIPS's network, loaded once, or the reason why there is none."""
        if self._lpips is None:
            self._lpips = self._load_lpips()
        return self._lpips

    def _load_lpips(self) -> Lpips | Absent:
        """Raises ``ModelError`` if weights that the user named cannot be loaded. The default ones
        may be missing.
        """
        weights = self.request.lpips_weights
        try:
            return Lpips("alex", weights=weights, device=self.study.config.device)
        except ModelError as error:
            if weights is not None:
                raise
            return Absent(str(error))

    @property
    def references(self) -> References | Absent:
        """The features of the reference images, loaded once, or the reason why there are none."""
        if self._references is None:
            self._references = self._load_references()
        return self._references

    def _load_references(self) -> References | Absent:
        folder, study = self.request.reference, self.study
        missing = requirements.no_references(study, self.request)
        if missing is not None:
            return Absent(missing)
        judge = study.loaded_judge()
        if not isinstance(judge, FeatureEncoder):
            return no_features(study.judge.fingerprint)
        if folder is not None:
            try:
                return References.of_folder(Path(folder), judge)
            except ImageError as error:
                raise OptionError(f"--reference: {error}") from None

        drawn = [drawings(pair, len(study.config.seeds)) for pair in study.judged]
        targets = np.stack([target for twins in drawn for _, target in twins])
        features = judge.image_features(targets)
        return References("drawings of the pairs' targets", features)

    def ahead(self) -> Iterator[Sequence[Job]]:
        """The jobs of each planned cell, which engines of several workers generate in advance.

        Empty in a sequential run, whose rounds already cover all cells.
        """
        if not self.study.config.sequential:
            yield from (self.study.cell_jobs(*cell) for cell in self.planned)

    def report(self, count: int, *, shows_bar: bool = True) -> None:
        """Count generated images, and show the remaining time on the progress bar if there is one.

        A run that will take long prints this once, in two lines on stderr. In a sequential run the
        total and the time are unknown.
        """
        forecast = self._forecast
        if forecast is not None:
            forecast.add(count)
        if shows_bar:
            self._advance(count)
        if forecast is not None and not self._is_noticed and forecast.is_known:
            self._is_noticed = True
            for line in notice(forecast):
                tqdm.write(line, file=sys.stderr)

    def _advance(self, count: int) -> None:
        forecast = self._forecast
        if self._bar is None:
            total, done = (None, 0) if forecast is None else (forecast.total, forecast.tried)
            self._bar = bar(total, max(done - count, 0), room=self.room)
        if forecast is not None and (left := forecast.seconds) is not None:
            self._bar.set_postfix_str(f"{duration(left)} left", refresh=False)
        self._bar.update(count)
        if self._bar.n == self._bar.total:
            self.close()

    def close(self) -> None:
        """Close the progress bar if there is one."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _with_baseline(study: Study, request: RunRequest, *, is_strict: bool) -> Session:
    """The session of a study with its baseline. Raises ``OptionError`` if a baseline that the user
    named is not comparable. A default baseline that is not comparable is left out.
    """
    is_named = request.baseline is not None
    path = baselines.default_path(study.config.model)
    if request.baseline is not None:
        path = Path(request.baseline)
    now = study.header()
    if request.update_baseline:
        if path is None:
            raise OptionError(place="--update-baseline", expected="--baseline FILE to say where")
        baselines.check_replaceable(path, now)
        return Session(study, request, note=f"to be written to {path}", update=path)
    if path is None or (not is_named and not path.is_file()):
        return Session(study, request, note="none for this model", is_strict=is_strict)
    old = read(path)
    path = old.header.path or path  # if a run folder was named, the results file in it
    different = measurement_differences(old.header, now)
    if different and is_named:
        raise OptionError(
            f"--baseline {path}: expected results of the same measurement; different are "
            f"{'; '.join(map(str, different))}; run with the baseline's options, or write another "
            "baseline with --update-baseline"
        )
    if not is_named:  # only a named baseline may be of another model or method
        different += subject_differences(old.header, now, of=_OWN_SUBJECT)
    if different:
        fields = ", ".join(each.setting for each in different)
        note = f"none; the default, {path.name}, differs in {fields}"
        return Session(study, request, note=note, is_strict=is_strict)
    note = f"{path}, tolerance {request.tolerance:g}"
    return Session(study, request, note=note, baseline=old, is_strict=is_strict)
