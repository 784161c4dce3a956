"""Finds the parts of a VLM: the composite model, its language model, the decoder layers and the vision tower."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from .families import family_of
from .family import Family
from .find_parts import find_core, find_final_norm, find_layers, find_lm, find_tower
from .refused_models import encodes_and_decodes, no_composite, refuse_nested

CORE_PARTS = ("core", "lm", "layers", "tower")


@dataclass
class Parts:
    """The modules that vtc hooks.

    Attributes
    ----------
    model : nn.Module
        The generating model, out of any wrapper of PEFT or ``torch.compile``.
    core : nn.Module
        The composite model that merges image features into text embeddings (``model.base_model``).
    lm : nn.Module
        The text model inside it, which owns `layers` and the last norm.
    layers : nn.ModuleList
        Decoder layers.
    tower : nn.Module or None
        The vision tower; None where the model has none of its own.
    family : Family
        What is known about this kind of model.
    """

    model: Any
    core: Any
    lm: Any
    layers: Any
    tower: Any
    family: Family

    @property
    def config(self) -> Any:
        """Configuration of the composite model."""
        return self.core.config

    @property
    def final_norm(self) -> Any:
        """The language model's norm before ``lm_head``."""
        norm = find_final_norm(self.lm, self.layers)
        if norm is None:
            raise NotImplementedError(
                f"{type(self.lm).__name__} has no norm behind its layers: use a method that reads no logits"
            )
        return norm


def wrappers(model: Any) -> Iterator[Any]:
    """`model` and what is inside it, layer by layer: PEFT wrappers, what ``torch.compile`` gives, the model itself."""
    while True:
        yield model
        compiled = getattr(model, "_modules", {}).get("_orig_mod")
        if compiled is not None:
            model = compiled
        elif hasattr(model, "get_base_model"):
            model = model.get_base_model()
        else:
            return


def unwrap(model: Any) -> Any:
    """The transformers model inside PEFT wrappers and what ``torch.compile`` gives."""
    *_, inner = wrappers(model)
    return inner


def _check_places(core: Any, lm: Any, layers: Any, tower: Any, named: Mapping[str, str]) -> None:
    """Raise ValueError where a part can't be what it was taken for: hooks there would see nothing, or another model."""

    def called(key: str, found: Any) -> str:
        return f"parts[{key!r}]={named[key]!r}" if key in named else f"the {key} found, {type(found).__name__},"

    if not (isinstance(layers, nn.ModuleList | nn.Sequential) and len(layers)):
        raise ValueError(
            f"{called('layers', layers)} is no list of decoder layers (an nn.ModuleList) but {type(layers).__name__}; "
            "name it with VTCConfig(parts={'layers': ...}), e.g. 'model.language_model.layers'"
        )
    for key, inner, outer_key, outer in (
        ("lm", lm, "core", core),
        *([("tower", tower, "core", core)] if tower is not None else []),
        ("layers", layers, "lm", lm),
    ):
        if inner is outer or not any(module is inner for module in outer.modules()):
            raise ValueError(f"{called(key, inner)} is not inside {called(outer_key, outer).rstrip(',')}")


def _family(model: Any, named: Mapping[str, str]) -> Family:
    """What the table knows about a model, or that it knows nothing."""
    config = getattr(model, "config", None)
    kind = getattr(config, "model_type", None)
    if type(model).__module__.split(".")[0] == "transformers_modules" and not named:
        raise NotImplementedError(
            f"{type(model).__name__} is remote code, whose forward vtc can't know. Load the transformers-native port "
            f"of the model (a '-hf' repository), or name its modules with VTCConfig(parts={{...}})."
        )
    if kind is None and not named:
        raise NotImplementedError(
            f"{type(model).__name__} (of {type(model).__module__.split('.')[0]}) is neither a transformers model "
            "nor a VisionTransformer of timm or open_clip (ViT, DeiT, DINOv2, SigLIP, CLIP): of other libraries' "
            "models vtc prunes only these. If it is built like a transformers VLM (get_image_features, then a text "
            "model called with inputs_embeds), name its modules: VTCConfig(..., parts={'core': ..., 'lm': ..., "
            "'layers': ..., 'tower': ...})."
        )
    return family_of(config) or Family.unknown(str(kind))


def locate(model: nn.Module, parts: Mapping[str, str] | None = None) -> Parts:
    """Find the parts of `model`.

    Parameters
    ----------
    model : nn.Module
        A transformers VLM, with or without its generation head, bare, inside PEFT or compiled.
    parts : mapping, optional
        Paths of modules that inspection takes for others: ``core``, ``lm``, ``layers``, ``tower``.

    Raises
    ------
    TypeError
        If `model` is no ``nn.Module``.
    NotImplementedError
        For remote code, and for models that don't feed visual tokens to a text model as columns; the message says why.
    ValueError
        If `parts` names something that is not there.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch module (a transformers VLM), got {type(model).__name__}")
    model = unwrap(model)
    named = dict(parts or {})
    for key in named:
        if key not in CORE_PARTS:
            raise ValueError(f"parts has no entry {key!r}; allowed are {', '.join(CORE_PARTS)}")
    family = _family(model, named)

    def module(key: str) -> Any:
        if key not in named:
            return None
        try:
            return model.get_submodule(named[key])
        except AttributeError as error:
            raise ValueError(f"parts[{key!r}]={named[key]!r} is no module of {type(model).__name__}: {error}") from None

    core = module("core") or (None if encodes_and_decodes(model) else find_core(model))
    if core is None:
        raise no_composite(model)
    lm = module("lm") or find_lm(core)
    layers = module("layers") or (None if lm is None else find_layers(lm))
    for key, found in (("lm", lm), ("layers", layers)):
        if found is None:
            raise ValueError(
                f"no {key} found in {type(model).__name__}; name it with VTCConfig(parts={{{key!r}: ...}})"
            )
    tower = module("tower") or find_tower(core, lm)
    _check_places(core, lm, layers, tower, named)
    if "core" not in named:
        refuse_nested(model, core)
    return Parts(model, core, lm, layers, tower, family)
