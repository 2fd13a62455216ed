"""Pipelines that are carried by replay as models of an evaluation."""

from __future__ import annotations

import pytest
import zoo
from evaluated import BRIGHT

from analogy.evaluation import EvaluationAgent


@pytest.mark.parametrize("name", ["FluxPipeline", "ZImagePipeline"])
def test_a_pipeline_is_a_model_in_memory_and_as_a_folder(name, make_task, tmp_path):
    pipeline = zoo.build(name)
    pipeline.save_pretrained(tmp_path / "model")
    task = make_task(
        [BRIGHT], ["a red car", "two blue cups"], seeds=(0,), steps=1, size=zoo.SIZE, guidance=1.5
    )
    agent = EvaluationAgent(task)
    in_memory = agent.evaluate(pipeline)["brightness"]
    folder = agent.evaluate(str(tmp_path / "model"))["brightness"]
    assert in_memory.n == folder.n == 2
    assert in_memory.value == folder.value > 0
    other = make_task([BRIGHT], ["a red car"], seeds=(0,), steps=1, size=zoo.SIZE, guidance=1.5)
    assert EvaluationAgent(other).evaluate(pipeline)["brightness"].value != folder.value
