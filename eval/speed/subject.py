"""The model that is timed: a real one, or the true layer shapes of a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vtc.eval.check.prompts.build_prompts import kind_of
from vtc.eval.check.tiny_model.shrink import completed
from vtc.eval.terminal.option_checks import check_choice, device_of
from vtc.eval.vlm.loading import config_hash, load_model, quiet_transformers
from vtc.eval.vlm.model_source import configuration, has_processor, read_processor
from vtc.eval.vlm.prompts import Row
from vtc.model_sources import is_bundled
from vtc.models.layout.model_parts import Parts, locate
from vtc.models.tower.refusals import vision_layers

from .inputs import picture_and_question, row_of_processor, row_without_processor
from .layer_match import Layers
from .options import SpeedOptions
from .true_shape import build, plan_shape, tower_layers_of

WEIGHTS = ("*.safetensors", "*.bin", "*.index.json")


@dataclass
class Subject:
    """A model with its prompt.

    Attributes
    ----------
    model : nn.Module
        Unwrapped.
    row : Row
        The prompt; its ``vision`` holds the pixels of the whole batch.
    name, identity : str
        What it is called, and a hash of what it is.
    text, tower : Layers
        Which layers are measured, of which; no tower where its layers are not found.
    full : nn.Module
        A model with all layers, which says where a method prunes there.
    missing : int
        Bytes of the weights that are left out.
    shaped : bool
        Whether the weights are random.
    """

    model: Any
    row: Row
    name: str
    identity: str
    text: Layers
    tower: Layers | None
    full: nn.Module
    missing: int = 0
    shaped: bool = False

    @property
    def parts(self) -> Parts:
        """Where things are in the model that is there."""
        return locate(self.model)

    @property
    def tower_layers(self) -> Sequence[nn.Module]:
        """The tower's layers that are there; empty where they are not found."""
        return () if self.tower is None else vision_layers(self.parts.tower)

    @property
    def cut(self) -> bool:
        """Whether figures are extrapolated."""
        return self.text.cut or (self.tower is not None and self.tower.cut)

    @property
    def words(self) -> str:
        """What was measured, for people."""
        if not self.shaped:
            return f"{self.name}: its own weights, all {self.text.depth} layers"
        tower = "" if self.tower is None else f" and {len(self.tower.picked)} of {self.tower.depth} tower layers"
        how = "; figures are EXTRAPOLATED to all" if self.cut else ""
        layers = f"{len(self.text.picked)} of {self.text.depth} decoder layers"
        return f"{self.name}: random weights of the true shapes, {layers}{tower}{how}"


def has_weights(model: str | None) -> bool:
    """Whether a model's own weights can be read: those of a hub id are fetched."""
    if model is None or is_bundled(model):
        return True
    path = Path(model).expanduser()
    if path.is_dir():
        return any(next(path.glob(pattern), None) is not None for pattern in WEIGHTS)
    return not path.is_file() and "/" in model


def load_subject(options: SpeedOptions) -> Subject:
    """Load or build the model, and make its prompt.

    Raises
    ------
    OSError, ValueError, NotImplementedError
        In one line, if that can't be done.
    """
    picture, question = picture_and_question(options)
    if has_weights(options.model) and not options.shaped:
        loaded = load_model(options.model, options.device, options.dtype)
        row = row_of_processor(loaded.processor, loaded.model.config, picture, question, options.batch)
        parts = locate(loaded.model)
        tower = _tower(parts)
        return Subject(
            loaded.model, row, loaded.name, loaded.identity, Layers.all(len(parts.layers)), tower, loaded.model
        )
    check_choice("dtype", options.dtype, ("auto", "float32", "bfloat16", "float16"))
    device = device_of(options.device)
    quiet_transformers()
    name = options.model or "bundled"
    config, place = configuration(name)
    config = completed(config, kind_of(config).defaults)
    usual = "float32" if device.type == "cpu" else "bfloat16"
    dtype: torch.dtype = getattr(torch, usual if options.dtype == "auto" else options.dtype)
    shape = plan_shape(config, device, dtype, options.layers, options.tower_layers)
    model = build(shape, device, dtype, options.seed)
    if place is None or not has_processor(place):
        row = row_without_processor(model, config, picture, question, options.batch)
    else:
        row = row_of_processor(read_processor(name, place), config, picture, question, options.batch)
    identity = config_hash({"config": config.to_dict()})
    tower = shape.tower or _tower(locate(model))
    return Subject(model, row, name, identity, shape.text, tower, shape.full, shape.missing, True)


def _tower(parts: Parts) -> Layers | None:
    layers = tower_layers_of(parts)
    return Layers.all(len(layers)) if layers else None
