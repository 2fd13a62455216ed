"""The tables of pipelines in docs/models.md.

``python -m tools.family_table`` prints them. ``tests/models/test_family_table.py`` compares them
with the page. Measured figures are in ``tools/family_results.json``, which ``--junit FILE`` writes
from the JUnit file of ``pytest tests/models/test_replay.py``.
"""

from __future__ import annotations

import argparse
import json
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from analogy.models.families import FAMILIES, knobs_of
from analogy.models.replay_table import NOT_CARRIED, ROWS, Knob, PipelineRow

RESULTS = Path(__file__).with_name("family_results.json")

_HEADING = (
    "| pipeline | steps, guidance by default | `--guidance` sets | `--second-guidance` sets "
    "| facts in the table | batch | effect | s |"
)


@dataclass(frozen=True, slots=True)
class Measured:
    """What the tests of a pipeline class measured on a tiny pipeline with random weights.

    - ``batch``: the largest change of an image's latents by other images in its batch, and
      ``effect``: the smallest change by steering, as shares of the largest latent;
    - ``seconds``: the time of the class's tests.
    """

    batch: float
    effect: float
    seconds: float


def read_results() -> dict[str, Measured]:
    """The measured figures by pipeline class."""
    return {name: Measured(**figures) for name, figures in json.loads(RESULTS.read_text()).items()}


def read_junit(file: Path) -> dict[str, Measured]:
    """The figures in a JUnit file. Raises ValueError if those of a class are missing."""
    figures: dict[str, dict[str, float]] = {}
    seconds: defaultdict[str, float] = defaultdict(float)
    for case in ElementTree.parse(file).iter("testcase"):
        name = case.attrib["name"].partition("[")[2].rstrip("]")
        if name not in FAMILIES.builtin:
            continue
        seconds[name] += float(case.attrib["time"])
        if found := {p.attrib["name"]: float(p.attrib["value"]) for p in case.iter("property")}:
            figures[name] = found
    if missing := [name for name in FAMILIES.builtin if name not in figures]:
        raise ValueError(
            f"{file}: expected the figures of every class, missing: {', '.join(missing)}; write it "
            "with: pytest tests/models/test_replay.py --junitxml FILE"
        )
    return {
        name: Measured(
            float(f"{figures[name]['batch']:.1g}"),
            float(f"{figures[name]['effect']:.2g}"),
            round(seconds[name], 1),
        )
        for name in FAMILIES.builtin
    }


def tested() -> str:
    """The Markdown table of tested pipelines."""
    results = read_results()
    lines = (_line(name, results[name]) for name in FAMILIES.builtin)
    return "\n".join([_HEADING, "|---|---|---|---|---|---:|---:|---:|", *lines])


def refused() -> str:
    """The Markdown table of pipelines that are refused by name, with the reasons."""
    lines = (f"| `{name}` | {why} |" for name, why in NOT_CARRIED.items())
    return "\n".join(["| refused | why |", "|---|---|", *lines])


def _line(name: str, measured: Measured) -> str:
    family = FAMILIES.get(name)
    steps, guidance = family.defaults()
    first, second = map(_said, knobs_of(family))
    facts = ", ".join(_facts(ROWS[name])) if name in ROWS else "a family of its own"
    return (
        f"| `{name}` | {steps}, {guidance:g} | {first} | {second} | {facts or 'none'} "
        f"| {measured.batch:g} | {measured.effect:g} | {measured.seconds:.1f} |"
    )


def _said(knob: Knob | None) -> str:
    return "-" if knob is None else f"`{knob.name}`, {knob.kind}"


def _facts(row: PipelineRow) -> Iterator[str]:
    for fact, is_so in (
        ("classes of a part", row.parts),
        ("parts that are not loaded", row.unloaded),
        ("an argument", row.fixed),
        ("size", row.from_size),
        ("decoder", row.decoder != "vae"),
        ("one image a call", row.is_single),
        ("dropped encoder", row.asks_encoder),
    ):
        if is_so:
            yield fact


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--junit", type=Path, help="a JUnit file with the figures to take")
    given = parser.parse_args().junit
    if given is not None:
        found = {name: asdict(measured) for name, measured in read_junit(given).items()}
        RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    print(tested(), refused(), sep="\n\n")


if __name__ == "__main__":
    main()
