"""The verb ``run``: what ``pytest benchmarks`` does, without pytest and in the same run folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from analogy.bench import (
    Bench,
    Finding,
    Outcome,
    faults,
    interrupted,
    judge_cell,
    judge_overall,
    judge_quality,
    judge_regression,
    load_references,
    open_bench,
    refusals,
    summary,
    unmeasured,
    write_outputs,
)
from analogy.cli.base import (
    MAKE,
    Exit,
    Json,
    app,
    code_of_fault,
    option,
    refuse,
    say,
    show_lines,
    with_options,
    write,
)
from analogy.records import PER_IMAGE, PER_SET, Cell
from analogy.results.writing import to_json

if TYPE_CHECKING:
    from analogy.store import Job


@app.command(rich_help_panel=MAKE)
@with_options()
def run(
    values: Mapping[str, Any],
    strict: Annotated[
        bool, option("--strict", help="Expect no cell to fail, whatever the baseline has.")
    ] = False,
    json: Json = None,
) -> None:
    """Generate, score and judge a grid: what 'pytest benchmarks' does, in the same run folder.

    Whichever of the two began, the other goes on, and nothing is made twice. Cells that cannot be
    judged (too few pairs, images missing, a blind judge) are neither a success nor a failure.

    Exit code: 0 every cell that can be judged succeeded, or was expected not to, 1 some cell did
    not, or regressed, 2 wrong usage, 4 the run cannot be read or written, 5 the Ray cluster was
    lost, 130 interrupted.
    """
    from analogy.memory import memory_said
    from analogy.models import ModelError
    from analogy.store import StoreError

    try:
        bench = open_bench(values, is_strict=strict)
    except StoreError as error:
        refuse(Exit.UNREADABLE, error)
    except refusals() as error:
        refuse(Exit.USAGE, error)
    code, fault, fault_code = Exit.OK, "", Exit.UNREADABLE
    failed: list[str] = []
    bench.planned |= dict.fromkeys(_cells(bench))
    try:
        try:
            is_ready = False
            bench.prepare()
            is_ready = True
            with memory_said("judging"):
                for finding in _cases(bench):
                    if finding.outcome is Outcome.FAILED:
                        code = Exit.NOT_SUCCEEDED
                        failed.append(finding.message)
            for line in unmeasured(values, bench):
                code = Exit.NOT_SUCCEEDED
                failed.append(line)
        except KeyboardInterrupt:
            code = Exit.INTERRUPTED
        except faults() as error:
            if isinstance(error, ModelError) and not is_ready:
                refuse(Exit.USAGE, error)
            fault, fault_code = str(error), code_of_fault(error)
        analysis = bench.study.analysis()
        results = bench.study.results(analysis)
        try:
            if not write_outputs(bench, results):
                code = code or Exit.NOT_SUCCEEDED
        except (StoreError, OSError) as error:
            fault = fault or f"results NOT written: {error}"
        lines = list(summary(bench, analysis))
    except StoreError as error:
        refuse(fault_code, fault or error)
    finally:
        bench.close()
        bench.study.close()
    write(to_json(results), json)
    show_lines(lines, json)
    for message in failed:
        say(message)
    if code is Exit.INTERRUPTED:
        say(interrupted(bench))
    if fault:
        refuse(fault_code, fault)
    raise typer.Exit(code)


def _cases(bench: Bench) -> Iterator[Finding]:
    """What each case of ``pytest benchmarks`` finds, in its order, and so of the same batches."""
    study, strengths = bench.study, (0.0, *bench.study.config.alphas)
    cells = _cells(bench)
    for cell in cells:
        _measure(bench, study.cell_jobs(*cell))
        yield judge_cell(bench, cell)
    _measure(bench, study.jobs())
    yield judge_overall(bench)
    study.quality.lpips = bench.lpips
    for cell in cells:
        yield judge_quality(bench, str(cell), study.quality.cell(cell), PER_IMAGE)
    study.quality.references = load_references(bench)
    for alpha in strengths:
        yield judge_quality(bench, f"alpha {alpha:g}", study.quality.alpha(alpha), PER_SET)
    if bench.baseline is not None:
        for each in (*cells, None):
            yield judge_regression(bench, each)


def _cells(bench: Bench) -> list[Cell]:
    study = bench.study
    return [Cell(category, a) for category in study.categories for a in study.config.alphas]


def _measure(bench: Bench, jobs: Sequence[Job]) -> None:
    """Generate what is missing, with a bar on a terminal, and score it."""
    study = bench.study
    report = bench.report if sys.stderr.isatty() else lambda n: None
    study.generate(jobs, report, ahead=(study.cell_jobs(*cell) for cell in bench.planned))
    study.score(jobs)
