"""What one call of ``get_image_features`` or ``get_video_features`` said about its items."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from vtc.pruners.layout import Layout
from vtc.pruners.signals import Signal


def _unseen() -> None:
    """Nothing is known of the pixels."""


@dataclass
class VisionStep:
    """One pruning step inside the vision encoder.

    ``kept[i]`` are the sorted ids, on the device, of the language-model tokens of item `i` that survive it.
    """

    layer: int
    kept: list[Tensor]


@dataclass
class VisionRecord:
    """Side information of one vision call, in the order in which its items fill the placeholders.

    Attributes
    ----------
    modality : str
        ``"image"`` or ``"video"``.
    lengths : list of int
        Language-model tokens of each item.
    layouts : callable
        Gives the items' layouts; called only when somebody asks, because grids may have to be read off the device.
    signals : mapping
        Encoder signals of each item, unbatched: attention `[H, n]`, the others `[n, U, D]`.
    steps : list of VisionStep
        Pruning done inside the encoder.
    may_have_newlines : bool
        Whether the family puts separator tokens among the image's; where not, layouts need not be asked for.
    seconds : float
        Of choosing inside the encoder; 0 unless ``model.vtc.timing`` is on.
    small : callable
        Gives the items as small pictures `[items, C, s, s]`, or None; see ``crops_by_family.small_crops``.
    """

    modality: str
    lengths: list[int]
    layouts: Callable[[], Sequence[Layout]]
    signals: Mapping[Signal, list[Tensor]] = field(default_factory=dict)
    steps: list[VisionStep] = field(default_factory=list)
    may_have_newlines: bool = False
    small: Callable[[], Tensor | None] = _unseen
    seconds: float = 0.0

    def __deepcopy__(self, _: object) -> VisionRecord:
        """Itself: it never changes, and what it calls is the model's. Assisted decoding copies encoder outputs."""
        return self
