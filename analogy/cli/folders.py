"""The commands on a run folder: ``verify``, ``score`` and ``import``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from analogy.cli.base import (
    CHECKING,
    Json,
    Quiet,
    Wide,
    a_path,
    app,
    checked_output,
    examples,
    option,
)  # fmt: skip
from analogy.cli.completion import run_folders, runs
from analogy.core.deferred import deferred

if TYPE_CHECKING:
    from analogy.cli.work import folders as work
else:
    work = deferred("analogy.cli.work.folders")


@app.command(rich_help_panel=CHECKING, epilog=examples("verify RUN", "verify RUN --repair"))
def verify(
    run: Annotated[Path, typer.Argument(help="A run folder.", autocompletion=run_folders)],
    repair: Annotated[
        bool, option("--repair", help="Generate damaged images again, and only these.")
    ] = False,
    device: Annotated[
        str | None, option(help="The device for --repair [default: the run's].")
    ] = None,
    offline: Annotated[bool, option("--offline", help="Never use the network.")] = False,
    trust: Annotated[
        bool, option("--trust", help="Let --repair load every model and method that it names.")
    ] = False,
    model: Annotated[str | None, option(help="The run's model, for --repair.")] = None,
    transformer: Annotated[
        str | None, option(help="The run's transformer file, for --repair.")
    ] = None,
    lora: Annotated[str | None, option(help="The run's LoRA, for --repair.")] = None,
    clip_model: Annotated[str | None, option(help="The run's judge, for --repair.")] = None,
    clip_pretrained: Annotated[
        str | None, option(help="The judge's weights, for --repair.")
    ] = None,
    method: Annotated[
        str | None, option(help="The run's method, for --repair, if it is not installed.")
    ] = None,
    json: Json = None,
) -> None:
    """Check a run folder: no image is damaged, and no image of the grid is missing.

    A folder may come from anyone. --repair therefore loads only the embedded models and installed
    methods. It loads others if you name them again here, and all of them with --trust.

    Exit code: 0 no damage and nothing missing, 1 damaged or incomplete (also after --repair),
    2 --repair would load models or methods that only the folder names, 4 the folder cannot be read
    or repaired.
    """
    work.verify(
        run, repair=repair, device=device, offline=offline, trust=trust, json=json,
        named={
            "model": model, "transformer": transformer, "lora": lora, "clip_model": clip_model,
            "clip_pretrained": clip_pretrained, "method": method,
        },
    )  # fmt: skip


@app.command(
    rich_help_panel=CHECKING,
    epilog=examples("score RUN --clip-model ViT-B-32 --clip-pretrained datacomp_xl_s13b_b90k"),
)
def score(
    run: Annotated[
        Path, typer.Argument(help="A run folder, or a results file in it.", autocompletion=runs)
    ],
    clip_model: Annotated[str, option(help="The judge, as for 'run'.")],
    clip_pretrained: Annotated[
        str | None, option(help="The judge's weights, as for 'run'.", parser=a_path)
    ] = None,
    device: Annotated[
        str | None, option(help="The device to score on [default: the run's].")
    ] = None,
    offline: Annotated[bool, option("--offline", help="Never use the network.")] = False,
    results: Annotated[
        Path | None,
        option(
            metavar="FILE",
            help="The file to write [default: RUN/results-JUDGE.json].",
            callback=checked_output,
        ),
    ] = None,
    json: Json = None,
    quiet: Quiet = False,
    wide: Wide = False,
) -> None:
    """Score a run's images with another judge, print the table and write the results.

    Nothing is generated, and only the judge is loaded. RUN/results.json keeps the run's results.

    Exit code: 0 scored, 2 no such judge, 4 the run cannot be read or written.
    """
    work.score(
        run, clip_model=clip_model, clip_pretrained=clip_pretrained, device=device,
        offline=offline, results=results, json=json, quiet=quiet, wide=wide,
    )  # fmt: skip


@app.command(
    "import",
    rich_help_panel=CHECKING,
    epilog=examples("import IMPORTED manifest.csv --model-name other-tool"),
)
def import_(
    run: Annotated[Path, typer.Argument(help="A new or existing run folder.")],
    manifest: Annotated[
        Path,
        typer.Argument(
            help="CSV or JSON lines: pair_id, alpha, seed, file [, method]; or what 'export' wrote."
        ),
    ],
    model_name: Annotated[
        str | None,
        option(
            help="A name for the model or tool that made the images; not for images of 'export'."
        ),
    ] = None,
    pairs: Annotated[
        Path | None, option(metavar="FILE", help="The word pairs [default: the suite's own].")
    ] = None,
    clip_model: Annotated[str, option(help="The judge for 'score'.")] = "embedded",
    clip_pretrained: Annotated[
        str | None, option(help="The judge's weights.", parser=a_path)
    ] = None,
) -> None:
    """Copy images of other tools into a run folder, to be scored with 'score'.

    Without --model-name the manifest's jobs are of 'export', and RUN is the folder that it began:
    the images get the jobs' keys. Every file is read before any is copied, so that after an error
    the same command can be given again.

    Exit code: 0 imported, 2 the manifest or a file in it cannot be used, 4 the folder cannot be
    read or written.
    """
    work.import_(
        run, manifest, model_name=model_name, pairs=pairs, clip_model=clip_model,
        clip_pretrained=clip_pretrained,
    )  # fmt: skip
