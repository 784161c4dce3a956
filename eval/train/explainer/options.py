"""Options of an explainer's training, and what is refused before torch is imported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

DEFAULT_LIMIT = 100


@dataclass(frozen=True)
class TrainSettings:
    """The numbers of a training run; Adam, 100 epochs and the batch are the paper's, the rate is ours."""

    epochs: int = 100
    batch_size: int = 128
    rate: float = 1e-3
    held_out: float = 0.1
    seed: int = 0


@dataclass
class ExplainerOptions:
    """Options of a training job; the command line's defaults.

    ``data`` and ``tasks`` say what is asked, as for ``vtc bench``; the bundled model alone has scenes of its own,
    drawn by ``seed``. ``limit`` is the number of questions per task (None: ``DEFAULT_LIMIT`` of those scenes, else
    all). ``held_out`` is the share of images that are only judged by.
    """

    model: str | None = None
    data: Path | None = None
    data_dir: Path | None = None
    tasks: Sequence[str] | None = None
    limit: int | None = None
    output: Path | None = None
    epochs: int = 100
    batch_size: int = 128
    rate: float = 1e-3
    held_out: float = 0.1
    seed: int = 0
    max_new_tokens: int = 16
    device: str = "auto"
    dtype: str = "auto"
    arguments: Sequence[str] | None = None

    @property
    def settings(self) -> TrainSettings:
        """What the training itself depends on."""
        return TrainSettings(self.epochs, self.batch_size, self.rate, self.held_out, self.seed)


def check_options(options: ExplainerOptions) -> None:
    """Refuse options out of range before anything is loaded.

    Raises
    ------
    ValueError
        The message names the option.
    """
    whole = ("limit", "epochs", "batch_size", "max_new_tokens")
    for name in whole:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} {value} is out of range: it must be at least 1")
    if not options.rate > 0:
        raise ValueError(f"--rate {options.rate} is out of range: it must be above 0")
    if not 0 < options.held_out < 1:
        raise ValueError(f"--held-out {options.held_out} is out of range: it must be between 0 and 1")
    if options.model is not None and options.data is None and not options.tasks:
        raise ValueError("--model needs questions that it can be asked: give --data FOLDER or --tasks")
