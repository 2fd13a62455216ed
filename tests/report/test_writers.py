"""The writers, and the option that chooses them."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace

import looked
import pytest
from reported import draw_results
from verbs import verb

import analogy
from analogy.core.errors import FieldError
from analogy.core.files import PlaceError
from analogy.core.records import Cell
from analogy.core.registry import ExtensionError, UnknownNameError
from analogy.report.numbers import interval
from analogy.report.writers.cells_csv import COLUMNS, LOOK_COLUMNS
from analogy.results.comparison import compare
from analogy.results.model import Ceiling, Mean, QualityFigures
from analogy.results.writing import to_json
from analogy.settings.request import RunRequest
from analogy.writers import WRITERS, Context, Output, by_suffix, write


class Own:
    """Writers that are not the suite's own."""

    def __init__(self, suffixes, error=None):
        self.suffixes = suffixes
        self.error = error

    def write(self, results, path, context):
        if self.error is not None:
            raise self.error
        path.write_text(f"{results.header.subject.method} in {context.folder.name}")


mine = Own((".own", ".csv"))
faulty = Own((), KeyError("cell"))
full = Own((), OSError("No space left on device"))
no_writer = object()


@pytest.fixture
def results(make_study):
    study = make_study(alphas=(0.5, 1.0))
    return draw_results(study)


@pytest.fixture
def written(results, tmp_path):
    """What a writer makes of results."""

    def text(writer, results=results, **context):
        path = tmp_path / "out" / "file"
        write(Output(str(path), writer), results, Context(tmp_path, **context))
        return path.read_text("utf-8")

    return text


def test_json_is_the_results(results, written):
    assert json.loads(written("json")) == json.loads(json.dumps(to_json(results)))


def test_csv_has_a_row_for_each_cell(results, written):
    rows = list(csv.DictReader(io.StringIO(written("csv"))))
    assert list(rows[0]) == [*COLUMNS]
    for row, (cell, figures) in zip(rows, results.analysis.cells.items(), strict=True):
        assert (row["category"], float(row["alpha"])) == cell
        assert row["n"] == str(figures.margin.n)
        assert row["verdict"] == figures.margin.verdict
        for name in ("mean", "ci_low", "ci_high", "p", "success_rate", "effect_size"):
            assert float(row[name]) == getattr(figures.margin, name)
        assert float(row["p_holm"]) == figures.p_holm
        assert float(row["gain"]) == figures.gain.mean
        assert float(row["gain_ci_low"]) == figures.gain.ci_low
        assert float(row["gain_ci_high"]) == figures.gain.ci_high
        assert (row["ceiling_share"], row["target_share"]) == ("", "")  # these have neither


def test_csv_has_the_metrics_and_no_formula(results, written):
    cell, figures = next(iter(results.analysis.cells.items()))
    odd = Cell("=1+1,2", cell.alpha)
    mean = figures.margin.mean
    ceiling = Ceiling(6, 2 * mean, *[math.nan] * 2, 0.0, 0.0, *[math.nan] * 2, 1.0, False)
    strange = replace(figures, cell=odd, gain=None)
    known = replace(figures, ceiling=ceiling, target_share=0.25)
    analysis = replace(results.analysis, cells={odd: strange, cell: known})
    quality = QualityFigures(cells={cell: {"psnr": Mean(math.inf, math.nan, math.nan, 6, 1)}})
    first, second = csv.DictReader(
        io.StringIO(written("csv", replace(results, analysis=analysis, quality=quality)))
    )
    assert first["category"] == "'=1+1,2"
    assert (first["gain"], first["psnr"]) == ("", "")
    assert second["psnr"] == "inf"
    assert (second["ceiling_share"], second["target_share"]) == ("0.5", "0.25")


def test_markdown_has_the_verdicts_and_the_comparison(results, written):
    comparison = compare(results, results)
    lines = written("md", comparison=comparison).splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
    head, rule, *cells, overall = rows
    assert len(head) == len(rule) == 8
    for row, (cell, figures) in zip(cells, results.analysis.cells.items(), strict=True):
        assert row[:3] == [f"`{cell.category}`", f"{cell.alpha:g}", str(figures.margin.n)]
        assert row[3] == f"{figures.margin.mean:+.4f}".replace("-", "\N{MINUS SIGN}")
        assert row[7].startswith(figures.margin.verdict.replace("_", " "))
    assert overall[:2] == ["**overall**", "all"]
    assert lines[-1].startswith("Against the baseline ")
    assert f": equal within the tolerance in {len(cells)} of {len(cells)} cells" in lines[-1]


def test_looks_of_a_sequential_run_are_written(make_study, written):
    results = looked.draw_looks(make_study(pairs=looked.pairs()[:20], sequential=True))
    cells = results.analysis.cells
    rows = list(csv.DictReader(io.StringIO(written("csv", results))))
    assert list(rows[0]) == [*COLUMNS, *LOOK_COLUMNS]
    for row, figures in zip(rows, cells.values(), strict=True):
        stop = figures.stop
        for name in ("look", "looks", "seeds", "images", "p_seq"):
            assert float(row[name]) == getattr(stop, name)
        assert float(row["confidence"]) == 1 - 2 * stop.level
        assert float(row["gain_confidence"]) == 1 - 2 * figures.gain_stop.level
        assert (row["icc"] == "") == (stop.seeds == 1)
    assert [row["stopped_early"] for row in rows] == ["false", "true"]
    text = written("md", results)
    assert "95%" not in text
    assert f"{results.saved.images} of the full grid's {results.saved.of} images" in text
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    head, rule, *rows, overall = lines
    assert len(head) == len(rule) == len(overall) == 11
    for row, figures in zip(rows, cells.values(), strict=True):
        stop, margin = figures.stop, figures.margin
        assert row[2:5] == [f"{stop.look} of 3", str(stop.pairs), str(stop.seeds)]
        assert row[6] == f"{100 * (1 - 2 * stop.level):.6g}% {interval(margin, 4)}"
    assert [row[-1] for row in rows] == ["inconclusive", "success, stopped early"]


def test_names_of_strangers_are_no_markup(results, written):
    cell, figures = next(iter(results.analysis.cells.items()))
    odd = Cell("a|b `@team` <img>\n# c", cell.alpha)
    analysis = replace(results.analysis, cells={odd: replace(figures, cell=odd)})
    text = written("md", replace(results, analysis=analysis))
    assert "| `a\\|b '@team' <img>\N{REPLACEMENT CHARACTER}# c` | 0.5 |" in text


def test_a_writer_is_chosen_by_the_suffix_or_named():
    assert Output.parse("a/b.CSV") == Output("a/b.CSV", "csv")
    assert Output.parse("r.htm") == Output("r.htm", "html")
    assert Output.parse("md=/dev/stdout") == Output("/dev/stdout", "md")
    assert Output.parse("csv=a=b.json") == Output("a=b.json", "csv")
    assert Output.parse("./seed=1.json") == Output("./seed=1.json", "json")
    assert str(Output.parse("test_writers:mine=a.own")) == "test_writers:mine=a.own"


def test_an_installed_writer_has_its_suffixes_but_those_of_built_in_ones(install):
    assert by_suffix("a.own") is None
    install("analogy.writers", "mine", "test_writers:mine")
    assert by_suffix("a.own") == "mine"
    assert by_suffix("a.csv") == "csv"
    assert WRITERS.get("mine") is mine


@pytest.mark.parametrize("text", ["a.cvs", "a", ".", "mdd=a", "csv"])
def test_an_unknown_suffix_or_name_is_refused(text):
    with pytest.raises(UnknownNameError, match="json, html, csv, md, or package"):
        Output.parse(text)


def test_a_fault_of_an_own_writer_names_it(written):
    with pytest.raises(ExtensionError, match=r"writer test_writers:faulty: .*KeyError: 'cell'"):
        written("test_writers:faulty")
    with pytest.raises(OSError, match="No space left"):
        written("test_writers:full")
    assert not issubclass(ExtensionError, PlaceError)


def test_a_request_takes_files_in_many_forms(tmp_path):
    csv_file, md_file = Output("a.csv", "csv"), Output("b", "md")
    assert RunRequest(write="a.csv").write == (csv_file,)
    assert RunRequest(write=["a.csv", md_file]).write == (csv_file, md_file)
    assert RunRequest(write=tmp_path / "a.csv").write[0].writer == "csv"
    assert RunRequest().write == ()
    for wrong in (3, [None], "a.cvs", "mdd=a"):
        with pytest.raises(FieldError) as refused:
            RunRequest(write=wrong)
        assert refused.value.place == "write"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("a.cvs", "got 'a.cvs'; did you mean '.csv'?"),
        ("mdd=a", "got 'mdd'; did you mean 'md'?"),
        ("no_such_module:it=a", "writer no_such_module:it: expected no_such_module:it to be imp"),
        ("test_writers:no_writer=a", "expected an object with what Writer asks for, got object"),
        ("md=.", "expected a file that can be written, got ."),
        ("a.csv,md=./a.csv", "expected another file than that of --write, which it would replace"),
        ("results.json", "expected another file than that of --results, which it would replace"),
    ],
)
def test_what_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch, given, said):
    monkeypatch.chdir(tmp_path)
    result = verb("run", "--model=no-such-model", f"--write={given}")
    assert result.exit_code == 2
    assert result.stderr.startswith("analogy: --write: ")
    assert said in result.stderr


def test_a_missing_package_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("analogy.writers.find_spec", lambda name: None)
    for option, flag in (("--write=r.html", "--write"), ("--report=r.txt", "--report")):
        result = verb("run", "--model=no-such-model", option)
        assert result.exit_code == 2
        said = f"analogy: {flag}: expected jinja2 and matplotlib, got no jinja2 and no matplotlib;"
        assert said in result.stderr


def test_report_chooses_by_the_suffix(make_study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = make_study()
    write(Output("old.json", "json"), draw_results(study), Context(study.folder.path))
    for name in ("a.csv", "b.md"):
        assert verb("report", "old.json", "-o", name).exit_code == 0
    assert (tmp_path / "a.csv").read_text().startswith(",".join(COLUMNS[:3]))
    assert (tmp_path / "b.md").read_text().startswith("**")
    refused = verb("report", "old.json", "-o", "a.csv", "--full-images")
    assert refused.exit_code == 2
    assert "--full-images: expected an HTML report, got a.csv" in refused.stderr


def test_a_run_in_python_writes_them(tmp_path, pairs, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = analogy.run(
        pairs=pairs[:2], seeds=(0,), alphas=(1.0,), steps=1, dtype="float32", run_dir="run",
        metrics=("ssim",), write=["cells.csv", "test_writers:mine=a.txt"],
    )  # fmt: skip
    [row] = csv.DictReader(io.StringIO((tmp_path / "cells.csv").read_text()))
    [figures] = found.figures.analysis.cells.values()
    assert float(row["mean"]) == figures.margin.mean
    assert 0 < float(row["ssim"]) <= 1
    assert (tmp_path / "a.txt").read_text() == "word in run"
    assert not (tmp_path / "results.json").exists()
