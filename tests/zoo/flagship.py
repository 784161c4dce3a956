"""What describes a model of today at its true size: its configuration, and one picture of a real size for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn
from transformers import CONFIG_MAPPING

from vtc.models.try_without_weights import model_without_weights


@dataclass(frozen=True)
class Picture:
    """Inputs of one picture: pixels on ``meta``, sizes on the CPU as processors leave them.

    ``lengths`` are the visual tokens of its spans.
    """

    inputs: dict[str, Tensor]
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class Flagship:
    """A model at its true size.

    Parameters
    ----------
    kind : str
        Its model type.
    billions : float
        Its parameters, as measured here.
    changes : dict
        What of the type's default configuration is not its own.
    picture : callable, optional
        Makes a picture for it; None: it is only wrapped.
    axes : int
        How many axes its position ids have.
    run : dict, optional
        What a forward's text model has instead, mostly fewer layers; None: nothing.
    """

    kind: str
    billions: float
    changes: dict[str, Any] = field(default_factory=dict)
    picture: Callable[[], Picture] | None = None
    axes: int = 1
    run: dict[str, Any] | None = field(default_factory=lambda: {"num_hidden_layers": 12})

    def on_meta(self) -> nn.Module:
        """The model without weights."""
        model: nn.Module = model_without_weights(CONFIG_MAPPING[self.kind](**self.changes)).eval()
        return model

    def as_run(self) -> Flagship:
        """What a forward is run with: mostly the first decoder layers alone."""
        if self.run is None:
            return self
        text = {**self.changes.get("text_config", {}), **self.run}
        return replace(self, changes={**self.changes, "text_config": text}, run=None)


def mrope(*section: int, theta: float = 1e6, part: float = 1.0) -> dict[str, Any]:
    """Rotary parameters of positions with several axes."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta, "mrope_section": list(section)}
    return rope if part == 1.0 else {**rope, "partial_rotary_factor": part}
