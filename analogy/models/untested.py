"""Pipelines of diffusers that the suite is not tested with: supported by replay after a check.

Such a pipeline's class must be one that diffusers exports, and its parts must be of the classes
that its constructor declares. When it is loaded, replay must reproduce the pipeline's own image,
and another prompt must change it. Otherwise the pipeline is refused.
"""

from __future__ import annotations

import inspect
import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor

from analogy.core.errors import ModelError
from analogy.models.declared import declared_parts, lacking
from analogy.models.families import FAMILIES, Family, Sampling, with_family
from analogy.models.libraries import diffusers
from analogy.models.memory import MemoryFullError
from analogy.models.networks import reason
from analogy.models.recorded import PROBES
from analogy.models.replay import SEED_BITS, Replay, generator_of, twin_of
from analogy.models.replay_table import CFG, EMBEDDED_GUIDANCE, ROWS, TRUE_CFG, PipelineRow

#: Pixels a side of the check's images: the first of these that the pipeline's call accepts, else
#: its native size.
SIZES = (64, 128, 256)
#: The most that 8-bit rounding may change an image's values 0..1, and the least that a prompt must.
ROUNDING, EFFECT = 1 / 255, 2 / 255


def family_named(name: str) -> Family:
    """The family of a pipeline's class: a tested one, or replay for another class of diffusers.

    Imports nothing for the name but installed families and what diffusers exports. Raises
    ``ModelError`` if no family supports it.
    """
    if FAMILIES.is_installed(name):
        return FAMILIES.get(name)
    why = lacking(name)
    if why is not None:
        raise ModelError(
            f"expected a pipeline of the families supported ({', '.join(FAMILIES.names())}), "
            f"got {name}: {why}"
        )
    return _untested(name)


@cache
def _untested(name: str) -> Replay:
    kind = getattr(diffusers, name)
    known: dict[str, tuple[str, ...]] = {}
    for tested, row in ROWS.items():
        for part, classes in {**declared_parts(getattr(diffusers, tested)), **row.parts}.items():
            known[part] = (*known.get(part, ()), *classes)
    # For a declared base class, any class is accepted that a tested pipeline has in that part.
    parts = {
        part: tuple(dict.fromkeys(known.get(part, ())))
        for part, classes in declared_parts(kind).items()
        if any(each.partition(".")[2] in _BASES for each in classes)
    }
    call = inspect.signature(kind.__call__).parameters
    scales = [
        knob
        for knob in (TRUE_CFG, CFG)
        if knob.name in call and call[knob.name].default is not None
    ]
    if scales == [TRUE_CFG, CFG]:
        return Replay(name, PipelineRow(TRUE_CFG, second=EMBEDDED_GUIDANCE, parts=parts))
    return Replay(name, PipelineRow(scales[0] if scales else None, parts=parts))


#: Base classes, which do not identify a part's own class.
_BASES = frozenset(
    {
        "AutoModel", "AutoTokenizer", "AutoTokenizerFast", "AutoProcessor", "ModelMixin",
        "PreTrainedModel", "PreTrainedTokenizer", "PreTrainedTokenizerBase",
        "PreTrainedTokenizerFast", "ProcessorMixin",
    }
)  # fmt: skip


def with_checked_family(pipeline: Any) -> None:
    """Assign replay to a pipeline of an untested class, after :func:`check_untested`."""
    family = _untested(type(pipeline).__name__)
    check_untested(pipeline, family)
    with_family(pipeline, family)


def check_untested(pipeline: Any, family: Replay) -> None:
    """Warn that a pipeline is not tested, or raise ``ModelError`` if it fails the check.

    Replay makes one-step images of two prompts. The first image must be that of the pipeline's own
    call, and the second must differ from it.
    """
    name = type(pipeline).__name__
    noise = torch.randn(1, SEED_BITS, generator=torch.Generator().manual_seed(0))
    own, sampling = _own_image(pipeline, family, noise[0])
    with torch.inference_mode():
        made = family.encode(pipeline, [PROBES[0], PROBES[-1]])
        images = [_image(pipeline, family, each, noise, sampling) for each in made]
    missed = (images[0] - own).abs().max().item()
    moved = (images[1] - images[0]).abs().max().item()
    if not missed <= ROUNDING:
        raise ModelError(
            f"{name}: a pipeline that the suite is not tested with, and its own image was not "
            f"reproduced: expected values within {ROUNDING:.4f}, of 0..1, got {missed:.4f}; its "
            "call reads the prompt in another way than by encode_prompt, or is not repeatable"
        )
    if not moved >= EFFECT:
        raise ModelError(
            f"{name}: a pipeline that the suite is not tested with, and what encode_prompt returns "
            f"does not change its image: expected at least {EFFECT:.4f}, of 0..1, got {moved:.4f}"
        )
    warnings.warn(
        f"{name} is not among the pipelines that the suite is tested with. When it was loaded, its "
        f"own image of one step was reproduced (within {missed:.4f}, of 0..1) and another prompt "
        f"changed it (by {moved:.2f}); nothing else was checked",
        stacklevel=2,
    )


def _own_image(pipeline: Any, family: Replay, noise: Tensor) -> tuple[Tensor, Sampling]:
    """The image of the pipeline's own call, (3, size, size) of 0..1, and how it was sampled."""
    _, guidance = family.defaults()
    failed: Exception | None = None
    for size in dict.fromkeys((*SIZES, family.size_of(pipeline))):
        sampling = Sampling(1, guidance, size)
        twin = twin_of(pipeline)
        vars(twin).update(family.attributes(pipeline, sampling))
        try:
            images = twin(
                prompt=PROBES[0], height=size, width=size, generator=generator_of(noise),
                output_type="pt", return_dict=False, **family.arguments(sampling),
            )[0]  # fmt: skip
        except MemoryFullError:
            raise
        except Exception as error:  # a pipeline may raise any error for a size or a missing input
            failed = error
            continue
        return images[0, :3].float().cpu(), sampling
    assert failed is not None
    raise ModelError(
        f"{type(pipeline).__name__}: expected an image of a prompt alone, got {reason(failed)}"
    ) from failed


def _image(pipeline: Any, family: Replay, made: Any, noise: Tensor, sampling: Sampling) -> Tensor:
    latents = family.denoise(pipeline, [made], made, noise, sampling)
    vae = getattr(pipeline, family.decoder)
    image = family.decode(vae, latents.to(vae.dtype), sampling.size)[0]
    return (image.float() * 0.5 + 0.5).clamp(0, 1).cpu()
