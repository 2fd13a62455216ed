"""Imported by the server of :mod:`processes` alone: the embedded models, loaded once for them all.

One thread, since a process that is forked off has none of its parent's others.
"""

import torch

torch.set_num_threads(1)

import numpy as np  # noqa: E402

from analogy.core.images import to_png  # noqa: E402
from analogy.generation import worker as work  # noqa: E402
from analogy.judges.open_clip import Judge, JudgeSource, find_judge  # noqa: E402
from analogy.models.loading import load_pipeline  # noqa: E402
from analogy.models.sources import find_pipeline  # noqa: E402

_SOURCE = find_pipeline("embedded", dtype="float32")
_PIPELINE = load_pipeline(_SOURCE, device="cpu", dtype="float32")
_JUDGE = Judge(find_judge("embedded", None), device="cpu").load()

work.load_pipeline = lambda *_, **__: _PIPELINE
JudgeSource.load = lambda *_: _JUDGE  # type: ignore[method-assign]

to_png(np.zeros((8, 8, 3), np.uint8))  # Pillow imports as it goes, which another user may not
