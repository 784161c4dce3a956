"""Options of ``vtc horizon``, ``embedlens`` and ``show --signal``, and what is refused before torch is imported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

DEFAULT_LIMIT = 5
LEAST = 8  # pictures of a calibration
FEW = 50  # below so many the paper's recipe says nothing
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
# what ``vtc show --signal`` can draw
TITLES = {
    "relevance": "relevance for the answer",
    "predicted": "relevance, predicted from layer 0",
    "attention": "the text's attention in layer 0",
}
SIGNALS = (*TITLES, "classes")


def check_signals(signals: Sequence[str]) -> None:
    """Refuse a --signal that is not there.

    Raises
    ------
    ValueError
        Naming those that are.
    """
    for signal in signals:
        if signal not in SIGNALS:
            raise ValueError(f"--signal {signal!r} is unknown: there is {', '.join(SIGNALS)}")


@dataclass
class HorizonOptions:
    """Options of a measurement; the command line's defaults.

    ``limit`` is the number of questions per task (None: ``DEFAULT_LIMIT`` with the bundled model on its own tasks, else
    all), ``window`` the side of the windows in tokens, ``threshold`` the information below which a layer has none,
    ``search`` None or ``"vtw"``, whose windows are not measured, ``eta`` the divergence it allows, ``start`` the first
    layer looked at (None: the lowest possible one, in a search VTW's 5 of 32).
    """

    model: str | None = None
    data: Path | None = None
    tasks: Sequence[str] | None = None
    limit: int | None = None
    window: int = 2
    threshold: float = 0.02
    search: str | None = None
    eta: float = 0.003
    start: int | None = None
    output: Path | None = None
    batch_size: int = 64
    device: str = "auto"
    dtype: str = "auto"


def check_horizon(options: HorizonOptions) -> None:
    """Refuse options out of range before anything is loaded.

    Raises
    ------
    ValueError
        The message names the option.
    """
    if options.search not in (None, "vtw"):
        raise ValueError(f"--search {options.search!r} is unknown: there is vtw")
    for name, value, least in (("limit", options.limit, 1), ("window", options.window, 1), ("start", options.start, 1)):
        if value is not None and value < least:
            raise ValueError(f"--{name} {value} is out of range: it must be at least {least}")
    for name, number in (("threshold", options.threshold), ("eta", options.eta)):
        if not number > 0:
            raise ValueError(f"--{name} {number} is out of range: it must be above 0")


@dataclass(frozen=True)
class Rules:
    """What makes a group of vocabulary ids a class. All numbers are OURS; the paper gives the recipe in words.

    Attributes
    ----------
    presence : float
        An id counts if it is the nearest of some token in at least this share of the images.
    sink_cosine, sink_share : float
        Sinks: tokens whose mean cosine across images is at least the one, and whose share of all is at most the other.
    dead_cosine, dead_share : float
        Dead tokens: at least this mean cosine across images, and at least this share.
    """

    presence: float = 0.9
    sink_cosine: float = 0.99
    sink_share: float = 0.15
    dead_cosine: float = 0.6
    dead_share: float = 0.05

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 < value <= 1:
                raise ValueError(f"{name.replace('_', '-')}={value} is out of range; it must be in (0, 1]")
        if self.sink_cosine < self.dead_cosine:
            raise ValueError(f"sink-cosine={self.sink_cosine} must not be below dead-cosine={self.dead_cosine}")


@dataclass
class LensOptions:
    """Options of a calibration; the command line's defaults."""

    model: str | None = None
    data: Path | None = None
    images: int = 64
    output: Path = Path("embedlens.json")
    rules: Rules = field(default_factory=Rules)
    device: str = "auto"
    dtype: str = "auto"


def picture_files(data: Path) -> list[Path] | None:
    """The pictures of a folder and those in it, sorted; None where it is an evaluation set."""
    if (data / "questions.parquet").is_file() or any(data.glob("*.yaml")):
        return None
    return sorted(path for path in data.rglob("*") if path.suffix.lower() in PICTURES)


def refuse_few(count: int, where: object) -> None:
    """Refuse to calibrate on fewer pictures than ``LEAST``."""
    if count < LEAST:
        raise ValueError(
            f"{count} pictures in {where}: a calibration compares many and needs at least {LEAST}, better {FEW} or "
            "more that differ"
        )


def check_lens(options: LensOptions) -> None:
    """Refuse options out of range before anything is loaded.

    Raises
    ------
    ValueError
        The message names the option.
    """
    if options.images < LEAST:
        raise ValueError(f"--images {options.images} is out of range: at least {LEAST}")
    if options.data is not None and (files := picture_files(options.data)) is not None:
        refuse_few(len(files), options.data)
