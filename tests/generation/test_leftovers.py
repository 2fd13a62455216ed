"""A method that leaves something on the pipeline is caught after its batch, whatever it is."""

from __future__ import annotations

import copy
from contextlib import contextmanager

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from leftovers import left_behind, state_of

from analogy.models.generator import Generator
from analogy.studies.study import Study


class Careless:
    """Leaves a hook behind."""

    name, version, needs = "careless", "", frozenset()
    exclusive, per_row = True, False

    def condition(self, edit, alpha):
        return edit.source

    @contextmanager
    def applied(self, pipeline, rows, start=0):
        self.handle = pipeline.unet.register_forward_hook(lambda *_: None)
        yield


careless = Careless()


def test_a_hook_that_a_method_leaves_fails_the_batch(make_study, pairs):
    study: Study = make_study(
        pairs=pairs[:1], method="test_leftovers:careless", seeds=(0,), alphas=(1.0,)
    )
    unsteered, steered = study.jobs()
    study.generate([unsteered])
    try:
        with pytest.raises(AssertionError, match=r"left behind on the pipeline: unet\.: hooks"):
            study.generate([steered])
    finally:
        careless.handle.remove()


def swap_step(pipeline):
    pipeline.scheduler.step = pipeline.scheduler.step


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda p: p.unet.mid_block.register_forward_pre_hook(print), "unet.mid_block: hooks"),
        (lambda p: p.unet.set_attn_processor(AttnProcessor()), "processor"),
        (lambda p: p.unet.conv_in.bias.data.add_(1.0), "unet.conv_in.bias: weights"),
        (lambda p: setattr(p.unet.conv_in, "forward", p.unet.conv_in.forward), "forward"),
        (lambda p: setattr(p.unet.conv_in, "scaling", {"slider": 2.0}), "unet.conv_in: adapters"),
        (lambda p: setattr(p, "scheduler", copy.copy(p.scheduler)), "scheduler"),
        (swap_step, "scheduler: own attributes"),
    ],
)
def test_each_kind_of_change_is_seen(pipeline, change, name):
    own = copy.copy(pipeline)
    own.unet, own.scheduler = copy.deepcopy(pipeline.unet), copy.copy(pipeline.scheduler)
    before = state_of(own)
    generator = Generator(own, steps=1, guidance=3.0, size=64)
    generator.generate([generator._empty], torch.zeros(1, *generator.latent_shape))
    assert left_behind(before, state_of(own)) == []  # sampling itself is no change
    change(own)
    left = left_behind(before, state_of(own))
    assert left
    assert all(name in each for each in left)
