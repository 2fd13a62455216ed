"""Evaluate models on prompts, images or word pairs: tasks, the agent that runs them, results.

See docs/evaluation.md.
"""

from analogy.evaluation.agent import EvaluationAgent
from analogy.evaluation.measurement import Measurement
from analogy.evaluation.metrics import fid_metric, kid_metric, lpips_metric
from analogy.evaluation.protocol import Metric, TaskError, metric
from analogy.evaluation.results import MetricResult, Report
from analogy.evaluation.samples import Samples
from analogy.evaluation.task import Task

__all__ = [
    "EvaluationAgent",
    "Measurement",
    "Metric",
    "MetricResult",
    "Report",
    "Samples",
    "Task",
    "TaskError",
    "fid_metric",
    "kid_metric",
    "lpips_metric",
    "metric",
]
