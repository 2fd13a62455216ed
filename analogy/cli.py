"""The command line beside pytest: ``python -m analogy VERB``.

A verb is a function with ``@app.command()``. It ends by an exit code of ``Exit``; what a user can
mend is said in one line on stderr, without a traceback.
"""

from __future__ import annotations

import json
import os
import re
import sys
import traceback
import xml.etree.ElementTree as ElementTree
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from analogy import baseline as baselines
from analogy import recorded
from analogy.baseline import Change, Comparison, NotComparableError, Outcome

if TYPE_CHECKING:
    from analogy.store import RunFolder
    from analogy.verify import Verified

COMPARISON_VERSION = 1
"""The schema version of what ``compare --json`` writes."""

VERIFICATION_VERSION = 1
"""The schema version of what ``verify --json`` writes."""

UNDECIDED = "no cell has enough pairs and all its images"

app = typer.Typer(
    name="analogy",
    help="What can be done with runs without generating anything; 'pytest benchmarks' makes them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class Exit(IntEnum):
    """Exit codes. Python's own for an error nobody caught is 1, so ``main`` gives that another."""

    OK = 0
    REGRESSED = 1
    NOT_WHOLE = 1  # the same code: of another verb
    USAGE = 2
    NOT_COMPARABLE = 3
    UNREADABLE = 4
    INTERNAL = 70
    INTERRUPTED = 130


def main() -> None:
    """Run a verb. An error of the suite's own is never taken for a verdict."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name that the terminal cannot show is no error
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except KeyboardInterrupt:
        print("analogy: interrupted; what was done is kept, the same command goes on from there",
              file=sys.stderr)  # fmt: skip
        sys.exit(Exit.INTERRUPTED)
    except Exception:
        traceback.print_exc()
        print("analogy: an error of the suite's own, and no verdict; please report it",
              file=sys.stderr)  # fmt: skip
        sys.exit(Exit.INTERNAL)


@app.callback()
def _verbs() -> None:
    """Make a lone verb be named, too."""


@app.command()
def compare(
    old: Annotated[Path, typer.Argument(help="The baseline: a results file or a run folder.")],
    new: Annotated[Path, typer.Argument(help="What is held against it: likewise.")],
    tolerance: Annotated[
        float, typer.Option(metavar="T", help="Loss of margin that is put up with.")
    ] = baselines.TOLERANCE,
    json_file: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE", help="Write the comparison as JSON; - is stdout."),
    ] = None,
    junit: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it as JUnit XML, a case per cell.")
    ] = None,
) -> None:
    """Compare two runs cell by cell and pair by pair, without generating anything.

    Exit code: 0 nothing regressed, 1 something did, 3 not comparable or incomplete, 2 wrong usage
    or a file that cannot be read.
    """
    try:
        tolerance = baselines.check_tolerance(tolerance)
        sides = recorded.read(old), recorded.read(new)
    except ValueError as error:
        _refuse(Exit.USAGE, error)
    try:
        comparison = baselines.compare(*sides, tolerance=tolerance)
    except NotComparableError as error:
        _write(_refused_json(error), _refused_junit(error), json_file, junit)
        _refuse(Exit.NOT_COMPARABLE, error)
    code = _code(comparison)
    _write(_json(comparison, code), _junit(comparison), json_file, junit)
    _print(table(comparison), to_stderr=json_file == "-")
    raise typer.Exit(code)


@app.command()
def baseline(
    run: Annotated[Path, typer.Argument(help="A run folder or its results file.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where to.")],
) -> None:
    """Make a run the baseline that later runs are compared with.

    Exit code: 0 written, 2 not: what is there may only be replaced by a complete run of the same
    measurement.
    """
    try:
        baselines.write(recorded.load(run), output)
    except ValueError as error:
        _refuse(Exit.USAGE, error)
    _print(f"baseline {output} written\n", to_stderr=False)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run folder or its results file.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Where to [RUN/report.html]."),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(metavar="OLD", help="A results file or run folder to compare with."),
    ] = None,
    full_images: Annotated[
        bool, typer.Option("--full-images", help="Put the images as they are beside it.")
    ] = False,
) -> None:
    """Write a run as one HTML file: the answer, plots, tables and every pair's images.

    Exit code: 0 written, 2 wrong usage or a file that cannot be read or written, 3 a baseline of
    another measurement.
    """
    try:
        from analogy.report.html import write_report
        from analogy.store import StoreError
    except ImportError as error:
        _refuse(Exit.USAGE, f"expected jinja2 and matplotlib, got none ({error}); "
                "install them with pip install 'analogy-bench[report]'")  # fmt: skip
    folder = run if run.is_dir() else run.parent
    output = output or folder / "report.html"
    try:
        results = recorded.load(run)
        old = None if baseline is None else recorded.read(baseline)
        comparison = None if old is None else baselines.compare(old, recorded.of(results))
        write_report(results, output, folder=folder, comparison=comparison, full_images=full_images)
    except NotComparableError as error:
        _refuse(Exit.NOT_COMPARABLE, error)
    except (recorded.RecordedError, StoreError, OSError) as error:
        _refuse(Exit.USAGE, error)
    _print(f"report {output} written\n", to_stderr=False)


@app.command()
def verify(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    repair: Annotated[
        bool, typer.Option("--repair", help="Make again what is damaged, and only that.")
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="Where to repair [default: where the run was made].")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never touch the network.")] = False,
    json_file: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE", help="Write the findings as JSON; - is stdout."),
    ] = None,
) -> None:
    """Check that a run folder is whole: every image as it was written, the grid complete.

    Exit code: 0 whole, 1 damaged or incomplete (after --repair: still), 4 it cannot be read, or not
    repaired.
    """
    from analogy import verify as verifying
    from analogy.memory import MemoryFullError
    from analogy.store import RunFolder, StoreError

    folder: RunFolder | None = None
    done = None
    try:
        folder = RunFolder(run, read_only=True)
        if repair:
            folder.close()
            folder = RunFolder(run)
        found = _verified(folder)
        if repair:
            done = verifying.repair(folder, found, device=device, offline=offline)
            found = _verified(folder)
    except (StoreError, MemoryFullError, ValueError) as error:
        _refuse(Exit.UNREADABLE, error)
    finally:
        if folder is not None:
            folder.close()
    code = Exit.OK if found.is_whole else Exit.NOT_WHOLE
    data = {"schema_version": VERIFICATION_VERSION, "exit_code": int(code), **found.to_dict()}
    _write(data, None, json_file, None)
    lines = [*([] if done is None else done.lines()), *found.lines()]
    text = "".join(f"{recorded.printable(line)}\n" for line in lines)
    _print(text, to_stderr=json_file == "-")
    raise typer.Exit(code)


@app.command()
def score(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    clip_model: Annotated[str, typer.Option(help="The judge, as for pytest benchmarks.")],
    clip_pretrained: Annotated[str | None, typer.Option(help="Its weights, likewise.")] = None,
    device: Annotated[
        str | None, typer.Option(help="Where to score [default: where the run was made].")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never touch the network.")] = False,
    results: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where to [default: RUN/results-JUDGE.json]."),
    ] = None,
) -> None:
    """Score a run's images by another judge, print the table and write the results.

    Generates nothing and needs no model but the judge. RUN/results.json stays the run's own.

    Exit code: 0 scored, 2 there is no such judge, 4 the run cannot be read or written.
    """
    from analogy.clip import find_judge
    from analogy.models import go_offline
    from analogy.report import text
    from analogy.store import RunFolder, StoreError
    from analogy.study import Study

    try:
        RunFolder(run, read_only=True).close()
        if offline:
            go_offline()
        judge = find_judge(clip_model, clip_pretrained, offline=offline)
        folder = RunFolder(run)
    except StoreError as error:
        _refuse(Exit.UNREADABLE, error)
    except ValueError as error:
        _refuse(Exit.USAGE, error)
    try:
        changed: dict[str, Any] = {"clip_model": clip_model, "clip_pretrained": clip_pretrained}
        if device is not None:
            changed["device"] = device
        study = Study.latest(folder, judge=judge, **changed)
        count = study.score(study.jobs())
        study.record(folder.commands()[0].lora)
        analysis = study.analysis()
        name = re.sub(r"[^\w.-]+", "-", judge.fingerprint)
        file = results or run / f"results-{name}.json"
        recorded.write_results(study.results(analysis), file)
    except (StoreError, OSError) as error:
        _refuse(Exit.UNREADABLE, error)
    except ValueError as error:
        _refuse(Exit.USAGE, error)
    finally:
        folder.close()
    lines = [
        f"model     {study.model.fingerprint}",
        f"judge     {judge.fingerprint}",
        f"run       {run}: {count:,} images scored now",
        *text.verdict_table(analysis),
        *text.reading_notes(analysis),
        f"results   {file}",
    ]
    _print("".join(f"{recorded.printable(line)}\n" for line in lines), to_stderr=False)


@app.command("import")
def import_(
    run: Annotated[Path, typer.Argument(help="A run folder, new or not.")],
    manifest: Annotated[
        Path, typer.Argument(help="CSV or JSON lines: pair_id, alpha, seed, file [, method].")
    ],
    model_name: Annotated[str, typer.Option(help="What made the images.")],
    pairs: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The pairs [default: the suite's own].")
    ] = None,
    clip_model: Annotated[str, typer.Option(help="The judge to come.")] = "embedded",
    clip_pretrained: Annotated[str | None, typer.Option(help="Its weights.")] = None,
) -> None:
    """Bring images that other tools made into a run folder; 'score' then judges them.

    Exit code: 0 imported, 2 the manifest or a file in it cannot be used, 4 the folder cannot be.
    """
    from analogy.clip import find_judge
    from analogy.manifest import bring_in, read_manifest
    from analogy.models import shipped
    from analogy.pairs import load_pairs
    from analogy.store import RunFolder, StoreError

    folder: RunFolder | None = None
    try:
        source = str(pairs or shipped("pairs.csv"))
        entries, known = read_manifest(manifest), load_pairs(source)
        judge = find_judge(clip_model, clip_pretrained)
        folder = RunFolder(run)
        study, new = bring_in(
            folder, entries, known, judge, name=model_name, pairs_file=source,
            clip_model=clip_model, clip_pretrained=clip_pretrained,
        )  # fmt: skip
    except StoreError as error:
        _refuse(Exit.UNREADABLE, error)
    except ValueError as error:
        _refuse(Exit.USAGE, error)
    finally:
        if folder is not None:
            folder.close()
    lines = [
        f"model     {study.model.fingerprint}",
        f"run       {run}: {new:,} images imported, {len(entries) - new:,} were there",
        f"next      python -m analogy score {run} --clip-model {clip_model}",
    ]
    _print("".join(f"{recorded.printable(line)}\n" for line in lines), to_stderr=False)


def _verified(folder: RunFolder) -> Verified:
    """What there is to find, with a progress bar on a terminal."""
    from tqdm import tqdm

    from analogy.verify import verify as verify_folder

    with tqdm(desc="verifying", unit="img", disable=None, leave=False) as bar:
        return verify_folder(folder, bar.update)


def table(comparison: Comparison) -> str:
    """A comparison as text: a row per cell, the overall one, and what else differs."""
    names = [change.category or "overall" for change in comparison.all_changes]
    width = max(len("category"), *map(len, names))
    head = (
        f"{'category':<{width}} {'alpha':>5} {'n':>4} {'old':>8} {'new':>8} {'diff':>8} "
        f"{_percent(comparison.overall) + ' CI':>20}  outcome"
    )
    rule = "-" * len(head)
    lines = [head, rule]
    lines += [_row(change, width) for change in comparison.changes]
    lines += [rule, _row(comparison.overall, width), ""]
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
    return "\n".join(lines) + "\n"


def _row(change: Change, width: int) -> str:
    alpha = "all" if change.alpha is None else f"{change.alpha:g}"
    row = f"{change.category or 'overall':<{width}} {alpha:>5} {change.n:>4} "
    if change.is_decided:
        interval = f"[{change.ci_low:+.4f}, {change.ci_high:+.4f}]"
        row += f"{change.old:>+8.4f} {change.new:>+8.4f} {change.difference:>+8.4f} {interval:>20}"
    else:
        row += f"{'':>47}"
    fall = f" ({change.old_verdict} -> {change.new_verdict})" if change.fell else ""
    return f"{row}  {change.outcome}{fall}"


def _percent(change: Change) -> str:
    return f"{100 * change.confidence:.4g}%"


def _throughput(comparison: Comparison) -> str:
    if comparison.throughput_note:
        return comparison.throughput_note
    ratios = comparison.throughput.items()
    return ", ".join(f"{stage} x {ratio:.2f}" for stage, ratio in ratios)


def _code(comparison: Comparison) -> Exit:
    """A regression is one whatever else is missing; what is missing is no pass."""
    if comparison.regressed:
        return Exit.REGRESSED
    if comparison.incomplete or not comparison.is_decided:
        return Exit.NOT_COMPARABLE
    return Exit.OK


def _json(comparison: Comparison, code: Exit) -> dict[str, Any]:
    return {
        "schema_version": COMPARISON_VERSION,
        "comparable": True,
        "exit_code": int(code),
        **comparison.to_dict(),
    }


def _refused_json(error: NotComparableError) -> dict[str, Any]:
    return {
        "schema_version": COMPARISON_VERSION,
        "comparable": False,
        "exit_code": int(Exit.NOT_COMPARABLE),
        "old": error.old,
        "new": error.new,
        "measurement_differences": error.differences,
    }


def _junit(comparison: Comparison) -> ElementTree.Element:
    """A test case per cell and one for all together.

    What is too few or incomplete is skipped. Where that makes the whole not comparable there is one
    case more, an error: a report says no less than the exit code.
    """
    facts = {
        "old": comparison.old,
        "new": comparison.new,
        "tolerance": f"{comparison.tolerance:g}",
        "categories": comparison.scope,
        "subject": "; ".join(comparison.subject_differences) or "no difference",
        "throughput": _throughput(comparison),
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
    if _code(comparison) is Exit.NOT_COMPARABLE:
        _error_case(suite, "; ".join(one.message() for one in comparison.incomplete) or UNDECIDED)
    return _counted(suite)


def _refused_junit(error: NotComparableError) -> ElementTree.Element:
    suite = ElementTree.Element("testsuite", name="analogy compare")
    _properties(suite, {"old": error.old, "new": error.new})
    _error_case(suite, recorded.printable(str(error)))
    return _counted(suite)


def _error_case(suite: ElementTree.Element, message: str) -> None:
    case = ElementTree.SubElement(
        suite, "testcase", classname="comparison", name="comparable", time="0"
    )
    ElementTree.SubElement(case, "error", message=message, type="not comparable")


def _properties(parent: ElementTree.Element, values: dict[str, str]) -> None:
    properties = ElementTree.SubElement(parent, "properties")
    for name, value in values.items():
        ElementTree.SubElement(properties, "property", name=name, value=recorded.printable(value))


def _counted(suite: ElementTree.Element) -> ElementTree.Element:
    """The suite with its counts, under the root that readers of JUnit expect."""
    for name, tag in (("tests", "testcase"), ("failures", "failure"), ("errors", "error"),
                      ("skipped", "skipped")):  # fmt: skip
        suite.set(name, str(sum(1 for _ in suite.iter(tag))))
    suite.set("time", "0")
    root = ElementTree.Element("testsuites")
    root.append(suite)
    return root


def _write(
    data: dict[str, Any],
    report: ElementTree.Element | None,
    json_file: str | None,
    junit: Path | None,
) -> None:
    """Write what was asked for; before anything is printed, so that a closed pipe loses nothing."""
    try:
        if junit is not None and report is not None:
            ElementTree.indent(report)
            junit.parent.mkdir(parents=True, exist_ok=True)
            junit.write_bytes(ElementTree.tostring(report, "utf-8", xml_declaration=True) + b"\n")
        if json_file not in (None, "-"):
            recorded.write_results(data, Path(str(json_file)))
    except OSError as error:
        _refuse(Exit.USAGE, f"expected files that can be written, got: {error}; name others")
    if json_file == "-":
        _print(json.dumps(data, indent=2, allow_nan=False) + "\n", to_stderr=False)


def _print(text: str, *, to_stderr: bool) -> None:
    """Print; a reader that has left (``| head``) changes no exit code."""
    stream = sys.stderr if to_stderr else sys.stdout
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _refuse(code: Exit, error: object) -> NoReturn:
    _print(f"analogy: {error}\n", to_stderr=True)
    raise typer.Exit(code)
