"""The origin of a run's figures, and the command that repeats the run, for the report."""

from __future__ import annotations

from analogy.core.records import IMPORTED, WHOLE, is_imported
from analogy.core.text import analogy_command, command_line, guidance_text
from analogy.results.cost import MethodCost
from analogy.results.model import Header, Results, Settings
from analogy.settings.options import OPTIONS, csv_list


def provenance(results: Results) -> list[tuple[str, str]]:
    """The provenance of the figures, as names and values."""
    header = results.header
    config, subject, found = header.config, header.subject, header.provenance
    return [
        ("model", f"{config.text('model')}: {subject.model}"),
        ("judge", f"{config.text('clip_model') or ''}: {found.judge}"),
        (
            "method",
            subject.method if subject.window == WHOLE else f"{subject.method}, {subject.window}",
        ),
        (
            "sampling",
            f"{subject.steps} steps, "
            f"{guidance_text(subject.guidance, subject.second_guidance, found.guidance)}, "
            f"{subject.scheduler}, "
            f"{header.measurement.size} px, {subject.dtype} on {subject.device}",
        ),
        ("suite", subject.suite),
        ("commit", subject.commit or "not known"),
        ("python", found.python or "not known"),
        ("packages", ", ".join(f"{name} {version}" for name, version in found.packages.items())),
        ("machine", ", ".join(f"{name}: {value}" for name, value in found.machine.items())),
        ("time", found.time or "not known"),
        *_sequential(results),
        ("generated", _rate(results.throughput.generate)),
        ("scored", _rate(results.throughput.score)),
        *_cost(results.cost),
    ]


def _sequential(results: Results) -> list[tuple[str, str]]:
    """The random order of the pairs and the options of a sequential run; otherwise empty."""
    saved, chosen = results.saved, results.header.config.sequential
    if not chosen:
        return []
    seed = 0 if saved is None else saved.order_seed
    others = [f"--{name.replace('_', '-')}" for name in chosen if name not in _ALWAYS]
    return [
        ("sequential", ", ".join([f"order seed {seed}", *others])),
        *(
            (f"order of {category}", digest)
            for category, digest in ({} if saved is None else saved.order).items()
        ),
    ]


def _cost(cost: MethodCost | None) -> list[tuple[str, str]]:
    """The measured costs of the method; empty if nothing was measured."""
    found: list[tuple[str, str]] = []
    if cost is None:
        return found
    if cost.seconds is not None:
        text = f"{cost.seconds:.4f} s for an image, {cost.images:,} images timed"
        if cost.ratio is not None:
            text += f"; {cost.ratio:.2f} times an unsteered one ({cost.unsteered_seconds:.4f} s)"
        found.append(("cost of the method", text))
    if cost.fit is not None:
        fit = f"{cost.fit.seconds:.1f} s, {cost.fit.images:,} images denoised"
        found.append(("fit of the method", fit))
    if cost.peak_bytes is not None:
        found.append(("memory", f"{cost.peak_bytes / 2**20:,.0f} MiB at most ({cost.memory})"))
    return found


_ALWAYS = ("sequential", "order_seed")


def _rate(rate: float | None) -> str:
    return "not timed" if rate is None else f"{rate:.1f} images/s"


def commands(header: Header) -> list[str]:
    """The commands that repeat the results: a run or, for imported images, an import and a score.
    RUN and MANIFEST stand for the user's paths, which results do not record.
    """
    config, model = header.config, header.subject.model
    if not is_imported(model):
        return [command(config)]
    name, _, tool = model.partition(IMPORTED)
    judge = [f"--clip-model={config.text('clip_model')}"]
    weights = config.text("clip_pretrained")
    if weights is not None:
        judge.append(f"--clip-pretrained={weights}")
    if tool == header.subject.method:  # exported jobs: their folder records pairs and judge
        return [
            analogy_command("import", "RUN", "MANIFEST"), analogy_command("score", "RUN", *judge)
        ]  # fmt: skip
    of_images = [f"--model-name={name}", f"--pairs={config.text('pairs')}"]
    return [
        analogy_command("import", "RUN", "MANIFEST", *of_images, *judge),
        analogy_command("score", "RUN", *judge),
    ]


def command(config: Settings) -> str:
    """The command that repeats a run, with every resolved setting."""
    values = {**config.values, "model": config.model, "lora": config.lora}
    words = ["pytest", "benchmarks"]
    for option in OPTIONS:
        value = values.get(option.name.removeprefix("analogy_"))
        if value is None or value is False:
            continue
        if isinstance(value, (list, tuple)):
            value = csv_list(map(str, value))
        words.append(option.flag if value is True else f"{option.flag}={value}")
    return command_line(*words)
