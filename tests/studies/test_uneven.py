"""Pairs whose prompts differ in token count: left out of methods that mix them, and named."""

from __future__ import annotations

from dataclasses import replace

import diffusers
import pytest
import zoo

from analogy.core.errors import OptionError
from analogy.core.records import WHOLE, Pair, Window
from analogy.models.places import shipped
from analogy.models.sources import find_pipeline
from analogy.results.reading import from_json
from analogy.results.writing import to_json
from analogy.sessions.summary import unread_notes
from analogy.settings.pairs import UnevenPairsWarning
from analogy.settings.request import RunRequest
from analogy.store.folder import RunFolder
from analogy.studies.finding import left_out
from analogy.studies.run_methods import open_methods
from analogy.studies.study import Study
from analogy.studies.tokenizers import uneven_pairs

PAIRS = [
    Pair("c-1", "color", "red", "tan", "a red car", "a tan car"),
    Pair("c-2", "color", "red", "blue", "a red car", "a blue car"),
    Pair("c-3", "color", "tan", "red", "a tan hat", "a red hat"),
    Pair("o-1", "object", "cup", "hat", "a red cup", "a red hat"),
    Pair("o-2", "object", "hat", "car", "a red hat", "a red car"),
]


@pytest.fixture(scope="module")
def z_image(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "z-image"
    zoo.build("ZImagePipeline").save_pretrained(folder)
    return find_pipeline(str(folder), dtype="float32")


@pytest.fixture
def request_of(z_image, tmp_path):
    def made(**settings) -> RunRequest:
        return RunRequest(
            model=str(z_image.folder), dtype="float32", run_dir=str(tmp_path / "run"), size=32,
            steps=1, alphas=(0.5,), seeds=(0,), **settings,
        )  # fmt: skip

    return made


def test_they_are_found_by_the_tokenizers_where_counts_matter(z_image):
    assert [pair.id for pair in uneven_pairs(z_image.folder, PAIRS)] == ["c-2"]
    assert uneven_pairs(shipped("models/sdxl-tiny"), PAIRS) == []


def test_they_are_found_by_a_processor_where_there_is_no_tokenizer(tmp_path):
    if not hasattr(diffusers, "QwenImage21Pipeline"):
        pytest.skip("needs a diffusers that has QwenImage21Pipeline")
    pipeline = zoo.build("QwenImage21Pipeline")
    assert "tokenizer" not in pipeline.components
    pipeline.save_pretrained(tmp_path)
    assert [pair.id for pair in uneven_pairs(tmp_path, PAIRS)] == ["c-2"]


@pytest.mark.parametrize(
    ("methods", "window", "ids"),
    [
        (["lerp"], WHOLE, ("c-2",)), (["word", "slerp"], WHOLE, ("c-2",)), (["word"], WHOLE, ()),
        (["span", "category", "random"], Window(0.5, 1.0), ()), (["prompt"], WHOLE, ()),
        (["prompt"], Window(0.5, 1.0), ("c-2",)), (["switch"], WHOLE, ("c-2",)),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::analogy.settings.pairs.UnevenPairsWarning")
def test_methods_that_mix_both_prompts_leave_them_out(z_image, methods, window, ids):
    assert left_out(z_image, PAIRS, methods, window) == ids


def test_a_category_of_no_other_pairs_is_refused(z_image):
    with pytest.raises(OptionError, match=r"\(c-2\), .* lerp needs equal ones: no pair is left of"):
        left_out(z_image, PAIRS[1:2], ["lerp"], WHOLE)


def test_a_run_counts_and_names_them(request_of):
    """From its opening to its results, and where its folder is opened again."""
    with pytest.warns(UnevenPairsWarning, match=r"1 of 5 pairs have different numbers .*\(c-2\)"):
        study = Study.open(request_of(method="lerp", target=True), PAIRS)
    kept = ["c-1", "c-3", "o-1", "o-2"]
    assert [pair.id for pair in study.pairs] == kept
    assert {job.pair.id for job in study.jobs()} == {*kept}
    assert study.analysis().cells.keys() == {*study.plan.cells}
    uneven = dict(unread_notes(study))["uneven"]
    assert uneven.startswith("1 of 5 pairs")
    assert "(c-2)" in uneven
    path = study.folder.path
    study.close()
    folder = RunFolder(path, read_only=True)
    [command] = folder.commands()
    assert command.uneven == ("c-2",)
    again = Study.reopen(folder, command).results()
    folder.close()
    assert again.uneven == ("c-2",)
    written = to_json(again)
    assert written["uneven"] == ["c-2"]
    assert from_json(written).uneven == ("c-2",)


@pytest.mark.filterwarnings("ignore::analogy.settings.pairs.UnevenPairsWarning")
def test_a_sequential_run_plans_its_looks_without_them(request_of):
    study = Study.open(request_of(method="lerp", sequential=True), PAIRS)
    assert {pair.id for pair in study.plan.pairs["color"]} == {"c-1", "c-3"}
    assert study.plan.designs["color"].looks[-1].pairs == 2
    study.close()


@pytest.mark.filterwarnings("ignore::analogy.settings.pairs.UnevenPairsWarning")
def test_methods_are_compared_on_the_pairs_that_all_take(request_of, tmp_path, monkeypatch):
    monkeypatch.setattr("analogy.studies.finding.chosen_pairs", lambda config: PAIRS)
    studies = open_methods(request_of(), ["word", "lerp"])
    assert [[pair.id for pair in study.pairs] for study in studies] == [
        ["c-1", "c-3", "o-1", "o-2"]
    ] * 2
    assert {study.uneven for study in studies} == {("c-2",)}
    studies[0].close()
    alone = Study.open(replace(request_of(), run_dir=str(tmp_path / "alone")), PAIRS)
    assert len(alone.pairs) == 5  # word's own run has all
    assert alone.uneven == ()
    alone.close()
