"""Measure the host memory that a plan's conditionings take: ``python -m tools.text_memory``.

Random conditionings of all texts of the suite's 400 pairs are kept as in a run: the first in
memory, the others in a temporary file. Then pairs are steered by several methods, with the
conditionings of a batch in memory. The default shapes are those of FLUX.2 dev in bfloat16, which
take about 10 GB in the folder ``TMPDIR``. The exit code is 1 if the process's peak memory, with its
libraries, is above the limit.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Sequence

import torch

from analogy.core.records import Pair
from analogy.generation.edits import edit_of
from analogy.generation.worker import texts
from analogy.models.memory import GIB
from analogy.models.places import shipped
from analogy.models.texts import Texts
from analogy.settings.pairs import load_pairs
from analogy.steering.base import METHODS
from analogy.steering.conditioning import Conditioning

METHODS_MEASURED = ("word", "lerp", "category", "random")


def filled(pairs: Sequence[Pair], tokens: int, dim: int) -> Texts:
    """Random conditionings of all texts of the pairs, bfloat16 ``(tokens, dim)``."""
    drawn = torch.randn(tokens, dim, generator=torch.Generator().manual_seed(0)).bfloat16()
    kept = Texts()
    for i, text in enumerate(dict.fromkeys(texts(pairs))):
        kept.add(text, Conditioning({"prompt_embeds": drawn.roll(i)}))
    return kept


def steer(kept: Texts, pairs: Sequence[Pair], name: str, batch: int) -> float:
    """Make a batch of steered conditionings by a method; returns the seconds of one."""
    method = METHODS.get(name)
    begun = time.perf_counter()
    made = []
    for pair in pairs[:batch]:
        others = [each for each in pairs if each.category == pair.category and each != pair]
        made.append(method.condition(edit_of(pair, method, others, kept), 0.5))
    return (time.perf_counter() - begun) / len(made)


def peak() -> float:
    """The peak of this process's memory so far, in GiB."""
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / GIB


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.text_memory", description=__doc__)
    parser.add_argument("--tokens", type=int, default=512, help="of each text [%(default)s]")
    parser.add_argument("--dim", type=int, default=15360, help="of a token [%(default)s]")
    parser.add_argument("--batch", type=int, default=16, help="pairs at once [%(default)s]")
    parser.add_argument("--limit", type=float, default=8.0, help="GiB of memory [%(default)s]")
    given = parser.parse_args(arguments)

    pairs = load_pairs(shipped("pairs.csv"))
    print(f"libraries: a peak of {peak():.1f} GiB")
    kept = filled(pairs, given.tokens, given.dim)
    print(
        f"{len(kept)} texts of {len(pairs)} pairs, {given.tokens} x {given.dim} in bfloat16: "
        f"{kept.bytes_in_memory / GIB:.2f} GiB in memory, {kept.bytes_in_file / GIB:.2f} GiB in "
        f"the file; a peak of {peak():.1f} GiB"
    )
    for name in METHODS_MEASURED:
        seconds = steer(kept, pairs, name, given.batch)
        print(f"{name}: {seconds:.2f} s a conditioning; a peak of {peak():.1f} GiB")
    is_below = peak() < given.limit
    print(f"{'below' if is_below else 'not below'} the limit of {given.limit:g} GiB")
    return 0 if is_below else 1


if __name__ == "__main__":
    sys.exit(main())
