"""The model classes of the plugin, each made when the engine first asks for it by its name."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from .families import ROWS, Row


def _made(row: Row) -> type:
    """A family's model class with ours in front, and its processor likewise."""
    from vllm.multimodal import MULTIMODAL_REGISTRY

    from .processor import PrunedProcessor
    from .rotary import RotaryModel
    from .worker import PrunedModel

    module = import_module(f"vllm.model_executor.models.{row.module}")
    stock = getattr(module, row.model)
    factories = stock._processor_factory
    processor = type(f"Vtc{row.processor}", (PrunedProcessor, getattr(module, row.processor)), {"row": row})
    mixins = (RotaryModel, PrunedModel) if row.rotary else (PrunedModel,)
    made = type(row.name, (*mixins, stock), {"row": row, "__module__": __name__, "__qualname__": row.name})
    register = MULTIMODAL_REGISTRY.register_processor(
        processor, info=factories.info, dummy_inputs=factories.dummy_inputs
    )
    return register(made)


def __getattr__(name: str) -> Any:
    row = next((row for row in ROWS if row.name == name), None)
    if row is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = _made(row)
    return found
