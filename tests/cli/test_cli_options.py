"""The options of the command line: those of pytest, from one table; help and completion."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import typer
from cases import ROOT
from typer.testing import CliRunner
from verbs import verb

from analogy import cli
from analogy._version import __version__
from analogy.cli import completion, look
from analogy.core.errors import OptionError
from analogy.sessions.session import Session
from analogy.settings.options import OPTIONS, PANELS, parse_options
from analogy.steering.base import METHODS

OTHERS = {
    "device": "cuda:1", "model": "some/model", "transformer": "t", "lora": "l",
    "clip_model": "ViT-B-32", "clip_pretrained": "openai", "clip_dtype": "bfloat16",
    "pairs": "p.csv", "categories": "color, size", "alphas": "0.1,-1", "seeds": "4,5",
    "method": "lerp",
    "steps": "3", "guidance": "2.5", "second_guidance": "1.5", "size": "512",
    "steer_from": "0.25", "steer_until": "0.75",
    "dtype": "float16", "quantize": "torchao_int8", "offload": "group", "limit": "7",
    "order_seed": "3",
    "batch_size": "9", "memory": "11.5", "run_dir": "r", "ceiling": "c.json", "reference": "f",
    "lpips_weights": "w", "metrics": "ssim,kid", "limits": "ssim>=0.4", "baseline": "b.json",
    "tolerance": "0.1", "inconclusive": "pass", "results": "o.json", "report": "o.html",
    "write": "o.csv,md=o.txt",
}  # fmt: skip

OF_SEQUENTIAL = ("order_seed", "full_unsteered", "futility", "reserve")
"""The options that are refused without --sequential."""


@pytest.fixture
def values(monkeypatch):
    """The parsed options that ``run`` gets from a command."""

    class OpenedError(Exception):
        pass

    def of(*arguments, env=None):
        def opened(values, *, is_strict):
            raise OpenedError(values)

        monkeypatch.setattr(Session, "open", opened)
        with pytest.raises(OpenedError) as caught:
            verb("run", *arguments, env=env)
        return caught.value.args[0]

    return of


def command(name):
    return typer.main.get_command(cli.app).commands[name]


def flags(name):
    return {flag: each for each in command(name).params for flag in each.opts}


def expected(**given):
    texts = {each.key: each.default for each in OPTIONS} | given
    return parse_options(lambda name: texts[name.removeprefix("analogy_")])


def test_run_has_every_option_of_pytest_and_little_else(values):
    found = flags("run")
    own = {"--strict", "--config", "--json", "--quiet", "-q", "--verbose", "-v", "--help", "-h"}
    assert set(found) - own == {each.flag for each in OPTIONS}
    for each in OPTIONS:
        assert unescaped(found[each.flag].help) == each.help
        assert found[each.flag].is_flag is (each.parse is None)
        assert found[each.flag].default == each.default
    assert values() == expected()


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.key)
def test_each_means_what_it_means_to_pytest_as_an_option_and_in_the_environment(option, values):
    variable = f"ANALOGY_RUN_{option.key.upper()}"
    needed = {"sequential": True} if option.key in OF_SEQUENTIAL else {}
    flags_needed = [f"--{name}" for name in needed]
    if option.parse is None:
        wanted = expected(**needed, **{option.key: True})
        assert values(option.flag, *flags_needed) == wanted
        assert values(*flags_needed, env={variable: "1"}) == wanted
        return
    text = OTHERS.get(option.key, option.default or "1")
    wanted = expected(**needed, **{option.key: text})
    assert values(f"{option.flag}={text}", *flags_needed) == wanted
    assert values(*flags_needed, env={variable: text}) == wanted
    if option.key in OTHERS:
        assert wanted != expected()


def test_the_command_line_goes_before_the_environment(values):
    assert values("--limit=3", env={"ANALOGY_RUN_LIMIT": "2"}).limit == 3


def test_steer_takes_those_that_matter_with_one_seed():
    found = flags("steer")
    assert set(look.STEER_OPTIONS) <= {each.key for each in OPTIONS}
    for each in OPTIONS:
        assert (each.flag in found) == (each.key in look.STEER_OPTIONS)
    assert found["--seeds"].default == "0"
    assert found["--alphas"].default is None  # the method says


def test_the_help_shows_brackets_and_what_the_table_says():
    shown = " ".join(verb("run", "--help").stdout.replace("│", " ").split())
    assert "[default: embedded; with --gpu segmind/SSD-1B]" in shown
    assert "[default: 0.5,0.8,1.0, or the method's own]" in shown
    assert "\\[" not in shown


def every_command(command, *names):
    """Each verb and group of verbs with the words that call it, the application first."""
    yield names, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from every_command(inner, *names, name)


COMMANDS = dict(every_command(typer.main.get_command(cli.app)))


@pytest.mark.parametrize("names", COMMANDS, ids=lambda names: " ".join(names) or "analogy")
def test_every_help_text_is_shown_as_it_is_written(names):
    """Rich would take ``[default: x]`` for a style and ``:key:`` for a picture."""
    command = COMMANDS[names]
    written = [each.help for each in command.params if each.help]
    written += [inner.help.split("\n\n")[0] for inner in getattr(command, "commands", {}).values()]
    written += [text for text in (command.help, command.epilog) if text]
    if not hasattr(command, "commands"):
        assert words_of(inspect.getdoc(command.callback)) == words_of(unescaped(command.help))
    shown = words_of(verb(*names, "--help", env={"COLUMNS": "1000"}).stdout)
    assert written
    for text in written:
        assert words_of(unescaped(text)) in shown, text
    assert "\\[" not in shown


def test_options_of_a_run_are_in_groups_and_commands_have_examples():
    shown = verb("run", "--help").stdout
    grouped = [key for keys in PANELS.values() for key in keys]
    assert sorted(grouped) == sorted(each.key for each in OPTIONS)
    assert all(f"─ {title} ─" in shown for title in PANELS)
    for names in (("run",), ("steer",), ("compare",), ("score",), ("verify",)):
        help_text = verb(*names, "--help").stdout
        assert "Examples:" in help_text
        [*_, example] = [line for line in help_text.splitlines() if line.startswith(" analogy ")]
        assert example.split()[1] == names[0]


def test_paragraphs_of_a_help_fill_the_lines():
    lines = verb("run", "--help", env={"COLUMNS": "80"}).stdout.splitlines()
    start = next(i for i, line in enumerate(lines) if "Either of the two" in line)
    assert len(lines[start].rstrip()) > 65
    assert len(lines[start + 1].rstrip()) > 65


def test_the_version_is_printed():
    result = verb("--version")
    assert (result.exit_code, result.stdout) == (0, f"analogy-bench {__version__}\n")
    assert verb("models", "--help", env={"ANALOGY_VERSION": "1"}).exit_code == 0
    assert "Usage" in verb("models", "--help", env={"ANALOGY_VERSION": "1"}).stdout


def test_a_shell_offers_categories_and_run_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    context = SimpleNamespace(params={})
    assert completion.category_names(context, "s") == ["size", "scene"]
    assert completion.category_names(context, "size,sc") == ["size,scene"]
    assert "size,size" not in completion.category_names(context, "size,")
    context.params["pairs"] = "nosuch.csv"
    assert completion.category_names(context, "") == []
    for name in (".analogy/runs/3f2a", "mine", "mine-too", "other/deep"):
        (tmp_path / name).mkdir(parents=True)
    for name in (".analogy/runs/3f2a", "mine", "other/deep"):
        (tmp_path / name / "index.sqlite").touch()
    (tmp_path / "old.json").touch()
    assert completion.run_folders("") == [".analogy/runs/3f2a", "mine", "mine-too/", "other/"]
    assert completion.run_folders("oth") == ["other/"]
    assert completion.run_folders("other/") == ["other/deep"]
    assert completion.runs("o") == ["other/", "old.json"]
    env = {
        "_ANALOGY_COMPLETE": "complete_bash",
        "COMP_WORDS": "analogy report mi",
        "COMP_CWORD": "2",
    }
    offered = CliRunner().invoke(cli.app, prog_name="analogy", env=env).stdout.split()
    assert offered == ["mine", "mine-too/"]


def unescaped(text):
    return text.replace("\\[", "[")


def words_of(text):
    return " ".join(text.replace("│", " ").split())


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"], ["steer"], ["compare"], ["baseline"], ["report"], ["verify"], ["score"],
        ["import"], ["pairs"], ["pairs", "check"], ["models"], ["plan"], ["runs"], ["site"],
    ],
)  # fmt: skip
def test_every_verb_has_a_help_and_the_documentation_an_example(arguments):
    assert verb(*arguments, "--help").exit_code == 0
    text = (ROOT / "docs" / "cli.md").read_text("utf-8")
    assert f"\nanalogy {' '.join(arguments)}" in text


def test_the_documentation_has_every_verb_and_exit_code():
    text = (ROOT / "docs" / "cli.md").read_text("utf-8")
    for name in typer.main.get_command(cli.app).commands:
        assert f"`{name}" in text
    for code in cli.ExitCode:
        assert f"| {int(code)} |" in text


def complete(*words, **environment):
    """What a shell is offered for the last word."""
    env = {
        **os.environ, "PYTHONPATH": str(ROOT), "_ANALOGY_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(["analogy", *words]), "COMP_CWORD": str(len(words)),
    }  # fmt: skip
    code = "import sys; from analogy.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    return done.stdout.split()


@pytest.mark.slow
def test_a_shell_completes_verbs_options_and_values():
    assert complete("st") == ["steer", "steering"]
    assert complete("run", "--clip-p") == ["--clip-pretrained"]
    assert complete("run", "--method", "") == list(METHODS.names())
    assert complete("steer", "--dtype", "fl") == ["float32", "float16"]


@pytest.mark.slow
def test_help_and_completion_load_nothing_heavy():
    """Counted in modules, not in seconds: a test of time fails on a busy machine."""
    code = (
        "import sys\n"
        "from analogy.cli import main\n"
        "sys.argv = ['analogy', 'run', '--help']\n"
        "try:\n    main()\n"
        "except SystemExit as ended:\n    assert not ended.code\n"
        "import json\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True,
        timeout=600,
    )  # fmt: skip
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert not loaded & {"torch", "diffusers", "numpy", "scipy", "pandas", "PIL", "matplotlib"}


def test_ctrl_c_ends_with_130_and_one_line(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "open", interrupted)
    monkeypatch.setattr(sys, "argv", ["analogy", "run"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == cli.ExitCode.INTERRUPTED
    said = capsys.readouterr().err
    assert said.startswith("analogy: interrupted; ")
    assert said.count("\n") == 1


def test_a_verb_that_said_so_itself_is_not_said_again(monkeypatch, capsys):
    def said(*_, **__):
        raise typer.Exit(cli.ExitCode.INTERRUPTED)

    monkeypatch.setattr(Session, "open", said)
    monkeypatch.setattr(sys, "argv", ["analogy", "run"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == cli.ExitCode.INTERRUPTED
    assert capsys.readouterr().err == ""


@pytest.mark.filterwarnings("default")
def test_a_weak_category_is_a_note_and_not_a_python_warning(monkeypatch, capsys, tmp_path):
    from analogy.settings.pairs import load_pairs

    def opened(values, *, is_strict):
        load_pairs(values.pairs)
        raise OptionError("enough")

    rows = "id,category,source_word,target_word,source_prompt,target_prompt\n" + "".join(
        f"{i},color,red,blue,a red {noun},a blue {noun}\n" for i, noun in enumerate("abc")
    )
    (tmp_path / "three.csv").write_text(rows)
    monkeypatch.setattr(Session, "open", opened)
    monkeypatch.setattr(sys, "argv", ["analogy", "run", f"--pairs={tmp_path / 'three.csv'}"])
    with pytest.raises(SystemExit):
        cli.main()
    note, _ = capsys.readouterr().err.splitlines()
    assert note.startswith(f"analogy: note: {tmp_path / 'three.csv'}: category 'color' has 3 pairs")


def test_a_tilde_in_a_verbs_own_paths_is_the_home(tmp_path, monkeypatch):
    """No shell expands the one in ``--junit=~/x``, and none at all one that is quoted."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for arguments in (["compare", "~/no.json", "~/no.json"], ["report", "~/no.json"]):
        refused = verb(*arguments)
        assert refused.exit_code == 2
        assert f"{tmp_path / 'no.json'}" in refused.stderr
    written = verb("models", "--json=~/m.json")
    assert (written.exit_code, (tmp_path / "m.json").is_file()) == (0, True)
    nobody = verb("verify", "~nobody_here/run")
    assert (nobody.exit_code, "run: expected a user of this machine" in nobody.stderr) == (2, True)


@pytest.mark.parametrize("text", ["1_0", "nan", "\uff11", "0,1", "-1"])
def test_the_tolerance_of_compare_is_read_as_that_of_a_run(text):
    refused = verb("compare", "a.json", "b.json", f"--tolerance={text}")
    assert refused.exit_code == 2
    assert "analogy: --tolerance: expected a finite number >= 0, got" in refused.stderr
