"""Measures everything that needs a GPU, in one command of under nine minutes.

    python -m tools.gpu_check -o FOLDER               # on a machine with a CUDA device
    python -m tools.gpu_check -o FOLDER --rehearse    # every step at a small size, on the CPU

The steps run in order of importance, each in its own process with its own time limit. A step's
figures are written to disk at once, so a step that is killed keeps them. ``FOLDER`` gets
``gpu_check.json``, ``gpu_check.md`` (for docs/performance.md) and ``gpu_check.log``.
"""
