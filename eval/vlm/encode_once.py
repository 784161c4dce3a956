"""The vision tower runs once per image: its output is kept and handed back in for every question and every cell."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .prompts import Row

RECORD = "_vtc"
# multi-axis rotary positions (Qwen-VL) are laid out by these, also where the features are there already
POSITION_INPUTS = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")


def core_of(model: Any) -> Any:
    """The composite model that owns ``get_image_features``."""
    while hasattr(model, "get_base_model"):  # PEFT
        model = model.get_base_model()
    return getattr(model, "base_model", model)


def reuses_encoder(model: nn.Module) -> bool:
    """Whether this transformers version lets a forward take encoder outputs (``mm_encoder_outputs``)."""
    return "mm_encoder_outputs" in inspect.signature(type(core_of(model)).forward).parameters


def to_device(value: Any, model: nn.Module) -> Any:
    """Tensors of `value` on the model's device, floating ones in its dtype."""
    if not isinstance(value, Tensor):
        return value
    first = next(model.parameters())
    return value.to(first.device, first.dtype if value.is_floating_point() else None)


@torch.no_grad()
def encode(model: nn.Module, row: Row) -> Any:
    """The vision tower's output (a ``ModelOutput``) for the images, or the video, of one row.

    With a wrapped `model` it also carries what the method recorded, so it fits that method and every other one that
    reads the same encoder signals.
    """
    get = getattr(core_of(model), f"get_{row.modality}_features")
    known = inspect.signature(get).parameters
    inputs = {name: to_device(value, model) for name, value in row.vision.items() if name in known}
    return get(**inputs, return_dict=True)


def encoder_inputs(rows: Sequence[Row], outputs: Sequence[Any], model: nn.Module) -> dict[str, Any]:
    """What a forward takes in the place of `rows`' pixels: their encoder outputs, and what positions are made of."""
    given: dict[str, Any] = {}
    for modality in dict.fromkeys(row.modality for row in rows):
        same = [output for row, output in zip(rows, outputs, strict=True) if row.modality == modality]
        given.setdefault("mm_encoder_outputs", {})[modality] = join_outputs(same)
    for name in POSITION_INPUTS:
        parts = [row.vision[name] for row in rows if row.vision.get(name) is not None]
        if parts:
            whole = torch.cat(list(parts)) if isinstance(parts[0], Tensor) else [x for part in parts for x in part]
            given[name] = to_device(whole, model)
    return given


def _join(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts))
    return type(parts[0])(item for part in parts for item in part)


def _join_layer(parts: Sequence[Any]) -> Any:
    """What is fed at one decoder layer; Granite 4 vision has the layer's number in front of it."""
    if isinstance(parts[0][0], int):
        return parts[0][0], _join([items for _, items in parts])
    return _join(parts)


def join_outputs(outputs: Sequence[Any]) -> Any:
    """One encoder output that holds the items of several, in order; the same one may occur more than once."""
    first = outputs[0]
    fields: dict[str, Any] = {}
    if first.pooler_output is not None:
        fields["pooler_output"] = _join([o.pooler_output for o in outputs])
    if getattr(first, "deepstack_features", None) is not None:
        layers = zip(*(o.deepstack_features for o in outputs), strict=True)
        fields["deepstack_features"] = [_join_layer(layer) for layer in layers]
    joined = type(first)(**fields)
    if hasattr(first, RECORD):
        setattr(joined, RECORD, join_records([getattr(o, RECORD) for o in outputs]))
    return joined


def join_records(records: Sequence[Any]) -> Any:
    """``VisionRecord`` of several encoder outputs, in order."""
    from vtc.models.layout.crops_by_family import join_small
    from vtc.models.layout.vision_call_record import VisionRecord, VisionStep

    first = records[0]
    return VisionRecord(
        modality=first.modality,
        lengths=[n for r in records for n in r.lengths],
        layouts=lambda: [layout for r in records for layout in r.layouts()],
        signals={key: [x for r in records for x in r.signals[key]] for key in first.signals},
        may_have_newlines=first.may_have_newlines,
        small=lambda: join_small([r.small() for r in records]),
        steps=[
            VisionStep(step.layer, [kept for r in records for kept in r.steps[i].kept])
            for i, step in enumerate(first.steps)
        ],
    )
