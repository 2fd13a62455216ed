"""Everything that only a GPU can show, measured in one command of under nine minutes.

    python -m tools.gpu_check -o FOLDER               # on a machine with a CUDA device
    python -m tools.gpu_check -o FOLDER --rehearse    # every step in small, on the CPU

The steps run in order of worth, each in a process of its own with its own time limit. What a step
has measured is on disk at once, so a step that is killed keeps its figures. ``FOLDER`` gets
``gpu_check.json``, ``gpu_check.md`` (for docs/performance.md) and ``gpu_check.log``.
"""
