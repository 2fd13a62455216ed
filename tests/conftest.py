"""What the tests share: no network, the embedded models loaded once, studies with known scores."""

from __future__ import annotations

import functools
import gc
import os
import secrets

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported
# A session that a test starts is no worker of the one that runs the tests, though it inherits this.
if os.environ.pop("PYTEST_XDIST_WORKER", None):
    # Read when torch is imported. Every core has a worker already; threads of more would wait.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# Ray reads its token once in a process, and by itself keeps it in the home: pytester has others.
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))

from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import extras
import huggingface_hub
import leftovers
import pytest
import typer.main
import typer.testing
from hypothesis import HealthCheck, settings
from strangers import Hub, Stranger

from analogy.core import registry
from analogy.core.records import Pair, RunConfig
from analogy.judges.open_clip import Judge, find_judge
from analogy.models.generator import Generator
from analogy.models.loading import load_pipeline
from analogy.models.places import shipped
from analogy.models.sources import find_pipeline
from analogy.settings.pairs import load_pairs
from analogy.store.folder import RunFolder
from analogy.studies.study import Study

#: What a run imports. A session of pytester's forgets what it is the first to import: the tests
#: after it would patch and compare classes of another copy.
IMPORTED = [
    "statsmodels.stats.power", "statsmodels.stats.proportion",
    "analogy.sessions.running", "analogy.sessions.summary", "analogy.world.ceiling",
]  # fmt: skip
if find_spec("jinja2") and find_spec("matplotlib"):  # an extra
    IMPORTED.append("analogy.report.html")
for name in IMPORTED:
    import_module(name)

#: What changes how programs print, or what the suite's own options are: the tests know none of it.
AMBIENT = (
    "ANALOGY_", "CLICOLOR", "COLUMNS", "FORCE_COLOR", "GITHUB_", "LINES", "NO_COLOR", "PY_COLORS",
    "PYTEST_ADDOPTS", "PYTEST_PLUGINS", "TERMINAL_WIDTH", "TTY_", "TYPER_", "_TYPER_",
)  # fmt: skip
#: What is said to the tests themselves.
OURS = {"ANALOGY_SLOW", "ANALOGY_TEST_DEVICE"}

# How long an example takes is the machine's affair.
settings.register_profile(
    "any machine", settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
)
settings.load_profile("any machine")

#: Folders whose tests hold what torch, numpy and scipy compute.
NUMERICS = {"calibration", "metrics", "statistics", "steering", "world"}

COLORS = ("red", "blue", "green", "yellow", "purple", "orange", "pink", "brown")


@pytest.hookimpl(trylast=True)
def pytest_configure():
    """Refuse to leave out what must be tested, and give every test the same environment.

    Last, so that pytest's own output is as its environment says, and before any test is imported,
    since some packages read the environment once.
    """
    extras.check_required()
    for name in list(os.environ):
        if name.startswith(AMBIENT) and name not in OURS:
            del os.environ[name]
    os.environ["TERM"] = "xterm"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark what docs/development.md has one Python run."""
    for item in items:
        if item.path.parent.name in NUMERICS:
            item.add_marker("numerics")


def pytest_collection_finish():
    """Keep the garbage collector off what libraries and collection made."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish():
    """Let the interpreter collect it at its end, or nanobind takes it for leaked."""
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def _commands_are_built_once():
    """typer's runner builds every verb with all its options at each call, which takes 40 ms."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.testing, "_get_command", functools.cache(typer.main.get_command))
        yield


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_left_on_a_pipeline():
    """After every batch: no hook, no other processor, no scale of an adapter, no weight."""
    with pytest.MonkeyPatch.context() as patch:
        yield from leftovers.watched(patch)


@pytest.fixture(scope="session")
def model_source():
    """The embedded pipeline's files."""
    return find_pipeline("embedded", dtype="float32")


@pytest.fixture(scope="session")
def pipeline(model_source):
    """The embedded pipeline in float32."""
    return load_pipeline(model_source, device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def generator(pipeline):
    """Two steps with guidance: everything a run does, quickly."""
    return Generator(pipeline, steps=2, guidance=3.0, size=64)


@pytest.fixture(scope="session")
def judge_source():
    """The embedded judge's files."""
    return find_judge("embedded", None)


@pytest.fixture(scope="session")
def judge(judge_source):
    """The embedded judge."""
    return Judge(judge_source, device="cpu")


@pytest.fixture(scope="session")
def pairs():
    """Six pairs of one category and six of another: enough for a verdict on each."""
    return [
        *[
            Pair(f"color-{i}", "color", a, b, f"a {a} car", f"a {b} car")
            for i, (a, b) in enumerate(pairwise(COLORS[:7]))
        ],
        *[
            Pair(f"object-{i}", "object", "cup", "hat", f"a {a} cup", f"a {a} hat")
            for i, a in enumerate(COLORS[:6])
        ],
    ]


@pytest.fixture(scope="session")
def shipped_pairs():
    """The suite's 400 pairs."""
    return load_pairs(shipped("pairs.csv"))


@pytest.fixture(scope="session")
def config():
    """A small run of the embedded models in float32."""
    return RunConfig(
        model="embedded",
        clip_model="embedded",
        clip_pretrained=None,
        pairs=str(shipped("pairs.csv")),
        categories=None,
        alphas=(0.5, 1.0),
        seeds=(0, 1),
        method="word",
        steps=2,
        guidance=3.0,
        size=64,
        dtype="float32",
        device="cpu",
        batch_size=4,
        limit=None,
    )


@pytest.fixture
def make_study(tmp_path, config, pairs, model_source, judge_source):
    """Build a study without images; its run folder is new unless ``folder`` names one.

    That one's earlier study is closed: a folder has one writer.
    """
    made = []

    def build(
        *,
        pairs: list[Pair] = pairs,
        folder: Path | None = None,
        model=model_source,
        judge=judge_source,
        **settings,
    ) -> Study:
        folder = folder or tmp_path / f"run-{len(made)}"
        for earlier in made:
            if earlier.folder.path == folder:
                earlier.folder.close()
        study = Study(replace(config, **settings), pairs, model, judge, RunFolder(folder))
        made.append(study)
        return study

    yield build
    for study in made:
        study.folder.close()


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Have an installed package add a name to a seam, as ``pip install`` leaves it on the disk."""

    def installed(group: str, name: str, spec: str) -> None:
        folder = tmp_path / "packages" / f"{group.replace('.', '_')}_{name}-1.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        (folder / "entry_points.txt").write_text(f"[{group}]\n{name} = {spec}\n")
        monkeypatch.syspath_prepend(folder.parent)
        registry.rescan()

    yield installed
    monkeypatch.undo()
    registry.rescan()


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """Somebody whose files must run no code."""
    cache = tmp_path / "modules"
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(cache))
    monkeypatch.syspath_prepend(str(cache))
    place = tmp_path / "theirs"
    place.mkdir()
    return Stranger(place)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The hub's cache on this machine, empty."""
    place = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(place))
    return Hub(place)


@pytest.fixture
def fill():
    """Give each of a study's jobs the margin that ``margin(job)`` says, without any image."""

    def fill_scores(study: Study, margin, jobs=None) -> None:
        jobs = study.jobs() if jobs is None else jobs
        rows = [(margin(job), 0.0, margin(job)) for job in jobs]
        study.folder.add_scores(jobs, study.judge.fingerprint, rows, 0.5)

    return fill_scores


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory):
    """A complete run in the folder ``run``: two categories of six pairs, by another process."""
    import processes

    path = tmp_path_factory.mktemp("whole")
    processes.write_pairs(path)
    process, connection = processes.start(processes.run, path)
    processes.wait_for(connection, "done")
    process.join(600)
    return path
