"""The settings in which the measurements or subjects of two results differ."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass

from analogy.core.text import worded
from analogy.results.model import Header, Measurement

SAMPLING = (
    "method", "method_version", "window", "steps", "guidance", "second_guidance", "scheduler",
)  # fmt: skip
"""The fields of a subject that determine how its images are made from its model."""


@dataclass(frozen=True, slots=True)
class SettingDifference:
    """A setting whose value is ``before`` in the baseline and ``after`` in the run.

    ``setting``: a field of :class:`~analogy.results.model.Measurement` or
    :class:`~analogy.results.model.Subject`, or the name of a package. ``words``: the difference in
    words, None to give both values. ``str`` is one line.
    """

    setting: str
    before: object
    after: object
    words: str | None = None

    def __str__(self) -> str:
        values = f"baseline {worded(self.before)}, this run {worded(self.after)}"
        return f"{self.setting}: {values if self.words is None else self.words}"


def measurement_differences(old: Header, new: Header) -> list[SettingDifference]:
    """Why ``new`` cannot be compared with the baseline ``old``; empty if it can.

    A run of some of the baseline's categories is comparable on those: a category's figures do not
    depend on the others. A category that the baseline lacks is a difference, since it would
    otherwise pass without a comparison.
    """
    found = setting_differences(old.measurement, new.measurement)
    unknown = [name for name in new.categories if name not in old.measurement.pairs]
    if unknown:
        words = f"the baseline has {', '.join(old.categories)}, this run also {', '.join(unknown)}"
        found.append(SettingDifference("pairs", old.categories, new.categories, words))
    return found


def setting_differences(old: Measurement, new: Measurement) -> list[SettingDifference]:
    """The differences of measurements, apart from the sets of their categories."""
    found: list[SettingDifference] = []
    for field in dataclasses.fields(old):
        if field.name != "pairs":
            found += _difference(field.name, getattr(old, field.name), getattr(new, field.name))
    common = [name for name in new.pairs if name in old.pairs]
    others = [name for name in common if old.pairs[name] != new.pairs[name]]
    if others:
        words = f"other ones in {', '.join(others)}"
        found.append(SettingDifference("pairs", old.pairs, new.pairs, words))
    return found


def subject_differences(
    old: Header, new: Header, *, of: Collection[str] | None = None
) -> list[SettingDifference]:
    """The differences of the subjects: possible causes of a change of the figures.

    ``of``: only these fields of :class:`~analogy.results.model.Subject`; all unless given.
    """
    found: list[SettingDifference] = []
    for field in dataclasses.fields(old.subject):
        if of is not None and field.name not in of:
            continue
        before, now = getattr(old.subject, field.name), getattr(new.subject, field.name)
        if field.name != "packages":
            found += _difference(field.name, before, now)
            continue
        for name in sorted({*before, *now}):
            found += _difference(name, before.get(name), now.get(name))
    return found


def _difference(setting: str, before: object, after: object) -> list[SettingDifference]:
    return [] if before == after else [SettingDifference(setting, before, after)]
