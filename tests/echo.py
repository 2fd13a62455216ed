"""Ray actors without models, for the order of work: they import nothing, so each starts at once."""

from __future__ import annotations

import os
import signal
import time
from types import SimpleNamespace


def setup(config):
    """A run's `Setup` as far as engines read it; to unpickle a real one would import torch."""
    return SimpleNamespace(config=config)


class Echo:
    """Says a batch back with its process; what a batch is called decides what happens."""

    def __init__(self, setup, n_threads):
        pass

    def start(self, *, generates):
        return "cpu", str(os.getpid())

    def generate(self, jobs):
        word = jobs[0]
        if word == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if word.startswith("once") and not os.path.exists(word[4:]):
            open(word[4:], "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        if word == "refuse":
            raise LookupError("no such model")
        time.sleep(0.3 if word == "slow" else 0.0)
        return word, os.getpid()


class Stillborn(Echo):
    """Dies before it has begun."""

    def start(self, *, generates):
        os.kill(os.getpid(), signal.SIGKILL)
