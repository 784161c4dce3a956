"""What a row of the table of families says; the table itself is ``families.FAMILIES``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from vtc.pruners.layout import Layout

from . import layouts_by_family as layouts
from . import projectors_by_family as projectors
from .crops_by_family import Crops, Sample
from .layouts_by_family import VisionCall


def _one(config: Any) -> int:
    return 1


UNKNOWN = "vtc does not know how its tower's patches become tokens"

# families whose visual tokens are no sets of a tower's patches: no row can give them encoder signals
_WHY_NOT: dict[str, tuple[str, ...]] = {
    "its tokens are queries, each of which reads many patches": (
        "aria",
        "deepseek_ocr2",
        "granite4_vision",
        "idefics2",
    ),
    "its tower ends in convolutions, whose places overlap": (
        "fast_vlm",
        "gemma3n",
        "got_ocr2",
        "pp_chart2table",
        "step3p7",
    ),
    "it joins what two towers with patches of their own make of a picture": ("deepseek_vl_hybrid", "unlimited_ocr"),
    "it has no vision tower: pixels are projected as they are": ("fuyu", "gemma4_unified"),
    "its pictures are words of a codebook, which no attention gives": ("apertus1p5", "emu3"),
    "its pictures and its videos have a tower each": ("video_llava",),
}
NO_PATCHES = {kind: reason for reason, kinds in _WHY_NOT.items() for kind in kinds}


class Tower(NamedTuple):
    """A vision tower that a family's checkpoints come with.

    ``class_token`` says whether it has one, ``prunable`` whether vtc can prune inside it where the family can.
    """

    name: str
    class_token: bool = False
    prunable: bool = True


OWN = Tower("own")


@dataclass(frozen=True)
class Family:
    """One row of the table.

    Attributes
    ----------
    name : str
        What people call it.
    model_types : tuple of str
        ``config.model_type`` of the composite model.
    layouts : callable
        The call to one ``Layout`` per item.
    align : callable or None
        Tower rows to the patches of each token; None refuses encoder signals and the vision stage.
    unit : callable
        Patches per language-model token, from the configuration.
    projector : str
        The module that reads the tower's output, as a path from the composite model.
    project : callable or None
        The composite model and the patches of tokens `[M, U, D_enc]` to `[M, D]`; None where a token is no set of
        patches, for the reason ``no_project``.
    behind : str
        A module that reads what the projector gives; empty: the language model does.
    reads_units : bool
        Whether the projector reads whole tokens (`[R, n, U * D]`) and not patches.
    cut : int or None
        Class tokens that the model cuts off before the projector, whatever it is told; None: by its
        ``vision_feature_select_strategy``.
    packed : bool
        Whether the tower runs all items in one row of patches.
    rows : callable or None
        Rows of a dense tower that belong to each item; None: one.
    newlines : bool
        Whether separator tokens stand among an image's.
    fed : callable or None
        Tokens of each item as the forward feeds them, where it adds some to the features; None: it does not.
    no_vision_stage : str
        Why the family can't be pruned inside its tower; empty if it can.
    no_project : str
        Why ``project`` is None.
    towers : tuple of Tower
        The vision towers of its checkpoints.
    pictures : callable or None
        Which spans of a sample are crops of one picture, where each is a span of its own; None: none are.
    """

    name: str
    model_types: tuple[str, ...]
    layouts: Callable[[VisionCall], list[Layout]] = layouts.square
    align: Callable[[VisionCall, Tensor], list[Tensor]] | None = None
    unit: Callable[[Any], int] = _one
    projector: str = "multi_modal_projector"
    project: Callable[[Any, Tensor], Tensor] | None = projectors.side_by_side
    behind: str = ""
    reads_units: bool = False
    cut: int | None = None
    packed: bool = False
    rows: Callable[[VisionCall], list[int]] | None = None
    newlines: bool = False
    fed: Callable[[VisionCall], list[int]] | None = None
    no_vision_stage: str = ""
    no_project: str = ""
    towers: tuple[Tower, ...] = (OWN,)
    pictures: Callable[[Sample], list[Crops]] | None = None

    @property
    def one_patch(self) -> bool:
        """Whether a token is one patch, whatever the configuration says."""
        return self.unit is _one

    @classmethod
    def unknown(cls, model_type: str) -> Family:
        """A family without a row: found by inspection, or described by the user's ``VTCConfig(parts=...)``."""
        why = NO_PATCHES.get(model_type, UNKNOWN)
        return cls(
            model_type or "unknown",
            (model_type,),
            layouts.lines,
            projector="",
            project=None,
            no_vision_stage=why,
            no_project=why,
        )

    def layouts_of(self, call: VisionCall) -> list[Layout]:
        """One layout per item, a line wherever the family's function doesn't add up."""
        return layouts.checked(call, self.layouts(call))
