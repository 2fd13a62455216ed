"""The scope of results: everything that determines their figures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from analogy.core.records import WHOLE, Verdict, Window
from analogy.results.model import Results


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """A measurement: everything that determines its figures, and whether it is finished.

    - ``model`` to ``dtype``: what was measured, how, and by which judge;
    - ``alphas``, ``seeds``: ascending, without alpha 0; ``control``, ``target``: whether the null
      and the target prompts' own images were measured; ``ceiling``: a digest of the ground truth
      that the user gave, None for the suite's own;
    - ``pairs``: category to a digest of its pairs; ``ids``: category to the pairs' ids, in results
      only those of pairs with figures; ``n_pairs``: the number of pairs;
    - ``limit``, ``categories``: the options that left pairs out, None if not given;
    - ``is_finished``: True if no image is missing;
    - ``sequential``: as in :class:`~analogy.results.model.Settings`.
    """

    model: str
    judge: str
    scheduler: str
    method: str
    steps: int
    guidance: float
    size: int
    dtype: str
    alphas: tuple[float, ...]
    seeds: tuple[int, ...]
    control: bool
    target: bool
    ceiling: str | None
    pairs: Mapping[str, str]
    ids: Mapping[str, frozenset[str]]
    n_pairs: int
    limit: int | None
    categories: tuple[str, ...] | None
    is_finished: bool
    method_version: str = ""
    sequential: Mapping[str, bool | int] = field(default_factory=dict)
    window: Window = WHOLE
    second_guidance: float | None = None

    @property
    def digest(self) -> str:
        """12 hex digits that name the measurement, finished or not."""
        what = {
            **self._subject,
            "alphas": self.alphas,
            "seeds": self.seeds,
            "control": self.control,
            "target": self.target,
            "pairs": dict(self.pairs),
            "limit": self.limit,
            **({"sequential": dict(self.sequential)} if self.sequential else {}),
        }
        text = json.dumps(what, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def _subject(self) -> dict[str, str | float | None]:
        names = (
            "model", "judge", "scheduler", "method", "steps", "guidance", "size", "dtype",
            "ceiling",
        )  # fmt: skip
        version = {"method_version": self.method_version} if self.method_version else {}
        second = {} if self.second_guidance is None else {"second_guidance": self.second_guidance}
        own = {name: getattr(self, name) for name in names}
        return {**own, **version, **second, **self.window.to_dict()}

    @property
    def n_images(self) -> int:
        """The number of images of the grid, the unsteered included."""
        return self.n_pairs * len(self.seeds) * (1 + len(self.alphas))

    def is_part_of(self, other: Scope) -> bool:
        """True if this measured the same as ``other`` with fewer pairs, strengths or seeds."""
        return (
            self._subject == other._subject
            and self.digest != other.digest
            and {*self.alphas} <= {*other.alphas}
            and {*self.seeds} <= {*other.seeds}
            and self.control <= other.control
            and self.target <= other.target
            and self.sequential == other.sequential
            and all(self._is_category_of(other, name) for name in self.pairs)
        )

    def _is_category_of(self, other: Scope, name: str) -> bool:
        if self.pairs[name] == other.pairs.get(name):
            return True
        mine, others = self.ids.get(name, frozenset()), other.ids.get(name, frozenset())
        return mine < others

    def __str__(self) -> str:
        """One line that distinguishes it from other measurements in its folder."""
        names = ", ".join(self.pairs)
        if len(self.pairs) > 3:
            names = f"{len(self.pairs)} categories"
        text = (
            f"{self.method}, {self.n_pairs:,} pairs in {names}, "
            f"alpha {', '.join(f'{alpha:g}' for alpha in self.alphas)}, "
            f"seeds {', '.join(map(str, self.seeds))}"
        )
        for is_so, word in (
            (self.limit is not None, f"limit {self.limit}"),
            (self.control, "with the null"),
            (self.target, "target prompts"),
            (self.ceiling is not None, "own ceiling"),
            (bool(self.sequential), "sequential"),
            (not self.is_finished, "not finished"),
        ):
            text += f", {word}" if is_so else ""
        return text


def scope_of_results(results: Results) -> Scope:
    """The measurement that results belong to, and whether it is finished."""
    header = results.header
    measurement, subject = header.measurement, header.subject
    ids: dict[str, frozenset[str]] = {}
    sizes: dict[str, int] = {}
    for (category, _), figures in results.analysis.cells.items():
        ids[category] = ids.get(category, frozenset()) | figures.items.keys()
        sizes[category] = max(sizes.get(category, 0), figures.margin.n)
    return Scope(
        model=subject.model,
        judge=measurement.judge,
        scheduler=subject.scheduler,
        method=subject.method,
        steps=subject.steps,
        guidance=subject.guidance,
        size=measurement.size,
        dtype=subject.dtype,
        alphas=measurement.alphas,
        seeds=measurement.seeds,
        control=header.config.is_on("control"),
        target=header.config.is_on("target"),
        ceiling=header.provenance.ceiling,
        pairs=measurement.pairs,
        ids=ids,
        n_pairs=sum(sizes.values()),
        limit=measurement.limit,
        categories=header.config.categories,
        is_finished=_is_finished(results),
        method_version=header.subject.method_version,
        sequential=header.config.sequential,
        window=header.subject.window,
        second_guidance=header.subject.second_guidance,
    )


def _is_finished(results: Results) -> bool:
    analysis = results.analysis
    if any(one.margin.verdict is Verdict.INCOMPLETE for one in analysis.cells.values()):
        return False
    margins = [one.margin for of in (analysis.unsteered, analysis.targets) for one in of.values()]
    return all(margin.n_items == margin.n for margin in margins)
