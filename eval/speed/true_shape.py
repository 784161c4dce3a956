"""A model of a configuration alone: true layer shapes, random weights, and as many layers as memory holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vtc.eval.check.tiny_model.layer_kinds import keep_layers, kinds_of, pick
from vtc.eval.check.tiny_model.shrink import fit_feature_layers
from vtc.eval.vlm.prompts import visual_token_ids
from vtc.models.layout.model_parts import locate
from vtc.models.tower.refusals import vision_layers
from vtc.models.try_without_weights import model_without_weights

from .free_memory import free_memory
from .layer_match import Layers

ROOM = 0.6  # of what is free is for weights: the rest is for what a prefill needs
DEPTHS = ("depth", "num_hidden_layers")  # what a tower calls the number of its layers
TEXT, TOWER = "text_config", "vision_config"


@dataclass(frozen=True)
class Shape:
    """What is measured of a configuration.

    Attributes
    ----------
    config : PreTrainedConfig
        With the layers that are measured.
    full : nn.Module
        The whole model, on the device ``meta``.
    text, tower : Layers
        Of the language model, and of the tower (None where its layers are not found).
    missing : int
        Bytes of the weights that are left out.
    """

    config: Any
    full: nn.Module
    text: Layers
    tower: Layers | None
    missing: int


def plan_shape(
    config: Any, device: torch.device, dtype: torch.dtype, layers: int | None = None, tower_layers: int | None = None
) -> Shape:
    """Decide how many layers are measured.

    Parameters
    ----------
    config : PreTrainedConfig
        Of the whole model.
    device, dtype
        Where the weights will be, and of which type.
    layers, tower_layers : int, optional
        How many at most; else what memory holds, the tower first.

    Raises
    ------
    ValueError, NotImplementedError
        If memory does not hold one layer of each kind, or the model is none that vtc can carry.
    """
    full = model_without_weights(config)
    parts = locate(full)
    given = config.to_dict()
    if not isinstance(given.get(TEXT), dict):
        raise NotImplementedError(
            f"vtc can't cut a {config.model_type!r} model, whose configuration has no text_config"
        )
    given[TEXT].setdefault("num_hidden_layers", len(parts.layers))
    placeholders = max(visual_token_ids(config), default=0)
    if given[TEXT]["vocab_size"] <= placeholders:  # as in default configurations, which name no checkpoint's vocabulary
        given[TEXT]["vocab_size"] = placeholders + 1
    itemsize = torch.empty((), dtype=dtype).element_size()
    sizes = [_bytes(layer, itemsize) for layer in parts.layers]
    tower_field = next((name for name in DEPTHS if name in (given.get(TOWER) or {})), None)
    tower_sizes = [] if tower_field is None else [_bytes(layer, itemsize) for layer in tower_layers_of(parts)]
    if tower_field is not None and len(tower_sizes) != given[TOWER][tower_field]:
        tower_field, tower_sizes = None, []
    text_kinds = tuple(kinds_of(given[TEXT], len(sizes)))
    tower_kinds = tuple(kinds_of(given[TOWER], len(tower_sizes))) if tower_field else ()
    free = free_memory(device)
    room = None if free is None else int(ROOM * free)
    left = None if room is None else room - (_bytes(full, itemsize) - sum(sizes) - sum(tower_sizes))
    least = sum(sizes[i] for i in pick(text_kinds, 1))
    tower_count, used = _most(tower_kinds, tower_sizes, tower_layers, None if left is None else left - least)
    count, taken = _most(text_kinds, sizes, layers, None if left is None else left - used)
    if free is not None and room is not None and left is not None and used + taken > left:
        raise ValueError(
            f"memory does not hold {tower_count} + {count} layers of tower and language model: with the rest they "
            f"take {(room - left + used + taken) / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free on {device}, "
            f"and {1 - ROOM:.0%} of that stay for the prefill; take fewer --layers, fewer bytes a weight "
            "(--dtype bfloat16) or another --device"
        )
    text = Layers(text_kinds, tuple(keep_layers(given[TEXT], "num_hidden_layers", count)))
    tower = None
    if tower_field is not None:
        tower = Layers(tower_kinds, tuple(keep_layers(given[TOWER], tower_field, tower_count)))
        if tower.cut:
            fit_feature_layers(given, given[TOWER])
    given.pop("quantization_config", None)  # random weights are of --dtype
    kept = sum(sizes[i] for i in text.picked) + sum(tower_sizes[i] for i in (tower.picked if tower else ()))
    return Shape(type(config).from_dict(given), full, text, tower, sum(sizes) + sum(tower_sizes) - kept)


def tower_layers_of(parts: Any) -> Sequence[nn.Module]:
    """The layers of a tower; empty where there is none, or they are not found."""
    try:
        return vision_layers(parts.tower) if parts.tower is not None else ()
    except NotImplementedError:
        return ()


def _bytes(module: nn.Module, itemsize: int) -> int:
    return itemsize * sum(p.numel() for p in module.parameters())


def _most(kinds: Sequence[Any], sizes: Sequence[int], asked: int | None, room: int | None) -> tuple[int, int]:
    """How many layers fit into `room` bytes, one of each kind at least, and their bytes."""
    counts = range(min(asked or len(kinds), len(kinds)), 0, -1)
    found = (0, 0)
    for count in counts:
        found = count, sum(sizes[i] for i in pick(kinds, count))
        if room is None or found[1] <= room or asked:
            break
    return found


def build(shape: Shape, device: torch.device, dtype: torch.dtype, seed: int) -> Any:
    """The model, with random weights."""
    from transformers import AutoModelForImageTextToText

    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(seed)
        return AutoModelForImageTextToText.from_config(shape.config, dtype=dtype).eval()
