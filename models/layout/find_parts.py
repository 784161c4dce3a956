"""Finds the parts of any composite model by looking at it: what its modules take, own, and are configured by.

No list of model families and no list of module names: a text model is what takes embeddings and a cache and owns
decoder layers, the composite model is what puts picture features into those embeddings, and a vision tower is what
the composite model's own configuration calls so.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from vtc.models.stock.call_arguments import takes
from vtc.models.stock.transformers_api import FEATURES

LISTS = (nn.ModuleList, nn.Sequential)


def find_core(model: nn.Module) -> Any:
    """The innermost module that makes picture features and hands embeddings to a text model inside it; None: none."""
    found = None
    for module in model.modules():  # outer ones come first
        if makes_features(module) and takes(module, "embeds") and takes(module, "ids") and find_lm(module) is not None:
            found = module
    return found


def find_lm(core: Any) -> Any:
    """The outermost text model inside a composite one; None: there is none, or `core` is itself one."""
    text = text_config(core)
    found = [m for m in core.modules() if m is not core and is_text_model(m)]
    configured = [m for m in found if getattr(m, "config", None) is text]
    return next(iter(configured or found), None)


def find_layers(lm: Any) -> Any:
    """The decoder layers that a text model owns; None: it owns none."""
    lists = list(_layer_lists(lm))
    depth = getattr(getattr(lm, "config", None), "num_hidden_layers", None)
    return next((one for one in lists if len(one) == depth), lists[0] if lists else None)


def find_final_norm(lm: Any, layers: Any) -> Any:
    """The norm behind the decoder layers of a text model; None: there is none."""
    children = list(lm.named_children())
    norms = [(i, m) for i, (name, m) in enumerate(children) if "norm" in name]
    place = next((i for i, (_, m) in enumerate(children) if m is layers), -1)
    behind = [m for i, m in norms if i > place]
    return behind[0] if behind else norms[-1][1] if norms else None


def find_tower(core: Any, lm: Any) -> Any:
    """The vision tower of a composite model; None: it has none of its own, or it can't be told which module it is.

    Of several (a tower for pictures and one for videos, a fine and a coarse one), the first that is called once
    for every picture is as good as another: nothing but encoder signals depends on it.
    """
    inside = {id(m) for m in lm.modules()}
    outside = [(name, m) for name, m in core.named_modules() if name and id(m) not in inside]
    for config in _vision_configs(core):
        found = [(n, m) for n, m in outside if getattr(m, "config", None) is config and not isinstance(m, LISTS)]
        if found:
            return next((m for name, m in found if "video" not in name), found[0][1])
    return None


def is_text_model(module: Any) -> bool:
    """Whether a module takes embeddings and a cache, owns decoder layers, and takes no pictures."""
    return owns_layers(module) and takes(module, "embeds") and takes(module, "cache") and not makes_features(module)


def owns_layers(module: Any) -> bool:
    """Whether a module owns a list of layers that take hidden states."""
    return any(True for _ in _layer_lists(module))


def _layer_lists(module: Any) -> Iterator[Any]:
    for child in getattr(module, "_modules", {}).values():
        if isinstance(child, LISTS) and len(child) and takes(child[0], "hidden"):
            yield child


def makes_features(module: Any) -> bool:
    """Whether a module has a method that makes features of pictures or videos."""
    return any(hasattr(type(module), name) for name in FEATURES)


def text_config(core: Any) -> Any:
    """The configuration of a composite model's text model; None where there is none, or not one."""
    try:
        return core.config.get_text_config(decoder=True)
    except (AttributeError, ValueError, TypeError):  # no configuration, or one with several texts
        return None


def _vision_configs(core: Any) -> Iterator[Any]:
    """What a composite configuration says of its towers: every configuration inside it that is not the text's."""
    config, text = getattr(core, "config", None), text_config(core)
    parts = getattr(type(config), "sub_configs", None) or {}
    for name in sorted(parts, key=lambda n: ("vision" not in n, "audio" in n)):
        found = getattr(config, name, None)
        if found is not None and found is not text and "audio" not in name:
            yield found
