"""A metric's weights that a stranger gave."""

from __future__ import annotations

import pytest

from analogy.core.errors import ModelError
from analogy.metrics.weights import read_weights

# --- weights of metrics


def test_weights_of_a_metric_run_no_code(stranger):
    with pytest.raises(ModelError, match=r"expected a state dict saved by torch\.save"):
        read_weights(stranger.pickle(stranger.place / "alexnet.pth"))
    assert not stranger.ran
