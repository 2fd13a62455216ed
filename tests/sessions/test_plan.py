"""A plan, the time that is left, and what a long run says: with an engine and a clock of our own.

Nothing is drawn, and no test waits.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import looks
import pytest
from cases import ROOT
from verbs import verb

from analogy.core.images import to_png
from analogy.generation import execution
from analogy.generation.engine import GeneratedBatch, ScoredBatch
from analogy.models import sources
from analogy.sessions import forecast as forecasts
from analogy.sessions import plan as plans
from analogy.sessions import rates, running
from analogy.sessions.session import Session
from analogy.studies import study

pytest_plugins = ["pytester"]

GRID = {"sequential": None, "metrics": "ssim"}
N_IMAGES = 2 * 20 * 3 * 3
"""Categories, pairs, seeds, and alphas with 0."""


class Clock:
    """Seconds that pass only with work; ``warm_up``: those more that the first batch takes."""

    now = 0.0
    warm_up = 0.0

    def perf_counter(self) -> float:
        return self.now


def seconds(job) -> float:
    """What an image takes."""
    return 1.8 + 0.4 * (len(job.pair.source_prompt) % 5) / 4


@pytest.fixture
def clock(monkeypatch):
    """The clock of the engine below and of what is recorded of its work."""
    clock = Clock()

    class Engine(looks.Engine):
        """Images of 1.8 to 2.2 s, by pair; scores of 0.2 s."""

        def generate(self, batches):
            for batch in batches:
                looks.plan.made += batch
                clock.now += sum(seconds(job) for job in batch) + clock.warm_up
                clock.warm_up = 0.0
                yield batch, GeneratedBatch([self._png] * len(batch), {}, 0.0, None), None

        def score(self, batches, read):
            for batch in batches:
                clock.now += 0.2 * len(batch)
                margins = [looks.plan.margin(job) for job in batch]
                yield batch, ScoredBatch([(m, 0.0, m) for m in margins], None), None

    monkeypatch.setattr(looks, "engine", Engine)
    monkeypatch.setattr(execution, "time", clock)
    monkeypatch.setattr(forecasts, "time", clock)
    looks.plant(looks.margin)
    return clock


@pytest.fixture
def preview(tmp_path):
    """Make the study of a request as a plan has it."""
    request = looks.request(tmp_path, **GRID)
    with study.preview(request, tmp_path / "scratch") as found:
        yield found


def files_of(path: Path) -> dict[Path, bytes]:
    """All files but those beside an index that is open, which readers have, too."""
    files = [file for file in path.rglob("*") if file.is_file() and "sqlite-" not in file.name]
    return {file: file.read_bytes() for file in files}


def test_a_round_of_batches_is_measured_and_goes_nowhere(clock, preview, tmp_path):
    planned, path = preview
    found = rates.measured(planned, planned.jobs(), tmp_path, clock=clock.perf_counter)
    assert found.images == 8
    assert 1 / 2.2 <= found.generate <= 1 / 1.8
    assert found.score == pytest.approx(5.0)
    assert found.image_bytes == len(to_png(looks.np.full((64, 64, 3), 90, looks.np.uint8)))
    assert found.folder is None
    assert not path.exists()


def test_a_plan_counts_what_is_there_and_takes_its_speed_from_it(clock, tmp_path):
    request = looks.request(tmp_path, **GRID)
    session = Session.open(request)
    jobs = session.study.jobs()
    session.study.generate(jobs[:90])
    session.study.score(jobs[:30])
    session.study.close()
    before = files_of(tmp_path)
    plan = plans.make_plan(request)
    assert (plan.images, plan.missing, plan.unscored) == (N_IMAGES, 270, 330)
    assert plan.rates.folder == str(tmp_path / "run")
    assert plan.rates.images == 90
    made = clock.now - 30 * 0.2
    assert plan.seconds == pytest.approx(270 * made / 90 + 330 * 0.2)
    assert files_of(tmp_path) == before
    other = plans.make_plan(replace(request, steps=3), measures=False)
    assert other.missing == N_IMAGES
    assert other.rates is None
    assert other.seconds is None


def test_a_smaller_run_is_judged_by_the_margins_that_are_there(clock, tmp_path):
    request = looks.request(tmp_path, **GRID)
    assert plans.make_plan(request, measures=False).spread_of.name == "embedded.json"
    session = Session.open(request)
    session.study.generate(session.study.jobs())
    session.study.score(session.study.jobs())
    session.study.close()
    plan = plans.make_plan(request)
    assert plan.spread_of == tmp_path / "run"
    first, *others = plan.smaller
    assert (first.design.pairs, first.design.seeds, first.images) == (20, 3, N_IMAGES)
    # Means of 0.3 and -0.3, sd 0.08 and 0.04, are decided, a mean of 0 is not, 0.06 is near.
    assert first.design.decided in (2, 3)
    assert first.design.of == 4
    one = next(each for each in others if each.design.seeds == 1)
    assert one.images == 20 * 2 * 3
    assert plan.seconds == 0.0
    assert first.seconds > 3 * one.seconds * 0.99


@pytest.mark.parametrize("warm_up", [0.0, 60.0])
def test_the_time_left_is_right_within_a_fifth_after_the_first_tenth(clock, tmp_path, warm_up):
    clock.warm_up = warm_up
    session = Session.open(looks.request(tmp_path, **GRID))
    known = []
    report = Session.report

    def spy(self, count, **settings):
        report(self, count, **settings)
        known.append((clock.now, self._forecast.seconds, self._forecast.tried))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "report", spy)
        running.run_cases(session)
    end = clock.now
    session.study.close()
    after = [(now, left) for now, left, done in known if done >= N_IMAGES / 10]
    assert len(after) > 30
    for now, left in after[:-3]:
        assert left == pytest.approx(end - now, rel=0.2)


def test_a_forecast_knows_nothing_before_the_first_image(clock, tmp_path):
    session = Session.open(looks.request(tmp_path, **GRID))
    forecast = forecasts.Forecast(session.study, session.study.jobs())
    assert forecast.seconds is None
    assert not forecast.is_known
    session.study.generate(session.study.jobs()[:8], forecast.add)
    assert forecast.is_known
    session.study.close()


def test_a_long_run_says_so_once_and_a_short_one_does_not(clock, tmp_path, capsys):
    session = Session.open(looks.request(tmp_path, **GRID))
    running.run_cases(session)
    session.study.close()
    said = capsys.readouterr().err.splitlines()
    lines = [line for line in said if line.startswith("plan ")]
    assert len(lines) == 1
    assert "360 images to make: about" in lines[0]
    assert "min and" in lines[0]
    assert all(len(line) <= 80 for line in said)
    short = looks.request(tmp_path, run_dir=str(tmp_path / "short"), limit="6", **GRID)
    session = Session.open(replace(short, seeds=(0,)))
    running.run_cases(session)
    session.study.close()
    assert "plan " not in capsys.readouterr().err


def test_the_verb_prints_a_table_and_json(clock, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = verb(
        "plan", "--limit=6", "--seeds=0", "--steps=2", "--no-measure", "--json=plan.json",
        "--run-dir=run", "--sequential", "--categories=color",
    )  # fmt: skip
    assert result.exit_code == 0
    assert "images    24: 0 already there, 24 to make, 24 to score" in result.stdout
    assert "time      unknown" in result.stdout
    assert "download  nothing" in result.stdout
    assert all(len(line) <= 80 for line in result.stdout.splitlines() if "/" not in line)
    data = json.loads(Path("plan.json").read_text())
    assert (data["schema_version"], data["images"], data["seconds"]) == (1, 24, None)
    assert data["designs"][0]["pairs"] == 6
    assert not Path("run").exists()


def test_a_model_that_is_not_here_is_a_download(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_check_hub_index", lambda *_, **__: None)
    monkeypatch.chdir(tmp_path)
    result = verb("plan", "--model=nobody/nothing", "--limit=6", "--seeds=0")
    assert result.exit_code == 0
    assert "hf download nobody/nothing" in result.stdout
    assert "images    192: 0 already there" in result.stdout


def test_under_pytest_nothing_runs(clock, pytester):
    result = pytester.runpytest_inprocess(
        str(ROOT / "benchmarks" / "test_margin.py"), f"--rootdir={ROOT}",
        f"--config-file={ROOT / 'pyproject.toml'}", "-p", "no:cacheprovider", "--plan",
        "--limit=6", "--seeds=0", f"--engine={looks.ENGINE}", "--run-dir=run", "-k", "color",
    )  # fmt: skip
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["images    24: 0 already there, 24 to make*"])
    result.stdout.no_fnmatch_line("*passed*")
    assert not (pytester.path / "run").exists()
