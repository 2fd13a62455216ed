"""Texts that a judge or a generator reads as one: known from the tokenizers, before any work."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from verbs import verb

from analogy.core.errors import ModelError
from analogy.core.records import Pair
from analogy.judges.open_clip import find_judge
from analogy.models.places import shipped
from analogy.runs import load_run
from analogy.settings.pairs import UnreadPairsWarning
from analogy.studies.tokenizers import read_by_judge, readers_of, same_to_judge, unsteered

HEADER = "id,category,source_word,target_word,source_prompt,target_prompt\n"
LONG = ", ".join(["a tree", "a house", "a star", "a cup"] * 6)
NOUNS = ("car", "hat", "boat", "house", "cup", "star")
SMALL = ("--alphas=1", "--seeds=0", "--steps=1", "--device=cpu")


def pair(name, source="red", target="blue", prompt="a {} car"):
    return Pair(name, "paint", source, target, prompt.format(source), prompt.format(target))


PLAIN = pair("plain")
LATE = pair("late", prompt=LONG + " and a {} car")
WIDE = pair("wide", "\uff52\uff45\uff44", "red")
WORDS = pair("words", f"{LONG} red", f"{LONG} blue", prompt="{}")
HTML = pair("html", "&amp;", "&", "a red car {} a cup")


def write(path, pairs):
    lines = (
        ",".join(f'"{text}"' for text in (
            p.id, p.category, p.source_word, p.target_word, p.source_prompt, p.target_prompt
        )) + "\n"
        for p in pairs
    )  # fmt: skip
    path.write_text(HEADER + "".join(lines), "utf-8")
    return path


@pytest.fixture(scope="module")
def read():
    return read_by_judge(find_judge("embedded", None).tokenizer())


def test_a_judge_reads_as_one_what_its_tokenizer_drops_or_makes_equal(read):
    assert same_to_judge(read, [PLAIN, LATE, WIDE, HTML]) == [LATE, WIDE, HTML]


def test_a_generator_steers_nothing_between_equal_readings():
    readers = readers_of(shipped("models/sdxl-tiny"))
    assert len(readers) == 2
    pairs = [PLAIN, pair("other", "green", "pink", "a {} hat"), LATE, WORDS, WIDE]
    assert unsteered(readers, pairs, "lerp") == [LATE, WORDS]
    assert unsteered(readers, pairs, "slerp") == [LATE, WORDS]
    assert unsteered(readers, pairs, "word") == [WORDS]
    assert unsteered(readers, pairs, "random") == [WORDS]
    assert unsteered(readers, pairs, "category") == []  # others say where to go
    # Nothing but prompts that are one: the category has no direction either.
    late = pair("late too", "green", "pink", LONG + " and a {} hat")
    assert unsteered(readers, [LATE, late], "category") == [LATE, late]


def test_a_folder_without_known_tokenizers_is_not_asked(tmp_path):
    assert readers_of(tmp_path) == []
    index = {"tokenizer": ["mine", "Evil"], "text_encoder": ["transformers", "CLIPTextModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    (tmp_path / "tokenizer").mkdir()
    assert readers_of(tmp_path) == []
    assert unsteered([], [PLAIN], "word") == []
    index["tokenizer"] = ["transformers", "CLIPTokenizer"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert readers_of(tmp_path) == []  # transformers would make an empty one
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="tokenizer: expected a CLIPTokenizer that can be loaded"):
        readers_of(tmp_path)


@pytest.mark.parametrize("bad", [LATE, WIDE, HTML], ids=lambda pair: pair.id)
def test_a_run_of_only_such_pairs_is_refused_before_any_folder(tmp_path, bad):
    twin = Pair("twin", *(getattr(bad, name) for name in ("category", "source_word")),
                bad.target_word, bad.source_prompt + " !", bad.target_prompt + " !")  # fmt: skip
    more = [replace(twin, id=str(i), source_prompt=twin.source_prompt + " !" * i,
                    target_prompt=twin.target_prompt + " !" * i) for i in range(1, 5)]  # fmt: skip
    file = write(tmp_path / "p.csv", [bad, twin, *more])
    refused = verb("run", f"--pairs={file}", f"--run-dir={tmp_path / 'run'}", *SMALL)
    assert refused.exit_code == 2
    assert (
        f"reads both prompts of every pair in paint as one ({bad.id}, twin, 1, 2, 3 and 1 more)"
        in refused.stderr
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_some_such_pairs_are_named_first_counted_and_judged_by_nobody(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = [pair(noun, prompt=f"a {{}} {noun}") for noun in NOUNS]
    file = write(tmp_path / "p.csv", [*good, LATE])
    with pytest.warns(UnreadPairsWarning) as notes:
        done = verb("run", f"--pairs={file}", "--run-dir=run", *SMALL)
    assert done.exit_code in (0, 1)
    assert "reads both prompts of 1 of 7 pairs as one (late)" in str(notes[0].message)
    assert done.stderr == ""  # and not a page of what diffusers dropped
    assert "unread    1 of 7 pairs: the judge reads both prompts as one" in done.stdout
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["unread"] == ["late"]
    assert "unsteered" not in results
    assert [(cell["n"], "late" in cell["items"]) for cell in results["cells"]] == [(6, False)]
    assert results["overall"]["n"] == 6
    run = load_run(tmp_path / "run")
    assert len(run.images) == 14
    assert set(run.items["pair_id"]) == set(NOUNS)
    assert verb("verify", "run").exit_code == 0


def test_a_category_of_only_such_pairs_is_refused_with_how_to_leave_it_out(tmp_path):
    late = [
        replace(LATE, id=f"l{i}", category="late", source_prompt=f"{LATE.source_prompt} {i}",
                target_prompt=f"{LATE.target_prompt} {i}")
        for i in range(6)
    ]  # fmt: skip
    good = [replace(pair(n, prompt=f"a {{}} {n}"), category="x, y") for n in NOUNS]
    file = write(tmp_path / "p.csv", [*late, *good])
    refused = verb("run", f"--pairs={file}", f"--run-dir={tmp_path / 'run'}", *SMALL)
    assert refused.exit_code == 2
    assert "leave them out with '--categories=\"x, y\"', say what differs" in refused.stderr
    assert not (tmp_path / "run").exists()


def test_steer_says_it_of_its_one_pair(tmp_path):
    refused = verb("steer", LATE.source_prompt, LATE.target_prompt, "-o", tmp_path / "s.png")
    assert refused.exit_code == 2
    assert "reads both prompts as one (pair): the same tokens" in refused.stderr


def test_pairs_check_says_the_same(tmp_path):
    file = write(tmp_path / "p.csv", [PLAIN, LATE, WIDE, WORDS])
    arguments = ("pairs", "check", file, "--json=-")
    plain = json.loads(verb(*arguments).stdout)
    assert "unread" not in plain
    found = verb(*arguments, "--clip-model=embedded", "--model=embedded")
    data = json.loads(found.stdout)
    assert (data["unread"], data["prompts"], data["words"]) == (
        ["late", "wide", "words"], ["late", "words"], ["words"],
    )  # fmt: skip
    assert "unread    3 of 4 pairs: the judge reads both prompts as one" in found.stderr
    none = verb(*arguments, "--clip-model=none/such")
    assert (none.exit_code, "--clip-model 'none/such'" in none.stderr) == (2, True)
