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
    run_layers : int, optional
        How many decoder layers a forward is run with; None: all.
    """

    kind: str
    billions: float
    changes: dict[str, Any] = field(default_factory=dict)
    picture: Callable[[], Picture] | None = None
    axes: int = 1
    run_layers: int | None = None

    def on_meta(self) -> nn.Module:
        """The model without weights."""
        model: nn.Module = model_without_weights(CONFIG_MAPPING[self.kind](**self.changes)).eval()
        return model

    def shallow(self) -> Flagship:
        """The same with the first `run_layers` decoder layers alone."""
        if self.run_layers is None:
            return self
        text = {
            k: v[: self.run_layers] if isinstance(v, list) else v
            for k, v in self.changes.get("text_config", {}).items()
        }
        if "layers_block_type" not in text:  # Nemotron's depth is the length of that list
            text["num_hidden_layers"] = self.run_layers
        return replace(self, changes={**self.changes, "text_config": text}, run_layers=None)


def mrope(*section: int, theta: float = 1e6, part: float = 1.0) -> dict[str, Any]:
    """Rotary parameters of positions with several axes."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta, "mrope_section": list(section)}
    return rope if part == 1.0 else {**rope, "partial_rotary_factor": part}
