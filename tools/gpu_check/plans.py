"""The steps of the check, in order of importance."""

from __future__ import annotations

from tools.gpu_check.runner import Plan

STEPS = "tools.gpu_check.steps"
SSD_1B = "SSD-1B's architecture"

#: The limits add up to more than the check's time: quick steps leave their time to later ones.
PLANS = (
    Plan("tests marked gpu", 100.0, f"{STEPS}:gpu_tests"),
    Plan("embedded grid, CUDA against CPU", 110.0, f"{STEPS}:grid"),
    Plan(SSD_1B, 60.0, f"{STEPS}:build_ssd_1b"),
    Plan("SSD-1B at 1024 pixels", 130.0, f"{STEPS}:ssd_1b", SSD_1B),
    Plan("--memory 12", 45.0, f"{STEPS}:memory_limit", SSD_1B),
    Plan("out of memory", 45.0, f"{STEPS}:out_of_memory", SSD_1B),
    Plan("scoring with ViT-B-32", 60.0, f"{STEPS}:scoring"),
    Plan("float16, bfloat16, float32", 60.0, f"{STEPS}:dtypes", SSD_1B),
    Plan("methods that hook or change weights", 40.0, f"{STEPS}:methods", SSD_1B),
    Plan("torch.compile and channels_last", 90.0, f"{STEPS}:compiled", SSD_1B),
    Plan("--engine ray", 100.0, f"{STEPS}:ray_engine"),
)


def chosen(text: str | None) -> list[Plan]:
    """The steps whose names contain ``text``, and the steps whose files these need; None: all."""
    named = {plan.name: plan.after for plan in PLANS if text is None or text in plan.name}
    return [plan for plan in PLANS if plan.name in {*named, *named.values()}]
