"""The work of the command ``steer``."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from analogy.cli.base import exit_code, refuse, show_lines, write
from analogy.core.errors import ExitCode, ModelError
from analogy.core.records import Pair
from analogy.report.pictures import save
from analogy.report.strips import draw_strip, generate_strip
from analogy.settings.request import RunRequest
from analogy.studies.study import Study
from analogy.world.known import unknown_note, unknown_pairs

STEERED_VERSION = 1
"""The schema version of the JSON of ``steer --json``."""


def steer(request: RunRequest, pair: Pair, output: Path, json: str | None) -> None:
    """Steer the pair; draw the strip, and write and print its margins."""
    with tempfile.TemporaryDirectory(prefix="analogy-steer-") as folder:
        with exit_code(ExitCode.USAGE):
            study = Study.open(replace(request, run_dir=folder), [pair])
        try:
            study.prepare(study.jobs())
            strip = generate_strip(study, pair, study.config.seeds)
            save(draw_strip(study, pair, strip), output)
        except ModelError as error:
            refuse(ExitCode.USAGE, error)
        except OSError as error:
            refuse(ExitCode.UNREADABLE, error)
        finally:
            study.close()
    config = study.config
    known = unknown_pairs([pair], model=config.model, judge=config.clip_model)
    words = known.get(pair.id, ())
    data = {
        "schema_version": STEERED_VERSION,
        "source_prompt": pair.source_prompt,
        "target_prompt": pair.target_prompt,
        "words": [pair.source_word, pair.target_word],
        "model": study.grid.model,
        "judge": study.judge.fingerprint,
        "config": config.to_dict(),
        "strip": str(output),
        **({"unknown_words": list(words)} if words else {}),
        "images": [entry.to_dict() for entry in strip],
    }
    write(data, json)
    lines = [
        f"model     {study.grid.model}",
        f"judge     {study.judge.fingerprint}",
        f"steering  {config.steering}, {pair.source_word} -> {pair.target_word}; "
        f"{study.sampling_text}, {config.dtype} on "
        f"{config.device}",
        f"prompts   {pair.source_prompt} -> {pair.target_prompt}",
        *([f"unknown   {unknown_note(words, model=config.model)}: no margin is of these words"]
          if words else []),
        "",
        f"{'seed':<5} {'image':<15} {'margin':>8} {'to target':>10} {'to source':>10}",
        *(
            f"{entry.seed:<5} {entry.title:<15} "
            + (entry.problem or f"{entry.margin:>+8.4f} {entry.cos_target:>10.4f} "
               f"{entry.cos_source:>10.4f}")
            for entry in strip
        ),
        "",
        "margin: above 0 the image is closer to the target prompt than to the source prompt.",
        "One pair shows what happens and decides nothing: 'analogy run' measures.",
        f"strip     {output}",
    ]  # fmt: skip
    show_lines(lines, json)
