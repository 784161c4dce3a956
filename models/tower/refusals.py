"""What can't be done inside a vision tower, said when a model is wrapped and not when it runs."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from vtc.models.layout.family import UNKNOWN, Family
from vtc.models.layout.layouts_by_family import VisionCall
from vtc.models.layout.model_parts import Parts
from vtc.pruners.base import Pruner, Stop
from vtc.pruners.signals import EncoderAttention, EncoderSegments, EncoderSignal, Pixels, PreProjector, Signal

from .captures_needed import layer_of

PATHS = ("encoder.layers", "encoder.layer", "vision_model.encoder.layers", "transformer.layers", "blocks", "layers")
DENSE_TOWERS = ("clip_vision_model", "siglip_vision_model", "dinov2", "qianfan_ocr_vision", "janus_vision_model")
FEATURE_LAYER, FEATURE_STRATEGY = "vision_feature_layer", "vision_feature_select_strategy"
QUERIES = ("auto", "cls", "received", "mean", "global", "cls_or_none")


def vision_layers(tower: nn.Module) -> Sequence[nn.Module]:
    """The layers of a transformers vision tower."""
    for path in PATHS:
        found: Any = tower
        for name in path.split("."):
            found = getattr(found, name, None)
        if isinstance(found, nn.ModuleList):
            return found  # type: ignore[return-value]
    raise NotImplementedError(
        f"vtc finds no list of layers in the vision tower {type(tower).__name__} (looked for {', '.join(PATHS)}), so "
        "it has no encoder signals and no vision stage; use a method of the input or decoder stage that reads none"
    )


def prefix_tokens(tower: nn.Module) -> int:
    """Class tokens in front of a row."""
    embeddings = getattr(getattr(tower, "vision_model", tower), "embeddings", None)
    return int(hasattr(embeddings, "class_embedding") or hasattr(embeddings, "cls_token"))


def cut_of(call: VisionCall, family: Family) -> int:
    """How many tokens in front of a row the model cuts off before the projector, by the call or the configuration."""
    return int(call.option(FEATURE_STRATEGY) == "default") if family.cut is None else family.cut


def check_features_asked(call: VisionCall, side: Any) -> None:
    """Refuse a call that has the projector read elsewhere than the model did when it was wrapped, where that matters.

    Raises
    ------
    NotImplementedError
        If a method reads or prunes there.
    """
    index = call.option(FEATURE_LAYER)
    if side.by_last and read_layer(index, len(side.layers)) != side.last:
        raise NotImplementedError(
            f"vision_feature_layer={index} is not what it was when the model was wrapped, and its pruner reads or "
            "prunes by it: set model.config.vision_feature_layer and call vtc.compress(...) again, or use a method "
            "that needs nothing of the encoder"
        )
    if side.stops and cut_of(call, side.family) != side.prefix:
        raise NotImplementedError(
            f"vision_feature_select_strategy={call.option(FEATURE_STRATEGY)!r} feeds the class token to the language "
            "model, which pruning inside the tower does not support; use the input stage"
        )


def read_layer(index: Any, depth: int) -> int:
    """The layer whose output the projector reads: ``hidden_states[-2]`` is the output of the last layer but one."""
    if isinstance(index, (list, tuple)):
        index = max(i if i >= 0 else depth + 1 + i for i in index)
    if index is None:
        return depth - 1
    return depth + index if index < 0 else index - 1


def _passes_on(layer: nn.Module) -> bool:
    """Whether a layer takes further arguments by name, for its attention."""
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(layer.forward).parameters.values())


def check_signals(parts: Parts, signals: Iterable[Signal], prefix: int, depth: int, in_tower: bool = False) -> None:
    """Refuse encoder signals that this tower does not have.

    Raises
    ------
    NotImplementedError
        For an unknown family, the class token's attention on a tower without one, or segments behind the tower.
    ValueError
        For a layer or a kind of query that is not there.
    """
    for signal in signals:
        if parts.family.align is None and parts.family.no_project != UNKNOWN:
            raise NotImplementedError(
                f"{signal}: {parts.family.name} has no encoder signals, because {parts.family.no_project}; use a "
                "method that reads none"
            )
        if parts.family.align is None:
            raise NotImplementedError(
                f"{signal}: vtc does not know how the patches of {parts.family.name} become tokens; use a method "
                "without encoder signals, or give the family an alignment in vtc/models/layout/families.py"
            )
        if isinstance(signal, EncoderAttention):
            if signal.queries not in QUERIES:
                raise ValueError(
                    f"EncoderAttention.queries must be one of {', '.join(QUERIES)}, got {signal.queries!r}"
                )
            if signal.queries == "cls" and not prefix:
                raise NotImplementedError(
                    f"{signal}: the vision tower of {parts.family.name} ({type(parts.tower).__name__}) has no class "
                    "token; use queries='received', or 'auto' for whichever there is"
                )
        if isinstance(signal, EncoderSegments) and not in_tower:
            raise NotImplementedError(
                f"{signal} is read inside the vision tower only; behind it, layouts have the crops"
            )
        if isinstance(signal, Pixels) and not in_tower:
            raise NotImplementedError(f"{signal} are read at the vision stage only")
        if isinstance(signal, EncoderSignal) and not 0 <= layer_of(signal, 0, depth) < depth:
            raise ValueError(f"{signal}: the vision tower has layers 0 to {depth - 1} (or -1 to -{depth})")


def check_stops(
    parts: Parts, stops: Sequence[tuple[Pruner, Stop]], prefix: int, cut: int, last: int, depth: int
) -> list[tuple[int, Pruner, Stop]]:
    """Refuse what can't be pruned inside the tower; gives the stops with their layers counted from 0.

    Raises
    ------
    NotImplementedError
        For families, towers and methods that can't.
    ValueError
        For layers that are not there.
    """
    found = []
    instead = "use the input stage, which prunes right behind the projector"
    for pruner, _ in stops:
        if parts.family.no_vision_stage:
            raise NotImplementedError(
                f"{pruner.spoken_name}: {parts.family.name} can't be pruned inside its vision tower: "
                f"{parts.family.no_vision_stage}; {instead}"
            )
    for pruner, stop in ((p, s) for p, given in stops for s in p.tower_stops(given, last)):
        name, tower = pruner.spoken_name, type(parts.tower).__name__
        kind = getattr(parts.tower.config, "model_type", None)
        if not parts.family.packed and kind not in DENSE_TOWERS:
            raise NotImplementedError(
                f"{name}: the vision tower {tower} can't be pruned inside (CLIP, SigLIP and DINOv2 can); {instead}"
            )
        if not parts.family.packed and not _passes_on(vision_layers(parts.tower)[0]):
            raise NotImplementedError(
                f"{name}: the vision tower {tower} can't be pruned inside with this version of transformers, because "
                f"its layers pass nothing on to their attention (DINOv2: from 5.23 on); {instead}"
            )
        if cut != prefix:
            raise NotImplementedError(
                f"{name}: this model feeds its class token to the language model "
                f"(vision_feature_select_strategy), which pruning inside the tower does not support; {instead}"
            )
        if pruner.merges and parts.family.unit(parts.config) > 1:
            raise NotImplementedError(
                f"{name} merges tokens, which inside the vision tower needs one patch a token; {instead}"
            )
        allowed = f"0 to {last}, the last layer that the projector depends on"
        if stop.layer is None:
            raise ValueError(f"{name}: the vision stage needs a layer ({allowed})")
        layer = stop.layer if stop.layer >= 0 else depth + stop.layer
        if not 0 <= layer <= last:
            raise ValueError(f"{name}: layer={stop.layer} is out of range for the vision stage; allowed is {allowed}")
        signals = pruner.signals_at(stop)
        check_signals(parts, signals, prefix, depth, in_tower=True)
        for signal in signals:
            if isinstance(signal, Pixels):  # there before the first layer
                continue
            if not isinstance(signal, EncoderSignal) or isinstance(signal, PreProjector):
                raise NotImplementedError(
                    f"{name} reads {signal}, which is not there yet inside the vision tower; {instead}"
                )
            if not 0 <= layer_of(signal, layer - 1, depth) < layer:
                raise ValueError(f"{name} prunes before encoder layer {layer} and can't read {signal}: it comes later")
        found.append((layer, pruner, stop))
    return found
