"""What ``vtc speed`` is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LEAST = 3  # rounds: of fewer, no interval


@dataclass(frozen=True)
class SpeedOptions:
    """The command's options.

    Attributes
    ----------
    model : str or None
        Folder, hub id, ``config.json`` or model type; None is the bundled model.
    pruners, keeps : sequence
        Methods and what they keep.
    image : tuple of int
        Width and height of the picture.
    batch, rounds : int
        Equal samples of a prompt, and measured rounds.
    device, dtype : str
        As for ``load_model``.
    seed : int
        Of random weights, of the order within a round and of the bootstrap.
    layers, tower_layers : int or None
        How many are measured, on random weights; None: all of a model with weights, else what memory holds.
    data : Path or None
        Evaluation set whose first question about one picture is asked, instead of the bundled one.
    """

    model: str | None = None
    pruners: Sequence[str] = ()
    keeps: Sequence[int | float] = ()
    image: tuple[int, int] = (640, 480)
    batch: int = 1
    rounds: int = 7
    device: str = "auto"
    dtype: str = "auto"
    seed: int = 0
    layers: int | None = None
    tower_layers: int | None = None
    data: Path | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.rounds < LEAST:
            raise ValueError(f"--rounds {self.rounds} is too few: an interval needs {LEAST} at least")
        if self.batch < 1:
            raise ValueError(f"--batch must be an int >= 1, got {self.batch}")
        for option, value in (("--layers", self.layers), ("--tower-layers", self.tower_layers)):
            if value is not None and value < 1:
                raise ValueError(f"{option} must be an int >= 1, got {value}")

    @property
    def shaped(self) -> bool:
        """Whether layers are counted, so that weights are random also where there are real ones."""
        return self.layers is not None or self.tower_layers is not None

    def settings(self) -> dict[str, Any]:
        """What makes times comparable, beside the model and the machine."""
        width, height = self.image
        return {"image": f"{width}x{height}", "batch": self.batch, "dtype": self.dtype}
