"""Every fenced block of README.md and docs/*.md runs as it stands, or says before it why not.

- ``python``: in a folder of the page's own, in the page's one namespace.
- ``sh``: each command. ``analogy``, ``pytest`` and ``python -m`` run in this process, any other by
  bash. Each page has its copy of one prepared folder, in which the names that pages use exist: RUN,
  before.json, mine.csv. Settings that make a run small are given from outside, under those of the
  command line: the text is what runs.
- ``text`` right after a block: what it prints. Words are compared as they are, numbers nearly, and
  neither spaces nor the length of a rule, which follow the width of a number; a line that is, or
  ends with, ``...`` leaves out the rest.
- ``csv``, ``toml``: read by what reads them.

A comment before a block says what else holds of it: ``<!-- needs a GPU -->`` and the other needs,
whose commands, verbs and options are checked and not run; ``<!-- run by .ci/run -->``;
``<!-- file: NAME -->``, under which the block is written for those after it;
``<!-- installed -->``:
the entry points of the block's project are those of an installed package, whose files are here.
"""

from __future__ import annotations

import argparse
import configparser
import contextlib
import importlib
import importlib.util
import io
import json
import math
import os
import re
import runpy
import shlex
import shutil
import sqlite3
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path
from typing import NamedTuple

import pytest
import typer
from cases import ROOT
from verbs import verb

from analogy import cli
from analogy.core import registry
from analogy.evaluation import subjects
from analogy.models.places import shipped
from analogy.report import glossary
from analogy.settings.options import OPTIONS, parse_options
from analogy.settings.pairs import load_pairs
from analogy.studies import resolve

pytest_plugins = ["pytester"]

PAGES = ["README.md", *(f"docs/{file.name}" for file in sorted((ROOT / "docs").glob("*.md")))]
LANGUAGES = {"python", "sh", "text", "csv", "toml"}
NEEDS = re.compile(r"needs (a GPU|the network|a quiet machine|an environment of its own)")

FENCE = re.compile(
    r"(?:^<!-- (?P<note>.*?) -->\n)?^```(?P<language>.*)\n(?P<text>(?s:.*?))^```$", re.MULTILINE
)
NUMBER = re.compile(r"[-+]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?")

#: As long as its table is wide, which follows the digits of figures.
RULE = re.compile(r"-{3,}")

#: What a run is, unless its command says more: one category, one strength, one seed.
SMALL = {"limit": "10", "categories": "color", "alphas": "1", "seeds": "0"}
#: Pages whose commands are small as they stand.
AS_THEY_STAND = {"docs/tutorial.md"}
#: Pages that draw no images: what they print is the same to the last digit.
EXACT = {"docs/verdict.md"}
#: Options of programs that would take minutes, before those that the documentation gives.
QUICK = {
    "analogy.calibration": "--repetitions=100 --resamples=100 --workers=1",
    "tools.distort": "-n=8",
    "tools.metric_timing": "-n=8 --inception=2 --repeat=1",
}
#: Commands whose exit code 1 is a verdict.
VERDICTS = {"run", "compare"}
#: What sets up an environment: only in blocks that are not run here.
SET_UP = {"python3", "python3.11", "pip", ".", "export", "tox", "npm"}


class Block(NamedTuple):
    page: str
    line: int
    note: str
    language: str
    text: str
    shown: str | None  # what the page says that it prints

    def __str__(self) -> str:
        return f"{self.page}, line {self.line}"


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page."""
    text = (ROOT / page).read_text("utf-8")
    found = list(FENCE.finditer(text))
    assert 2 * len(found) == len(re.findall(r"^\s*(?:```|~~~)", text, re.MULTILINE)), page
    made = []
    for i, one in enumerate(found):
        after = found[i + 1] if i + 1 < len(found) else None
        is_output = (
            after and after["language"] == "text" and not text[one.end() : after.start()].strip()
        )
        line = text.count("\n", 0, one.start("language")) + 1
        shown = after["text"] if is_output else None
        made.append(Block(page, line, one["note"] or "", one["language"], one["text"], shown))
    return made


def commands(text: str) -> list[list[str]]:
    """The commands of a shell block, as words; one with what its output is piped to."""
    found: list[list[str]] = []
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, "&&"]:
            if word in ("&&", ";"):
                found += [words] if words else []
                words = []
            else:
                words.append(word)
    return found


def program_of(words: list[str]) -> tuple[str, list[str]]:
    """A command's program and arguments; ``python -m X`` is the program X."""
    while re.match(r"\w+=", words[0]):
        words = words[1:]
    name = words[0].rpartition("/")[2]
    if name == "python" and words[1:2] == ["-m"]:
        return ("analogy" if words[2] == "analogy" else f"-m {words[2]}"), words[3:]
    return name, words[1:]


def check_output(shown: str, printed: str, *, nearness: float) -> None:
    """Hold what was printed to what a page shows."""
    left = printed.strip("\n").splitlines()
    skips = False
    for line in shown.strip("\n").splitlines():
        if line.strip() == "...":
            skips = True
            continue
        while left and skips and not same_line(line, left[0], nearness):
            left.pop(0)
        assert left, f"not printed: {line!r}, in\n{printed}"
        assert same_line(line, left[0], nearness), f"shown {line!r}\nprinted {left[0]!r}"
        left.pop(0)
        skips = False
    assert skips or not left, f"printed and not shown: {left}"


def same_line(shown: str, printed: str, nearness: float) -> bool:
    shown, printed = (RULE.sub("---", line) for line in (shown, printed))
    if shown.endswith("..."):
        shown = shown.removesuffix("...").rstrip()
        printed = " ".join(printed.split()[: len(shown.split())])
    if shown.split() == printed.split():
        return True
    if NUMBER.sub("#", shown).split() != NUMBER.sub("#", printed).split():
        return False
    sides = ([float(n.replace(",", "")) for n in NUMBER.findall(line)] for line in (shown, printed))
    return nearness > 0 and all(
        math.isclose(a, b, rel_tol=nearness, abs_tol=nearness / 5)
        for a, b in zip(*sides, strict=True)
    )


class Parsed(Exception):  # noqa: N818
    """A program's options were read; the rest is not wanted."""


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A folder with what pages name: a run, its results under several names, files of pairs."""
    folder = tmp_path_factory.mktemp("prepared")
    env = {f"ANALOGY_RUN_{name.upper()}": value for name, value in SMALL.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(resolve, "native_dtype", lambda device: "float32")
        assert verb("run", "--target", env=env).exit_code in (0, 1)
    [run] = (folder / ".analogy" / "runs").iterdir()
    shutil.copytree(run, folder / "RUN")
    for name in (
        "before.json",
        "fixtures/baselines/smoke.json",
        "fixtures/baselines/embedded.json",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "results.json", folder / name)
    shutil.copy(shipped("pairs.csv"), folder / "mine.csv")
    (folder / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "calibration.md", folder / "docs")
    with contextlib.closing(sqlite3.connect(run / "index.sqlite")) as db:
        rows = db.execute("SELECT what, path FROM images").fetchall()
    lines = ["pair_id,alpha,seed,file"]
    for what, path in ((json.loads(what), path) for what, path in rows):
        if what.get("method") in (None, "word"):  # unsteered images have none
            lines.append(f"{what['pair_id']},{what['alpha']},{what['seed']},RUN/{path}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    subprocess.run(["git", "init", "-q", folder], check=True)
    return folder


class Reader:
    """Does what a page says, in a folder of its own."""

    def __init__(self, page: str, pytester, monkeypatch) -> None:
        self.page = page
        self.pytester = pytester
        self.monkeypatch = monkeypatch
        self.names: dict[str, object] = {"__name__": page}
        self.small = {} if page in AS_THEY_STAND else SMALL

    def read(self, block: Block) -> None:
        """Run a block, and hold it to what the page shows of its output."""
        if block.note.startswith("file: "):
            Path(block.note.removeprefix("file: ")).write_text(block.text, "utf-8")
        if block.note == "run by .ci/run":
            self.find_in_ci(block)
        elif NEEDS.fullmatch(block.note):
            for words in commands(block.text):
                self.check_command(words)
        elif block.note == "installed":
            self.install(tomllib.loads(block.text)["project"])
        elif block.language == "python":
            printed = io.StringIO()
            # Blank lines above, so that a traceback has the page's own line.
            code = compile("\n" * block.line + block.text, str(ROOT / self.page), "exec")
            with contextlib.redirect_stdout(printed):
                exec(code, self.names)
            self.compare(block, printed.getvalue())
        elif block.language == "sh":
            self.compare(block, "".join(self.run(words) for words in commands(block.text)))
        elif block.language == "csv":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of few pairs
                Path("block.csv").write_text(block.text)
                assert load_pairs("block.csv")
        elif block.language == "toml":
            assert tomllib.loads(block.text)

    def install(self, project: dict) -> None:
        """Leave on the disk what ``pip install -e .`` does."""
        folder = Path(f"{project['name']}-{project['version']}.dist-info")
        folder.mkdir()
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
        )
        lines = [
            f"[{group}]\n" + "".join(f"{name} = {spec}\n" for name, spec in entries.items())
            for group, entries in project["entry-points"].items()
        ]
        (folder / "entry_points.txt").write_text("".join(lines))
        registry.rescan()

    def compare(self, block: Block, printed: str) -> None:
        if block.shown is not None:
            check_output(block.shown, printed, nearness=0 if self.page in EXACT else 0.05)

    def find_in_ci(self, block: Block) -> None:
        ci = (ROOT / ".ci" / "run").read_text()
        for words in commands(block.text):
            assert shlex.join(words) in ci, f"{block}: .ci/run does not run {shlex.join(words)}"

    def run(self, words: list[str]) -> str:
        """Run a command and give its output."""
        words, piped = ((words, []) if "|" not in words else
                        (words[: words.index("|")], words[words.index("|") + 1 :]))  # fmt: skip
        program, arguments = program_of(words)
        if program == "analogy":
            output = self.verb(arguments)
        elif program == "pytest":
            output = self.pytest(arguments)
        elif program.startswith("-m "):
            output = self.module(program.removeprefix("-m "), arguments)
        else:
            assert program not in SET_UP, f"{words}: say before the block what it needs"
            output = self.bash(words, "")
        return self.bash(piped, output) if piped else output

    def verb(self, arguments: list[str]) -> str:
        env = {
            f"ANALOGY_{of}_{name.upper()}": value
            for of in ("RUN", "METHODS")
            for name, value in self.small.items()
        }
        done = verb(*arguments, env=env)
        allowed = (0, 1) if arguments[0] in VERDICTS else (0,)
        assert done.exit_code in allowed, f"{arguments}: {done.exit_code}\n{done.output}"
        return done.stdout

    def bash(self, words: list[str], given: str) -> str:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-euc", shlex.join(words)], input=given, capture_output=True, text=True,
            env={**os.environ, "PATH": path}, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    def pytest(self, arguments: list[str], *, collect: bool = False) -> str:
        """Run pytest on the checkout; of the simulations of the statistics one, if asked for."""
        arguments = [
            str(ROOT / a) if re.match(r"(benchmarks|tests)\b", a) else a for a in arguments
        ]
        if not any(a.startswith(str(ROOT)) for a in arguments):
            arguments.append(str(ROOT / "benchmarks"))
        is_calibration = any(a.endswith("test_calibration.py") for a in arguments)
        done = self.pytester.runpytest_inprocess(
            f"--rootdir={ROOT}", f"--config-file={ROOT / 'pyproject.toml'}",
            "-p", "no:cacheprovider", "-p", "no:hypothesispytest",
            "-k", "test_power" if is_calibration else "not calibration",
            *(f"--{name}={value}" for name, value in self.small.items()),
            *(["--collect-only", "-q"] if collect else []),
            *arguments,
        )  # fmt: skip
        assert done.ret in (0, 1), done.stdout.str()
        counts = done.parseoutcomes() if done.ret == 1 else {}
        assert not counts.get("errors"), done.stdout.str()
        return done.stdout.str()

    def module(self, name: str, arguments: list[str]) -> str:
        """Run ``python -m`` and give its output."""
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            run_module(name, [*shlex.split(QUICK.get(name, "")), *arguments], self.monkeypatch)
        return printed.getvalue()

    def check_command(self, words: list[str]) -> None:
        """Hold a command to what exists, without running it: its verb, module and options."""
        program, arguments = program_of(words)
        if program == "pytest":
            self.pytest(arguments, collect=True)
        elif program == "analogy":
            check_verb(arguments)
        elif program.startswith("-m "):
            check_module(program.removeprefix("-m "), arguments)
        elif program == "tox":
            assert_tox(arguments)
        else:
            assert program in SET_UP, (
                f"{words}: a program that the documentation's test does not know"
            )


def run_module(name: str, arguments: list[str], patch: pytest.MonkeyPatch) -> None:
    """Run a module as ``python -m`` does; one that is imported by now is run again."""
    patch.setattr(sys, "argv", [name, *arguments])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=RuntimeWarning, module="runpy")
        runpy.run_module(name, run_name="__main__")


def check_verb(arguments: list[str]) -> None:
    """A verb's options, by typer and by the suite's own table."""
    command, rest = typer.main.get_command(cli.app), list(arguments)
    while hasattr(command, "resolve_command"):
        _, command, rest = command.resolve_command(command.context_class(command), rest)
    values = command.make_context("analogy", rest).params
    table = {option.name: values.get(option.key, option.default) for option in OPTIONS}
    parse_options(table.__getitem__)


def check_module(name: str, arguments: list[str]) -> None:
    """The arguments of ``python -m``, by its own parser."""
    assert importlib.util.find_spec(name), name
    if name in ("venv", "pip"):
        return
    parse = argparse.ArgumentParser.parse_args

    def stop(self, *given, **named):
        parse(self, *given, **named)
        raise Parsed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        with contextlib.suppress(Parsed):
            run_module(name, arguments, patch)
            pytest.fail(f"{name} reads no options")


def assert_tox(arguments: list[str]) -> None:
    """The environments that tox is asked for are there."""
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini")
    environments = set()
    for section in tox:
        before, _, rest = section.removeprefix("testenv:").partition("{")  # py{312,313}
        choices, _, after = rest.partition("}")
        environments |= {before + choice + after for choice in choices.split(",")}
    if "-e" in arguments:
        assert arguments[arguments.index("-e") + 1] in environments, arguments


@pytest.fixture
def reader(request, pytester, monkeypatch, prepared):
    """What reads a page, in a new copy of the prepared folder."""
    shutil.copytree(prepared, pytester.path, dirs_exist_ok=True)
    pytester.syspathinsert()  # as python -m has it
    for module in (resolve, subjects):  # bfloat16 prints other digits
        monkeypatch.setattr(module, "native_dtype", lambda device: "float32")
    # `--install-completion` asks which shell runs it, and CI's may be none that typer knows.
    monkeypatch.setattr("shellingham.detect_shell", lambda *_: ("bash", "/bin/bash"))
    yield Reader(request.param, pytester, monkeypatch)
    registry.rescan()


@pytest.mark.slow
@pytest.mark.parametrize("reader", PAGES, indirect=True)
def test_what_a_page_shows_runs(reader):
    for block in blocks(reader.page):
        print(block)  # seen where it fails
        reader.read(block)


@pytest.mark.parametrize("page", PAGES)
def test_nothing_escapes(page):
    """Each block has a language and a note that this file knows."""
    for block in blocks(page):
        assert block.language in LANGUAGES, block
        is_known = (
            not block.note
            or block.note in ("run by .ci/run", "installed")
            or block.note.startswith("file: ")
            or NEEDS.fullmatch(block.note)
        )
        assert is_known, block


def test_the_readmes_commands_are_what_ci_runs():
    [main, tests] = [b.text for b in blocks("README.md") if b.note == "run by .ci/run"]
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    [command] = [line for line in tests.splitlines() if not line.startswith("#")]
    assert command in lines
    assert ".venv/bin/tox -e bench\n" in main


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page):
    text = (ROOT / page).read_text("utf-8")
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert ((ROOT / page).parent / target).exists(), target


@pytest.mark.parametrize(
    ("shown", "printed", "agrees"),
    [
        ("mean +0.1000", "mean  +0.1010", True),
        ("mean +0.1000", "mean +0.2000", False),
        ("mean 1", "means 1", False),
        ("a\n...\nd", "a\nb\nc\nd", True),
        ("a\n...\ne", "a\nb\nc\nd", False),
        ("a", "a\nb", False),
        ("run at ...", "run at 12:30", True),
        ("mean +0.1000 ...", "mean +0.10000 of 3", True),
        ("metric  mean\n------------", "metric mean\n-----------", True),
        ("------------", "mean", False),
    ],
)
def test_output_is_held_to_what_is_shown(shown, printed, agrees):
    with contextlib.nullcontext() if agrees else pytest.raises(AssertionError):
        check_output(shown, printed, nearness=0.05)


@pytest.mark.parametrize(
    "command",
    ["analogy fly", "analogy run --stepz 3", "analogy run --steps x", "python -m analogy.nothing",
     "python -m tools.distort --what", "tox -e nothing", "frobnicate"],
)  # fmt: skip
def test_a_command_that_is_not_run_is_checked(command, pytester, monkeypatch):
    reader = Reader("README.md", pytester, monkeypatch)
    with pytest.raises((AssertionError, *typer.BadParameter.__mro__[:2], ValueError, SystemExit)):
        reader.check_command(shlex.split(command))


def test_figures_in_the_text_of_the_verdicts_example_are_those_it_prints():
    """docs/verdict.md: each margin and p in the prose is one that a block prints or is given."""
    text = (ROOT / "docs" / "verdict.md").read_text("utf-8")
    kept = "".join(block.text for block in blocks("docs/verdict.md"))
    prose = FENCE.sub("", text)
    figures = set(re.findall(r"[-+]?\b0\.\d{3,}\b", prose))
    assert figures
    known = set(re.findall(r"[-+]?\b\d\.\d{3,}\b", kept))
    assert figures <= known, figures - known


def test_the_glossary_is_the_table():
    """docs/glossary.md; ``python -m analogy.report.glossary > docs/glossary.md`` writes it."""
    assert (ROOT / "docs" / "glossary.md").read_text("utf-8") == glossary.page()
    assert all(term.definition for section in glossary.SECTIONS for term in section.terms)
