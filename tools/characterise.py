"""Write down what the suite does, so that a change of its code can be held to it.

    python -m tools.characterise -o BEFORE.json --keep RUN    # before the change
    python -m tools.characterise -o AFTER.json                # after it
    python -m tools.characterise --compare BEFORE.json AFTER.json
    python -m tools.characterise --continue RUN               # the kept run, by the changed code

Runs `pytest benchmarks` and verbs of `analogy` as other processes, on the embedded models, and
reads only what they print and write. Image bytes differ between processors and versions of torch:
compare records of one machine and environment. A record takes about two minutes of two cores.
``--checkout`` records another checkout, such as one of before this file.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import html
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]

JSON = None | bool | int | float | str | list["JSON"] | dict[str, "JSON"]

#: Options of every run. The batch size is fixed, so results do not depend on the machine's memory.
SMALL = ("--limit=6", "--seeds=0", "--steps=4", "--dtype=float32", "--batch-size=16")
#: Options of the second run: a part of the first run's grid, by another method.
LERP = ("--method=lerp", "--control", "--target", "--categories=color,size", "--alphas=0.5,1")
#: A relative path, since the checkout's own path would change the digests of commands.
PAIRS = "--pairs=fixtures/pairs.csv"
#: The cases of a grid, without the simulations of test_calibration.
CASES = tuple(f"benchmarks/test_{name}.py" for name in ("margin", "quality", "regression"))

#: Names of environment variables that change options or how programs print.
AMBIENT = ("ANALOGY_", "GITHUB_", "PYTEST_", "PY_COLORS", "FORCE_COLOR", "TYPER_", "_TYPER_")

#: Text that differs between two runs of the same code, and its replacement.
VOLATILE = (
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(\+\d\d:\d\d|Z)?"), "<time>"),
    (re.compile(r"[\d.,]+ (images|img)/s"), r"<rate> \1/s"),
    (re.compile(r"\bin [\d.]+s( \(\d+:\d\d:\d\d\))?"), "in <seconds>"),
    (re.compile(r"\b[0-9a-f]{40}\b"), "<commit>"),
)  # fmt: skip
#: Lines of pytest's header that depend on what is installed, and where.
HEAD = re.compile(r"(platform|benchmark:|rootdir:|configfile:|plugins:|cachedir:) ?")
#: Entries of the report's section Provenance whose values depend on the machine or the time.
PROVENANCE = (
    "commit", "python", "packages", "machine", "time", "generated", "scored", "cost of the method",
    "fit of the method", "memory",
)  # fmt: skip

TABLES = {
    "failures": "SELECT key, what, reason FROM failures ORDER BY key",
    "commands": "SELECT digest, config, pairs, model, judge, scheduler, lora FROM commands "
    "ORDER BY rowid",
    "ceilings": "SELECT command, margins FROM ceilings ORDER BY command",
    "schema": "SELECT type, name, sql FROM sqlite_master ORDER BY name",
}
"""Tables of an index that are recorded row by row, as they are."""


@dataclass(frozen=True)
class Place:
    """Where a record is made: the checkout under test, and a folder for files that it writes."""

    checkout: Path
    work: Path

    def without_paths(self, text: str) -> str:
        """The text with placeholders for paths, times, rates and commits."""
        for path, name in ((self.work, "<work>"), (self.checkout, "<checkout>")):
            text = text.replace(str(path), name)
        for pattern, word in VOLATILE:
            text = pattern.sub(word, text)
        return text

    def run(self, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
        """Run ``python -m`` with the checkout's code, offline, on a terminal of 120 columns."""
        env = {name: value for name, value in os.environ.items() if not name.startswith(AMBIENT)}
        env |= {
            "PYTHONPATH": str(self.checkout), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "120",
            "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "NO_COLOR": "1", "TERM": "dumb",
            "OMP_NUM_THREADS": "2", "TORCH_HOME": "/nonexistent/torch",
        }  # fmt: skip
        print("python -m", *arguments, file=sys.stderr, flush=True)
        return subprocess.run(
            (sys.executable, "-m", *arguments),
            cwd=folder, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            check=False,
        )  # fmt: skip


@dataclass
class Record:
    """The recorded behaviour, as plain JSON values, by the name of the command or folder."""

    exit_codes: dict[str, int] = field(default_factory=dict)
    printed: dict[str, list[str]] = field(default_factory=dict)
    results: dict[str, JSON] = field(default_factory=dict)
    junit: dict[str, JSON] = field(default_factory=dict)
    folders: dict[str, JSON] = field(default_factory=dict)
    report: list[str] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)


def record(place: Place, *, keep: Path | None) -> Record:
    """Run all commands and read their output and files.

    ``keep``: the place to which the first run's folder is copied, or None.
    """
    found, work = Record(), place.work
    shutil.copy(place.checkout / "fixtures" / "pairs.csv", work)

    listed = pytest_(place, "benchmarks", "--collect-only", "-q", *SMALL, PAIRS)
    keep_text(found, "collect", listed, place)

    for name, cases, options in (
        ("word", ("benchmarks",), (f"--report={work / 'report.html'}",)),
        ("lerp", CASES, LERP),
        ("gated", CASES, (*LERP, f"--baseline={work / 'lerp.json'}", "--limits=ssim>=0.8")),
    ):
        done = pytest_(place, *cases, *grid_options(work, name), *options)
        keep_text(found, name, done, place)
        found.results[name] = results_of((work / f"{name}.json").read_text(), place)
        found.junit[name] = junit_of(work / f"{name}.xml", place)
    found.report, found.pictures = report_of((work / "report.html").read_text(), place)

    here = ("--pairs=pairs.csv", *SMALL, "--alphas=0.5,1")
    size = ("--seeds=0,1", "--steps=2", "--categories=object,emotion")  # into the default folder
    for name, arguments in {
        "run": ("run", *here, *size, "--method=category", "--json=-"),
        "methods": (
            "methods", *here, "--categories=color,size", "--methods=word,lerp", "--run-dir=run",
            "--json=-",
        ),
        "compare other": ("compare", "word.json", "lerp.json", "--json=-"),
        "compare same": ("compare", "lerp.json", "gated.json", "--json=-"),
        "verify": ("verify", "run", "--json=-"),
        "run, wrong method": ("run", "--method=nosuch"),
        "verify, no folder": ("verify", "nosuch"),
        "compare, no file": ("compare", "nosuch.json", "lerp.json"),
    }.items():  # fmt: skip
        done = place.run("analogy", *arguments, folder=work)
        if done.stdout.startswith("{"):
            found.results[name] = results_of(done.stdout, place)
            done.stdout = ""
        keep_text(found, name, done, place)
    wrong = pytest_(place, "benchmarks", "--alphas=x", "--collect-only", "-q")
    keep_text(found, "pytest, wrong alphas", wrong, place)

    runs = sorted((work / ".analogy" / "runs").iterdir())
    for folder in (work / "run", *runs):
        name = str(folder.relative_to(work))
        found.folders[name] = folder_of(folder, place)
    if keep is not None:
        shutil.copytree(work / "run", keep)
    return found


def grid_options(work: Path, name: str) -> tuple[str, ...]:
    """Options of a run of `pytest benchmarks` whose files have this name."""
    return (
        *SMALL, PAIRS, f"--run-dir={work / 'run'}", f"--results={work / name}.json",
        f"--junitxml={work / name}.xml",
    )  # fmt: skip


def pytest_(place: Place, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run pytest in the checkout, without leaving caches there."""
    plugins = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest")
    return place.run("pytest", *plugins, *arguments, folder=place.checkout)


def keep_text(
    found: Record, name: str, done: subprocess.CompletedProcess[str], place: Place
) -> None:
    """Record a command's exit code and its output, first stdout, then stderr."""
    found.exit_codes[name] = done.returncode
    found.printed[name] = [
        *printed_lines(place.without_paths(done.stdout)),
        *printed_lines(place.without_paths(done.stderr)),
    ]


def printed_lines(text: str) -> Iterator[str]:
    """Lines without progress bars, tables of times and lines about installed packages."""
    is_table = is_cost = False
    for line in text.splitlines():
        # The length of rules around a title depends on the title, which may contain times.
        line = re.sub(r"^([-=_])\1+ (.+?) \1+$", r"\1 \2 \1", line.rpartition("\r")[2]).rstrip()
        if is_cost or re.match(r"cost +images +s/image", line):
            is_cost = not line.startswith("Seconds of one worker")
        elif re.match(r"- benchmark: \d+ tests", line):
            is_table = True
            yield line
        elif is_table:
            is_table = not line.startswith("  OPS:")
        elif not HEAD.match(line) and "it/s]" not in line and "img/s]" not in line:
            yield line


def results_of(text: str, place: Place) -> JSON:
    """JSON of a file or of ``--json=-``, with measured times and versions replaced by their types.

    ``is_dumped``: whether the text is the output of `json.dumps` for the value, so that equal
    values have equal bytes.
    """
    plain = json.loads(text)
    value = json.loads(place.without_paths(text))
    for name in ("provenance", "throughput", "peak_memory_bytes", "cost", "costs"):
        if name in value:
            value[name] = types_of(value[name])
    is_dumped = text in (json.dumps(plain, indent=2), json.dumps(plain, indent=2) + "\n")
    return {"is_dumped": is_dumped, "ends": text[-2:], "value": value}


def types_of(value: JSON) -> JSON:
    """The value with everything but objects replaced by the name of its type."""
    if isinstance(value, dict):
        return {name: types_of(each) for name, each in value.items()}
    return type(value).__name__


def junit_of(path: Path, place: Place) -> JSON:
    """The outcome of each case, its messages, and its properties."""
    cases: dict[str, JSON] = {}
    for case in ElementTree.parse(path).iter("testcase"):
        ends: list[JSON] = [
            [each.tag, place.without_paths(each.get("message") or ""),
             place.without_paths(each.text or "")]
            for each in case
            if each.tag != "properties"
        ]  # fmt: skip
        properties: list[JSON] = [
            [each.get("name"), place.without_paths(each.get("value") or "")]
            for each in case.iter("property")
            if "per_s" not in (each.get("name") or "")
        ]
        name = f"{case.get('classname')}::{case.get('name')}"
        cases[name] = {"ends": ends, "properties": properties}
    return cases


def report_of(text: str, place: Place) -> tuple[list[str], list[str]]:
    """The report's visible text, one element per line, and a digest of every image in it."""
    pictures = [
        hashlib.sha256(base64.b64decode(data)).hexdigest()[:16]
        for data in re.findall(r"data:image/[\w+.-]+;base64,([\w+/=]+)", text)
    ]
    text = re.sub(r"(?s)<(script|style)\b.*?</\1>", "", text)
    text = place.without_paths(html.unescape(re.sub(r"<[^>]*>", "\n", text)))
    lines = [" ".join(line.split()) for line in text.split("\n")]
    lines = [line for line in lines if line]
    start = len(lines) - lines[::-1].index("Provenance")
    for i in range(start, lines.index("Glossary", start) - 1):
        if lines[i] in PROVENANCE:
            lines[i + 1] = f"<{lines[i]}>"
    return lines, pictures


def folder_of(folder: Path, place: Place) -> JSON:
    """A run folder's files, and the content of its index without times."""
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    db = sqlite3.connect(f"file:{folder / 'index.sqlite'}?mode=ro", uri=True)
    try:
        images: dict[str, JSON] = {
            key: {
                "what": what, "path": path, "sha256": sha256,
                "file": hashlib.sha256((folder / path).read_bytes()).hexdigest() == sha256,
            }
            for key, what, path, sha256 in db.execute(
                "SELECT key, what, path, sha256 FROM images ORDER BY key"
            )
        }  # fmt: skip
        scores: dict[str, JSON] = {
            f"{key} {judge}": [round(value, 6) for value in values]
            for key, judge, *values in db.execute("SELECT * FROM scores ORDER BY key, judge")
        }
        metrics: dict[str, JSON] = {
            f"{key} {metric}": round(value, 6)
            for key, metric, value in db.execute("SELECT * FROM metrics ORDER BY key, metric")
        }
        features: dict[str, JSON] = {
            f"{key} {judge}": hashlib.sha256(vector).hexdigest()[:16]
            for key, judge, vector in db.execute("SELECT * FROM features ORDER BY key, judge")
        }
        meta: dict[str, JSON] = {
            name: types_of(json.loads(value)) if name == "provenance" else value
            for name, value in db.execute("SELECT name, value FROM meta ORDER BY name")
        }
        work: dict[str, JSON] = dict(
            db.execute("SELECT stage, SUM(images) FROM work GROUP BY stage ORDER BY stage")
        )
        rows: dict[str, JSON] = {
            name: [list(row) for row in db.execute(query)] for name, query in TABLES.items()
        }
    finally:
        db.close()
    return {
        "files": [name for name in files if not name.startswith(("images/", "index.sqlite-"))],
        "images": images,
        "scores": scores,
        "metrics": metrics,
        "features": features,
        "meta": meta,
        "work": work,
        **rows,
        "results": {
            name: results_of((folder / name).read_text(), place)
            for name in files
            if name.endswith(".json") and name != "writer.json"
        },
    }


# --- comparison


def differences(before: JSON, after: JSON, path: str = "") -> Iterator[tuple[str, str, str]]:
    """Every difference, as its path and the values before and after.

    The order of an object's names counts as a difference.
    """
    if isinstance(before, dict) and isinstance(after, dict):
        for name in dict.fromkeys((*before, *after)):
            if name not in after:
                yield f"{path}/{name}", shown(before[name]), "(nothing)"
            elif name not in before:
                yield f"{path}/{name}", "(nothing)", shown(after[name])
        both = [name for name in before if name in after]
        if both != (order := [name for name in after if name in before]):
            yield f"{path}: order", shown(list(both)), shown(list(order))
        for name in both:
            yield from differences(before[name], after[name], f"{path}/{name}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for i, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from differences(old, new, f"{path}[{i}]")
    elif isinstance(before, list) and isinstance(after, list):
        at = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), None)
        at = min(len(before), len(after)) if at is None else at
        yield (
            f"{path}: {len(before)} and {len(after)} entries, which differ from [{at}] on",
            shown(before[at : at + 3]),
            shown(after[at : at + 3]),
        )
    elif type(before) is not type(after) or before != after:
        yield path, shown(before), shown(after)


def shown(value: JSON) -> str:
    """JSON cut to 300 characters."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 300 else f"{text[:300]}..."


def compare(before: Path, after: Path) -> int:
    """Print every difference of two records. Returns 1 if there is any, else 0."""
    found = list(differences(json.loads(before.read_text()), json.loads(after.read_text())))
    for path, old, new in found:
        print(f"{path}\n  before  {old}\n  after   {new}")
    print(f"{len(found)} differences")
    return 1 if found else 0


# --- a kept run


def go_on(place: Place, run: Path) -> int:
    """Repeat the commands that made a run, on a copy of its folder.

    Returns 1 if they generate or score anything, or change the folder's content, the times of its
    images included; otherwise 0.
    """
    copy = place.work / "run"
    shutil.copytree(run, copy)
    before, old = made(copy), folder_of(copy, place)
    for name, cases, options in (
        ("word", ("benchmarks",), (f"--report={place.work / 'report.html'}",)),
        ("lerp", CASES, LERP),
    ):
        done = pytest_(place, *cases, *grid_options(place.work, name), *options)
        if done.returncode not in (0, 1):
            print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
            print(f"{name}: exit code {done.returncode}")
            return 1
    after, new = made(copy), folder_of(copy, place)
    # The folder's results and latest command are those of the last command, so they may differ.
    changed = [
        each
        for each in differences(old, new)
        if not each[0].startswith(("/meta/", "/results/results.json", "/files"))
    ]
    for path, was, now in changed:
        print(f"{path}\n  before  {was}\n  after   {now}")
    generated, scored = len(after[0] - before[0]), after[1] - before[1]
    print(f"{generated} images generated, {scored} scored, {len(changed)} differences")
    return 1 if generated or scored or changed else 0


def made(folder: Path) -> tuple[set[tuple[str, str]], int]:
    """The images in a folder's index with the times at which they were made; and the number of
    images scored.
    """
    db = sqlite3.connect(f"file:{folder / 'index.sqlite'}?mode=ro", uri=True)
    try:
        images = {(key, time) for key, time in db.execute("SELECT key, made FROM images")}
        (scored,) = db.execute("SELECT TOTAL(images) FROM work WHERE stage = 'score'").fetchone()
    finally:
        db.close()
    return images, int(scored)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0, or 1 if a comparison finds a difference or a kept run has to do work again."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.characterise",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    do = parser.add_mutually_exclusive_group(required=True)
    do.add_argument("-o", "--output", type=Path, metavar="FILE.json", help="record to write")
    do.add_argument(
        "--compare", type=Path, nargs=2, metavar=("BEFORE", "AFTER"), help="records to compare"
    )
    do.add_argument(
        "--continue", type=Path, metavar="RUN", dest="continued",
        help="a run folder that --keep made, to give its commands again on a copy",
    )  # fmt: skip
    parser.add_argument("--keep", type=Path, metavar="RUN", help="keep the first run's folder here")
    parser.add_argument(
        "--checkout", type=Path, default=CHECKOUT, metavar="FOLDER",
        help="code to run [default: the checkout that this file is in]",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if options.compare:
        return compare(*options.compare)
    if options.keep is not None and options.keep.exists():
        parser.error(f"--keep: expected a new folder, got {options.keep}, which exists")
    with tempfile.TemporaryDirectory(prefix="characterise-") as folder:
        place = Place(options.checkout.resolve(), Path(folder).resolve())
        if options.continued:
            return go_on(place, options.continued)
        found = record(place, keep=options.keep)
    text = json.dumps(asdict(found), indent=1, ensure_ascii=False) + "\n"
    options.output.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
