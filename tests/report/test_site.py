"""The site of several runs: what is comparable is ranked and compared, the rest says why not."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import looks
import pytest
from verbs import verb

from analogy.core.records import UNSTEERED
from analogy.report import boards, overview
from analogy.report import site as sites
from analogy.report.html import write_report

ROLE = re.compile(r'data-label="role">(new|old), .*"file">(.*?)</td>')
GRID = {"sequential": None, "seeds": "0", "limit": "8", "target": None}


def planted(mean):
    """Margins with this mean where an image is steered; noise of sd 0.08 that runs share."""

    def margin(job):
        noise = 0.08 * looks.normal(job.pair.source_prompt, job.alpha)
        return noise + (mean if job.alpha != UNSTEERED else -0.3)

    return margin


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs that are nearly the same, a better one, and one of other strengths."""
    path = tmp_path_factory.mktemp("runs")
    for name, mean, more in (
        ("good", 0.3, {}),
        ("<b>one", 0.1, {"method": "lerp"}),
        ("two", 0.1, {"method": "span"}),
        ("other", 0.1, {"alphas": "0.7"}),
    ):
        jitter = {"two": 0.05}.get(name, 0.0)
        looks.plant(lambda job, m=mean, j=jitter: planted(m)(job) + j * looks.normal(job.key))
        looks.run(path, **GRID, run_dir=str(path / "runs" / name), **more)
    return path / "runs"


@pytest.fixture(scope="module")
def entries(runs):
    return overview.overview([runs])


@pytest.fixture(scope="module")
def site(entries, tmp_path_factory):
    path = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sites, "write_report", one_report)
        return path, sites.write_site(entries, path)


def one_report(results, path, *, folder):
    """The report of one run; of the others a page, for speed."""
    if results.header.subject.method == "span":
        write_report(results, path, folder=folder)
    else:
        path.parent.mkdir(exist_ok=True)
        path.write_text("a report")


def test_only_what_is_comparable_is_ranked(entries):
    (board,) = boards.boards(entries)
    names = {one.run: entries[one.run].folder.name for one in board.ranked}
    places = {names[one.run]: (one.first, one.last) for one in board.ranked}
    assert places == {"good": (1, 1), "<b>one": (2, 3), "two": (2, 3)}
    assert [len(one.like) for one in board.ranked] == [0, 1, 1]
    assert board.n_pairs == 16
    assert board.unranked == {}


def test_a_site_has_every_run_and_nothing_is_fetched(site, entries):
    path, written = site
    assert (written.runs, written.reports, written.comparisons, written.faults) == (4, 4, 3, ())
    index = (path / "index.html").read_text()
    links = set(re.findall(r'href="([^"#]+)"', index))
    assert len([link for link in links if link.startswith("runs/")]) == 4
    assert all((path / link).is_file() for link in links)
    assert "<b>one" not in index
    for page in path.rglob("*.html"):
        assert not re.search(r'(src|href)="(https?:)?//', page.read_text())


def test_the_later_run_is_compared_with_the_earlier_one(site, entries):
    """The roles on a page are those of its figures; settings that differ are in the index."""
    path, _ = site
    _, _, compared = sites._compared(entries, 1)
    [(places, found)] = compared.items()
    assert (found.new, found.old) == places  # the latest run is first in the list
    assert found.comparison.new == str(entries[found.new].file)
    dates = {str(entry.file): entry.date for entry in entries}
    for page in (path / "compare").iterdir():
        (_, new), (_, old) = ROLE.findall(html.unescape(page.read_text()))
        assert dates[new] >= dates[old]
    assert "<small>alphas [0.7]</small>" in (path / "index.html").read_text()


def test_a_refusal_says_why(site):
    path, _ = site
    index = (path / "index.html").read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', index, re.DOTALL)[1])
    assert sorted(outcome for row in data["outcomes"] for outcome in row)[:3] == [-1, -1, -1]
    assert any("alphas: baseline" in reason for reason in data["reasons"])
    compared = {page.stem for page in (path / "compare").iterdir()}
    for j, row in enumerate(data["outcomes"]):
        for i, outcome in enumerate(row):
            assert (f"{data['ids'][i]}--{data['ids'][j]}" in compared) == (outcome == -1)


def test_a_site_is_written_again_for_new_results_alone(site, entries, monkeypatch):
    monkeypatch.setattr(sites, "write_report", one_report)
    path, _ = site
    assert sites.write_site(entries, path).reports == 0
    next((path / "runs").iterdir()).unlink()
    assert sites.write_site(entries, path, most_comparisons=1).reports == 1


def test_comparisons_have_a_limit(entries):
    outcomes, _, compared = sites._compared(entries, 1)
    assert len(compared) == 1
    assert sum(row.count(-2) for row in outcomes) == 2


def test_the_verb_says_what_it_wrote(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(sites, "write_report", lambda results, path, folder: None)
    result = verb("site", runs, "-o", tmp_path / "site", "--comparisons=0")
    assert result.exit_code == 0, result.stderr
    assert "4 runs" in result.stdout
    assert Path(tmp_path / "site" / "index.html").is_file()
