"""The table of tested pipelines in docs/models.md.

``python -m tools.family_table`` prints it. ``tests/models/test_family_table.py`` compares it with
the page.
"""

from __future__ import annotations

from collections.abc import Iterator

from analogy.models.families import FAMILIES, knobs_of
from analogy.models.replay_table import NOT_CARRIED, ROWS, Knob, PipelineRow

_HEADING = (
    "| pipeline | steps, guidance by default | `--guidance` sets | `--second-guidance` sets "
    "| facts in the table |"
)


def tested() -> str:
    """The Markdown table of tested pipelines."""
    return "\n".join([_HEADING, "|---|---|---|---|---|", *map(_line, FAMILIES.builtin)])


def refused() -> str:
    """The Markdown table of pipelines that are refused by name, with the reasons."""
    lines = (f"| `{name}` | {why} |" for name, why in NOT_CARRIED.items())
    return "\n".join(["| refused | why |", "|---|---|", *lines])


def _line(name: str) -> str:
    family = FAMILIES.get(name)
    steps, guidance = family.defaults()
    first, second = map(_said, knobs_of(family))
    facts = ", ".join(_facts(ROWS[name])) if name in ROWS else "a family of its own"
    return f"| `{name}` | {steps}, {guidance:g} | {first} | {second} | {facts or 'none'} |"


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


if __name__ == "__main__":
    print(tested(), refused(), sep="\n\n")
