"""Simulate, and write the tables: ``python -m analogy.calibration -o docs/calibration.md``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import scipy

from analogy._version import __version__
from analogy.calibration.report import measure, tables
from analogy.calibration.sequential_report import measure_sequential, sequential_tables
from analogy.core.files import PlaceError, check_output, write_output
from analogy.statistics import bootstrap

MIN_REPETITIONS = 100
"""With fewer, the Monte-Carlo error of a coverage is above 2 percentage points: too much."""

BEGIN, END = "<!-- calibration: begin -->", "<!-- calibration: end -->"
"""The lines of a document between which the command writes."""

SEQUENTIAL_BEGIN, SEQUENTIAL_END = "<!-- sequential: begin -->", "<!-- sequential: end -->"
"""The lines of a document between which the tables of `--sequential` are written."""


def _integer(low: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < low:
            raise argparse.ArgumentTypeError(f"expected an integer >= {low}, got {text!r}")
        return int(text)

    return parse


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analogy.calibration",
        description="Do the statistics hold what they promise? Simulates it and makes the tables.",
    )
    for flag, low, default, text in (
        ("--repetitions", MIN_REPETITIONS, 4_000, "samples of each configuration"),
        ("--resamples", bootstrap.MIN_RESAMPLES, 1_000, "bootstrap resamples of each sample"),
        ("--seed", 0, 0, "the same seed gives the same figures"),
        ("--workers", 1, 2, "processes"),
    ):
        parser.add_argument(
            flag, type=_integer(low), default=default, metavar="N", help=f"{text} [{default}]"
        )
    parser.add_argument(
        "--sequential", action="store_true",
        help="simulate the decisions of --sequential, look by look, and make their tables; "
        "resamples are then as many as in a run",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE",
        help=f"put the tables into this document, between its lines {BEGIN} and {END}, or "
        f"{SEQUENTIAL_BEGIN} and {SEQUENTIAL_END} [print them]",
    )  # fmt: skip
    return parser


def _around_tables(path: Path, first: str, last: str) -> tuple[str, str]:
    """The text of a document before and after its tables."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"expected a document that can be read, got {path} ({error})") from None
    before, begin, rest = text.partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end:
        raise ValueError(f"expected the lines {first} and {last} in {path}; add them to it")
    return before, after


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate everything; print the tables, or put them into a document."""
    parser = _parser()
    options = parser.parse_args(arguments)
    begin, end = (SEQUENTIAL_BEGIN, SEQUENTIAL_END) if options.sequential else (BEGIN, END)
    before, after = "", "\n"
    if options.output is not None:
        try:  # before the simulations, not after them
            before, after = _around_tables(options.output, begin, end)
            check_output(options.output)
        except (PlaceError, ValueError) as error:
            parser.error(f"-o: {error}")
    if options.sequential:
        made = sequential_tables(
            measure_sequential(
                repetitions=options.repetitions, seed=options.seed, workers=options.workers
            )
        )
        flags = f"--sequential --repetitions {options.repetitions}"
    else:
        made = tables(
            measure(
                repetitions=options.repetitions,
                n_resamples=options.resamples,
                seed=options.seed,
                workers=options.workers,
            )
        )
        flags = f"--repetitions {options.repetitions} --resamples {options.resamples}"
    command = (
        f"`python -m analogy.calibration {flags} --seed {options.seed} -o docs/calibration.md`, "
        f"analogy-bench {__version__}, Python {sys.version.split()[0]}, numpy {np.__version__}, "
        f"scipy {scipy.__version__}."
    )
    text = f"{before}{begin}\n\n{command}\n\n{made}\n\n{end}{after}"
    if options.output is None:
        sys.stdout.write(text)
    else:
        write_output(options.output, text.encode())


if __name__ == "__main__":
    main()
