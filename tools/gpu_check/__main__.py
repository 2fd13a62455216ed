"""``python -m tools.gpu_check``: run the steps, print how each ended, exit 0 if all is well."""

from __future__ import annotations

import argparse
import faulthandler
import os
import sys
from pathlib import Path

from tools.gpu_check.plans import PLANS, chosen
from tools.gpu_check.runner import (
    TOTAL,
    NotRunError,
    describe,
    end_descendants,
    run,
    start_server,
)

#: Modules that every step needs, imported once.
SHARED = ("tools.gpu_check.steps",)
#: In a rehearsal also the modules that most steps need. On a GPU each step imports these itself:
#: diffusers asks CUDA for its devices when it is imported, and no process forked after that could
#: use them.
SHARED_ON_A_CPU = (
    *SHARED, "diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl", "open_clip",
)  # fmt: skip


def main() -> int:
    """Returns 0 if every step is done and every bar is reached, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_check", description=__doc__)
    parser.add_argument(
        "-o", "--output", type=Path, default=Path(os.environ.get("OUT", "gpu-check")),
        help="folder for the results [default: $OUT, else gpu-check]",
    )  # fmt: skip
    parser.add_argument(
        "--rehearse", action="store_true", help="run every step in small on the CPU"
    )
    parser.add_argument(
        "--only", metavar="TEXT",
        help="only steps whose name contains this text, and the step whose files they need",
    )  # fmt: skip
    options = parser.parse_args()

    plans = chosen(options.only)
    if not plans:
        parser.error(
            f"--only: expected a part of one of {', '.join(plan.name for plan in PLANS)}; "
            f"got {options.only!r}"
        )
    if options.rehearse:
        # Threads of such small networks wait for each other, for seconds if other work has a core.
        os.environ["OMP_NUM_THREADS"] = "1"
    # If anything waits for ever, the process prints its stacks and ends, and its steps end with it.
    faulthandler.dump_traceback_later(TOTAL + 45.0, exit=True)
    start_server(SHARED_ON_A_CPU if options.rehearse else SHARED)
    try:
        report = run(plans, options.output, describe(options.output, rehearse=options.rehearse))
    except NotRunError as error:
        parser.error(str(error))
    finally:
        # The server has inherited this process's output; a reader of it would wait for the server.
        end_descendants()
    print(f"{options.output / 'gpu_check.md'}: {report.seconds:.0f} s")
    return 0 if report.is_complete else 1


if __name__ == "__main__":
    sys.exit(main())
