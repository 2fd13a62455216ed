"""The command ``methods``: several steering methods on one grid, compared pair by pair."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Annotated

from analogy.cli.base import GENERATING, Json, app, examples, option, refuse, with_options
from analogy.core.deferred import deferred
from analogy.core.errors import ExitCode, OptionError
from analogy.settings.options import parse_methods
from analogy.settings.request import RunRequest
from analogy.steering.base import METHODS

if TYPE_CHECKING:
    from analogy.cli.work import methods as work
else:
    work = deferred("analogy.cli.work.methods")

#: The built-in methods that work with every model. The sliders are left out, since they belong to
#: the embedded model.
DEFAULT_METHODS = tuple(name for name in METHODS.builtin if name != "slider")

METHODS_OPTIONS = (
    "gpu", "device", "offline", "model", "transformer", "lora", "clip_model", "clip_pretrained",
    "clip_dtype",
    "pairs", "categories", "alphas", "seeds", "steps", "guidance", "second_guidance", "size",
    "steer_from", "steer_until", "dtype", "quantize", "offload", "limit", "sequential",
    "order_seed",
    "batch_size", "memory", "engine", "num_workers", "ray_address", "run_dir", "ceiling",
)  # fmt: skip


@app.command(
    rich_help_panel=GENERATING,
    epilog=examples("methods --methods lerp,word,category --limit 10"),
)
@with_options(METHODS_OPTIONS)
def methods(
    request: RunRequest,
    given: Collection[str],
    names: Annotated[
        str, option("--methods", metavar="LIST", help="Two or more, separated by commas.")
    ] = ",".join(DEFAULT_METHODS),
    json: Json = None,
) -> None:
    """Compare steering methods on one grid: paired differences, and a ranking.

    Generates and scores the missing images of all methods in one run folder, the same that 'run'
    uses for each of them. Unsteered images (alpha 0) are generated once for all methods. Without
    --alphas each method has its own; where these differ, methods are compared at the largest of
    each. Two methods count as different by Holm's p of their overall difference. None of this is a
    verdict on whether steering works.

    Exit code: 0 compared, 2 wrong usage, 4 the run cannot be read or written.
    """
    try:
        chosen = parse_methods(names)
    except OptionError as error:
        refuse(ExitCode.USAGE, f"--methods: {error}")

    work.methods(request, chosen, json, own_alphas="alphas" not in given)
