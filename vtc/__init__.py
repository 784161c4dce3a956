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
    from vtc.eval.example_question import example
    from vtc.pruners.base import Merged, Pruner, Stop
    from vtc.pruners.primitives.score_pruner import ScorePruner
    from vtc.pruners.registry import import_methods, list_pruners, pruner_class, register_pruner
    from vtc.pruners.visual_tokens import VisualTokens
    from vtc.pruners.vtc_warning import VTCWarning

    from .api import compress, compressed, load, restore
    from .config import VTCConfig
    from .embed import embed
    from .pipeline_text import format_pipeline, parse
    from .vtc_attribute import Handle

# imported on first use: transformers only where it is needed
_HOME = {
    **dict.fromkeys(("Merged", "Pruner", "Stop"), "vtc.pruners.base"),
    "ScorePruner": "vtc.pruners.primitives.score_pruner",
    **dict.fromkeys(("import_methods", "list_pruners", "pruner_class", "register_pruner"), "vtc.pruners.registry"),
    "VTCWarning": "vtc.pruners.vtc_warning",
    "VisualTokens": "vtc.pruners.visual_tokens",
    **dict.fromkeys(("compress", "compressed", "load", "restore"), "vtc.api"),
    "Handle": "vtc.vtc_attribute",
    "VTCConfig": "vtc.config",
    "embed": "vtc.embed",
    "example": "vtc.eval.example_question",
    **dict.fromkeys(("format_pipeline", "parse"), "vtc.pipeline_text"),
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
    "embed",
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
