"""The small model: transformers' own code with random, seeded fp32 weights in which a wrong mask shows."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .token_ids import PAD

FLASH = "flash_attention_2"
SLOW = -4.0  # log of the rate at which a recurrent state decays


def build(config: Any, seed: int = 0) -> Any:
    """An evaluation-mode model of `config` with eager attention.

    Weights are larger than a fresh model's, so that attention is not uniform; what has one dimension (norms, biases,
    sinks) is moved a little from where the model itself puts it, so that it plays a part. States forget slowly: what is
    gone after a token would hide a wrong state, and leaves outputs near zero, of which a norm makes rounding errors.
    """
    from transformers import AutoModelForImageTextToText

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config, attn_implementation="eager").float().eval()
    generator = torch.Generator().manual_seed(seed + 1)
    convolutions = {id(m.weight) for m in model.modules() if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d))}
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(".A_log"):
                p.fill_(SLOW)
            noise = torch.randn(p.shape, generator=generator)
            if p.dim() >= 2:
                read = p[0].numel() if id(p) in convolutions else p.shape[-1]
                p.copy_(noise * (0.15 if id(p) in tables else 1.5 / read**0.5))
            else:
                p.add_(0.05 * noise)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model


def with_attention(model: Any, implementation: str) -> Any:
    """A copy of `model` that runs another attention implementation.

    Raises
    ------
    ValueError, ImportError, NotImplementedError
        transformers' own, if the model does not have it.
    """
    other = copy.deepcopy(model)
    wanted: Any = implementation
    if implementation == "flex_attention":  # the decoder is what it is for; torch's CPU kernel can crash in a tower
        wanted = {"text_config": implementation, "vision_config": "sdpa"}
    try:
        other.set_attn_implementation(wanted)
    except ValueError:  # a tower that has one implementation only (Apertus)
        other.set_attn_implementation({"text_config": implementation})
    used = other.config.get_text_config()._attn_implementation
    if used != implementation:
        raise NotImplementedError(f"transformers runs {used} instead")
    return other


@contextmanager
def uncompiled_flex() -> Iterator[None]:
    """Flex attention as it is defined: torch's compiled CPU kernel does not always give the same answer."""
    with torch.compiler.set_stance("force_eager"):
        yield
