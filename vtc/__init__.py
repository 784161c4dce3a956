"""vtc: visual-token compression for multimodal models, in one line on the stock transformers model.

>>> import vtc
>>> model = vtc.load("bundled", "dart", keep=64)  # doctest: +SKIP
>>> model.generate(**inputs)  # doctest: +SKIP
>>> vtc.restore(model)  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from vtc.pruners.base import Merged, Pruner, ScorePruner, Stop, VisualTokens
    from vtc.pruners.registry import import_methods, list_pruners, pruner_class, register_pruner
    from vtc.pruners.warning import VTCWarning

    from .api import Handle, compress, compressed, load, restore
    from .config import VTCConfig
    from .sources import example
    from .spec import format_pipeline, parse

# imported on first use: transformers only where it is needed
_HOME = {
    **dict.fromkeys(("Merged", "Pruner", "ScorePruner", "Stop", "VisualTokens"), "vtc.pruners.base"),
    **dict.fromkeys(("import_methods", "list_pruners", "pruner_class", "register_pruner"), "vtc.pruners.registry"),
    "VTCWarning": "vtc.pruners.warning",
    **dict.fromkeys(("Handle", "compress", "compressed", "load", "restore"), "vtc.api"),
    "VTCConfig": "vtc.config",
    "example": "vtc.sources",
    **dict.fromkeys(("format_pipeline", "parse"), "vtc.spec"),
}

__all__ = [
    "Handle",
    "Merged",
    "Pruner",
    "ScorePruner",
    "Stop",
    "VTCConfig",
    "VTCWarning",
    "VisualTokens",
    "__version__",
    "compress",
    "compressed",
    "example",
    "format_pipeline",
    "import_methods",
    "list_pruners",
    "load",
    "parse",
    "pruner_class",
    "register_pruner",
    "restore",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = globals()[name] = getattr(import_module(_HOME[name]), name)
        return value
    raise AttributeError(f"module 'vtc' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
