"""Tiny random models of all supported families, with prompts of every shape."""

from __future__ import annotations

from copy import deepcopy
from functools import lru_cache

from torch import nn

from . import models
from .media import AnyRes, Family, Fixed, Media, Packed, Patches, SampleCrops
from .prompts import BATCHES, SHAPES, Prompt, free_prompt, make_prompt, shapes_of
from .tokens import SPECIAL

GRIDS = ((1, 8, 8), (1, 4, 8), (1, 8, 4), (1, 12, 8))
CLIPS = ((3, 4, 8), (2, 8, 8), (2, 4, 4))
BOXES = ((40, 50), (28, 56), (56, 30), (50, 50))

FAMILIES: dict[str, Family] = {
    f.name: f
    for f in (
        Fixed("llava", models.llava),
        Fixed("llava_siglip", models.llava_siglip),
        Fixed("llava_dinov2", models.llava_dinov2),
        Fixed("llava_sliding", models.llava_sliding),
        AnyRes("llava_next", models.llava_next, sizes=BOXES),
        AnyRes("llava_onevision", models.llava_onevision, sizes=BOXES, clips=(3,)),
        Patches("qwen2_vl", models.qwen2_vl, sizes=GRIDS, clips=CLIPS, marked="mm_token_type_ids"),
        Patches("qwen2_5_vl", models.qwen2_5_vl, sizes=GRIDS, clips=CLIPS, marked="mm_token_type_ids"),
        Patches("qwen3_vl", models.qwen3_vl, sizes=GRIDS, clips=CLIPS, marked="mm_token_type_ids", frames=True),
        Fixed("internvl", models.internvl, sizes=(3, 1, 2), tokens=4),
        SampleCrops("idefics3", models.idefics3, sizes=(3, 1, 5), pixels=(32, 32)),
        SampleCrops("smolvlm", models.smolvlm, sizes=(3, 1, 5), pixels=(32, 32)),
        Fixed("gemma3", models.gemma3, touching=False, marked="token_type_ids", pixels=(56, 56)),
        Packed("mistral3", models.mistral3, sizes=((56, 42), (28, 28), (28, 56), (56, 56))),
        Packed("pixtral", models.pixtral, sizes=((28, 42), (14, 14), (14, 28), (28, 28)), stride=7),
    )
}


@lru_cache(maxsize=64)
def _pristine(name: str, impl: str) -> nn.Module:
    return FAMILIES[name].build(impl)


def tiny(name: str, impl: str = "sdpa") -> nn.Module:
    """A model of its own for the caller: what a test breaks, no other test sees."""
    return deepcopy(_pristine(name, impl))


@lru_cache(maxsize=256)
def prompt(name: str, shape: str) -> Prompt:
    """The (shared, immutable) prompt of a shape for a family."""
    return make_prompt(FAMILIES[name], shape)


__all__ = [
    "BATCHES",
    "FAMILIES",
    "SHAPES",
    "SPECIAL",
    "Family",
    "Media",
    "Prompt",
    "free_prompt",
    "make_prompt",
    "prompt",
    "shapes_of",
    "tiny",
]
