"""What a method that was trained for one model may ask of the model that it is attached to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

# by the name of a weight, some of its values
Sketch = Mapping[str, list[float]]


def _nothing() -> Sketch:
    return {}


@dataclass(frozen=True)
class ModelFacts:
    """Sizes of a model, and values by which it is known again.

    Attributes
    ----------
    kind : str
        The configuration's ``model_type``.
    width, layers, heads : int
        Hidden size, decoder layers and attention heads of the text model.
    vision_width, vision_layers : int or None
        The same of the vision tower; None where there is none, or it says no such thing.
    sketch : callable
        Some values of the embedding table, of the first decoder layer and of the projector, by name. What can't be read
        (weights on ``meta`` or offloaded, quantised ones) is left out.
    """

    kind: str
    width: int
    layers: int
    heads: int
    vision_width: int | None = None
    vision_layers: int | None = None
    sketch: Callable[[], Sketch] = field(default=_nothing, compare=False, repr=False)
