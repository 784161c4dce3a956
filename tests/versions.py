"""What older transformers does wrong in unwrapped models too: tests step around exactly that."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import transformers
from reference import greedy
from torch import nn
from transformers import CONFIG_MAPPING, GenerationMixin, LlavaModel
from transformers.models.dinov2.modeling_dinov2 import Dinov2Layer

# since 5.18: pictures are encoded before beams are made of a prompt, and a forward takes what came out
TAKES_FEATURES = "mm_encoder_outputs" in inspect.signature(LlavaModel.forward).parameters
ENCODES_FIRST = hasattr(GenerationMixin, "_prepare_multimodal_encoder_kwargs_for_generation")
# since 5.23: arguments go through a layer to its attention, so that the tower can be pruned inside
PRUNES_DINOV2 = "kwargs" in inspect.signature(Dinov2Layer.forward).parameters
# these always expanded by sample
EXPANDED_BY_SAMPLE = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "idefics3", "smolvlm")


def known(kind: str) -> str:
    """`kind`, a model type; skipped where the installed transformers has none such."""
    if kind not in CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {kind}")
    return kind


def mixes_pictures(family: str) -> bool:
    """Whether beams and several returned sequences get wrong pictures where a sample has several, or tiles."""
    return not ENCODES_FIRST and family not in EXPANDED_BY_SAMPLE


def beam_shape(family: str, shape: str) -> str:
    """`shape`, or where its pictures would be mixed up one with a picture of one tile in a sample."""
    return "singles" if mixes_pictures(family) else shape


def second_turn_shape(family: str) -> str:
    """A batch with a row of text, unless the model itself misplaces that row's second turn (Qwen on 5.5.0)."""
    return "ragged" if not ENCODES_FIRST and family.startswith("qwen") else beam_shape(family, "text_row")


def greedy_offloaded(model: nn.Module, inputs: dict[str, Any], steps: int) -> Any:
    """`greedy` of an unwrapped, offloaded model; skipped where it can't itself (Qwen3-VL, 5.5.0)."""
    try:
        return greedy(model, inputs, steps)
    except NotImplementedError:
        if ENCODES_FIRST:
            raise
        pytest.skip("this version of transformers can't run it offloaded, unwrapped either")
