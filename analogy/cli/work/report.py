"""The work of the command ``report``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from analogy.cli.base import check_output, refuse, say_which, show_lines
from analogy.core.errors import ExitCode, OptionError, StoreError
from analogy.core.registry import ExtensionError
from analogy.results import comparison as comparisons
from analogy.results import kept
from analogy.results.comparison import NotComparableError
from analogy.results.model import RESULTS_NAME
from analogy.results.reading import RecordedError, read
from analogy.writers import Context, Output, by_suffix, check_writer
from analogy.writers import write as write_output


def report(run: Path, output: Path | None, *, baseline: Path | None, full_images: bool) -> None:
    """Write a report of the run, in the format of the output's suffix; HTML by default."""
    writer = "html" if output is None else by_suffix(str(output)) or "html"
    check_writer("-o", writer)
    if full_images and writer != "html":
        raise OptionError(place="--full-images", expected="an HTML report", got=str(output))
    folder = kept.folder_of(run)
    if output is None:
        output = folder / _report_name(run)
        # In a run folder from someone else, a link may lead anywhere.
        check_output(output, "-o", may_link=False)
    try:
        results = read(run)
        this_run = replace(results, header=replace(results.header, path=None))
        old = None if baseline is None else read(baseline)
        comparison = None if old is None else comparisons.compare(old, this_run)
        context = Context(folder, comparison, full_images, old)
        write_output(Output(str(output), writer), results, context)
    except NotComparableError as error:
        refuse(ExitCode.NOT_COMPARABLE, error)
    except (RecordedError, StoreError, ExtensionError, OSError) as error:
        refuse(ExitCode.USAGE, error)
    for path in dict.fromkeys((run, *([] if baseline is None else [baseline]))):
        say_which(path)
    show_lines([f"report {output} written"])


def _report_name(run: Path) -> str:
    """A name for each results file of a run folder, so that no report replaces another."""
    if run.is_dir() or run.name == RESULTS_NAME:
        return "report.html"
    if not (kept.folder_of(run) / "index.sqlite").is_file():
        return "report.html"
    return f"report-{run.stem.removeprefix('results-')}.html"
