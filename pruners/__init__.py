"""The methods: one file per published method, on a few shared selection primitives.

Imported on first use: the contract and the methods' names need no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .method_modules import HOME

if TYPE_CHECKING:
    from vtc.pruners.primitives.score_pruner import ScorePruner

    from .base import Merged, Pruner, Stop
    from .registry import list_pruners, make_pruner, pruner_class, register_pruner
    from .visual_tokens import VisualTokens

_OBJECTS = {
    **dict.fromkeys(("Merged", "Pruner", "Stop"), "base"),
    "ScorePruner": "primitives.score_pruner",
    "VisualTokens": "visual_tokens",
    **dict.fromkeys(("list_pruners", "make_pruner", "pruner_class", "register_pruner"), "registry"),
}

__all__ = [
    "Merged",
    "Pruner",
    "ScorePruner",
    "Stop",
    "VisualTokens",
    "list_pruners",
    "make_pruner",
    "pruner_class",
    "register_pruner",
]


def __getattr__(name: str) -> Any:
    if name in HOME.values():
        return import_module(f"{__name__}.{name}")
    if name in _OBJECTS:
        value = globals()[name] = getattr(import_module(f"{__name__}.{_OBJECTS[name]}"), name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *HOME.values()})
