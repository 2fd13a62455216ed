"""The work of the commands ``compare`` and ``baseline``."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import typer

from analogy.cli.base import refuse, say_which, show_lines, write
from analogy.core.errors import ExitCode
from analogy.core.text import display_width, padded, printable, shortened
from analogy.results import baseline as baselines
from analogy.results import comparison as comparisons
from analogy.results.comparison import Change, Comparison, NotComparableError, Outcome
from analogy.results.reading import read, read_file

COMPARISON_VERSION = 1
"""The schema version of the JSON of ``compare --json``."""

_NARROW = 16
"""The greatest width of a category's name in a table of 80 columns."""

UNDECIDED = "no cell has enough pairs and all its images"


def compare(
    old: Path, new: Path, *, tolerance: float, json: str | None, junit: Path | None,
    decide: bool = False, quiet: bool = False, wide: bool = False,
) -> None:  # fmt: skip
    """Compare two runs, write and print the comparison, and end with its exit code.

    ``decide``: whether an undecided comparison has its own exit code; ``quiet``: print only the
    conclusion.
    """
    sides = read(old), read(new)
    for path in dict.fromkeys((old, new)):
        say_which(path)
    try:
        comparison = comparisons.compare(*sides, tolerance=tolerance)
    except NotComparableError as error:
        write(_refused_json(error), json, report=_refused_junit(error), junit=junit)
        refuse(ExitCode.NOT_COMPARABLE, error)
    code = _code(comparison)
    if decide and code is ExitCode.OK and comparison.is_undecided:
        code = ExitCode.UNDECIDED
    write(_json(comparison, code), json, report=_junit(comparison), junit=junit)
    lines = table(comparison, wide=wide).removesuffix("\n").split("\n")
    show_lines(lines, json, quiet=quiet)
    raise typer.Exit(code)


def baseline(run: Path, output: Path) -> None:
    """Write a run as the baseline."""
    baselines.write(read_file(run), output)
    say_which(run)
    show_lines([f"baseline {output} written"])


def table(comparison: Comparison, *, wide: bool = False) -> str:
    """A comparison as text: a row per cell, the overall row, and other differences.

    ``wide``: print all columns; without it the table fits 80 columns.
    """
    names = [printable(change.category or "overall") for change in comparison.all_changes]
    widest = max(len("category"), *map(display_width, names))
    width = widest if wide else min(widest, _NARROW)
    head = (
        f"{'category':<{width}} {'alpha':>5} {'n':>4} {'old':>8} " if wide
        else f"{'category':<{width}} {'alpha':>5} {'n':>4} "
    ) + (
        f"{'new':>8} {'diff':>8} "
        f"{_percent(comparison.overall) + ' CI':>18}  outcome"
    )  # fmt: skip
    rule = "-" * len(head)
    lines = [head, rule]
    lines += [_row(change, width, wide) for change in comparison.changes]
    lines += [rule, _row(comparison.overall, width, wide), ""]
    lines += [
        f"old         {comparison.old}",
        f"new         {comparison.new}",
        f"compared    {comparison.scope}; tolerance {comparison.tolerance:g}; the intervals hold "
        "together with 95%",
    ]
    differences = comparison.subject_differences or ("no difference in what is recorded",)
    for index, difference in enumerate(differences):
        lines.append(f"{'' if index else 'subject':<11} {difference}")
    lines.append(f"throughput  {_throughput(comparison)}")
    for change in [*comparison.regressed, *comparison.incomplete]:
        lines.append(f"{change.outcome:<11} {change.message()}")
    if not comparison.is_decided:
        lines.append(f"undecided   {UNDECIDED}")
    lines.append(f"conclusion  {comparison.conclusion}")
    return "\n".join(lines) + "\n"


def _row(change: Change, width: int, wide: bool) -> str:
    alpha = "all" if change.alpha is None else f"{change.alpha:g}"
    name = shortened(printable(change.category or "overall"), width)
    row = f"{padded(name, width)} {alpha:>5} {change.n:>4} "
    if change.is_decided:
        interval = f"[{change.ci_low:+.4f}, {change.ci_high:+.4f}]"
        row += f"{change.old:>+8.4f} " if wide else ""
        row += f"{change.new:>+8.4f} {change.difference:>+8.4f} {interval:>18}"
    else:
        row += f"{'':>{45 if wide else 36}}"
    fall = f" ({change.old_verdict} -> {change.new_verdict})" if wide and change.fell else ""
    return f"{row}  {change.outcome}{fall}"


def _percent(change: Change) -> str:
    return f"{100 * change.confidence:.4g}%"


def _throughput(comparison: Comparison) -> str:
    if comparison.throughput_note:
        return comparison.throughput_note
    ratios = comparison.throughput.items()
    return ", ".join(f"{stage} x {ratio:.2f}" for stage, ratio in ratios)


def _code(comparison: Comparison) -> ExitCode:
    """The exit code: a regression counts even if other cells are incomplete; without one, an
    incomplete cell, or no decided cell, means that the runs are not comparable.
    """
    if comparison.regressed:
        return ExitCode.FAILED
    if comparison.incomplete or not comparison.is_decided:
        return ExitCode.NOT_COMPARABLE
    return ExitCode.OK


def _json(comparison: Comparison, code: ExitCode) -> dict[str, object]:
    return {
        "schema_version": COMPARISON_VERSION,
        "comparable": True,
        "exit_code": int(code),
        **comparison.to_dict(),
    }


def _refused_json(error: NotComparableError) -> dict[str, object]:
    return {
        "schema_version": COMPARISON_VERSION,
        "comparable": False,
        "exit_code": int(ExitCode.NOT_COMPARABLE),
        "old": error.old,
        "new": error.new,
        "measurement_differences": [str(each) for each in error.differences],
    }


def _junit(comparison: Comparison) -> ElementTree.Element:
    """A test case per cell and one for all cells together.

    Cells with too few pairs or missing images are skipped. If the exit code is that of runs that
    are not comparable, one more case is an error, so that the XML agrees with it.
    """
    facts = {
        "old": comparison.old,
        "new": comparison.new,
        "tolerance": f"{comparison.tolerance:g}",
        "categories": comparison.scope,
        "subject": "; ".join(map(str, comparison.subject_differences)) or "no difference",
        "throughput": _throughput(comparison),
        "conclusion": comparison.conclusion,
    }
    suite = ElementTree.Element("testsuite", name="analogy compare")
    _properties(suite, facts)
    for change in comparison.all_changes:
        case = ElementTree.SubElement(
            suite, "testcase", classname=change.category or "overall", name=change.name, time="0"
        )
        figures = change.to_dict().items()
        _properties(case, {name: str(value) for name, value in figures if value is not None})
        if change.outcome is Outcome.REGRESSED:
            ElementTree.SubElement(case, "failure", message=change.message(), type="regressed")
        elif not change.is_decided:
            ElementTree.SubElement(case, "skipped", message=change.message(), type=change.outcome)
    if _code(comparison) is ExitCode.NOT_COMPARABLE:
        _error_case(suite, "; ".join(one.message() for one in comparison.incomplete) or UNDECIDED)
    return _counted(suite)


def _refused_junit(error: NotComparableError) -> ElementTree.Element:
    suite = ElementTree.Element("testsuite", name="analogy compare")
    _properties(suite, {"old": error.old, "new": error.new})
    _error_case(suite, printable(str(error)))
    return _counted(suite)


def _error_case(suite: ElementTree.Element, message: str) -> None:
    case = ElementTree.SubElement(
        suite, "testcase", classname="comparison", name="comparable", time="0"
    )
    ElementTree.SubElement(case, "error", message=message, type="not comparable")


def _properties(parent: ElementTree.Element, values: dict[str, str]) -> None:
    properties = ElementTree.SubElement(parent, "properties")
    for name, value in values.items():
        ElementTree.SubElement(properties, "property", name=name, value=printable(value))


def _counted(suite: ElementTree.Element) -> ElementTree.Element:
    """The suite with its counts, under the root element that readers of JUnit XML expect."""
    for name, tag in (("tests", "testcase"), ("failures", "failure"), ("errors", "error"),
                      ("skipped", "skipped")):  # fmt: skip
        suite.set(name, str(sum(1 for _ in suite.iter(tag))))
    suite.set("time", "0")
    root = ElementTree.Element("testsuites")
    root.append(suite)
    return root
