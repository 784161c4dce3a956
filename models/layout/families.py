"""What vtc knows about each model family, in one table; everything else is found in the model itself (``model_parts``).

A new family is one row: a layout function (``layouts_by_family.py``) and an alignment (``token_patches.py``); without
the latter encoder signals are refused, without the former tokens are taken as a line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from vtc.pruners.layout import Layout

from . import crops_by_family as crops
from . import layouts_by_family as layouts
from . import projectors_by_family as projectors
from . import token_patches
from .crops_by_family import Crops, Sample
from .layouts_by_family import VisionCall


def _one(config: Any) -> int:
    return 1


def _vision_merge(config: Any) -> int:
    return config.vision_config.spatial_merge_size**2


def _scale(config: Any) -> int:
    return config.scale_factor**2


def _gemma3_cell(config: Any) -> int:
    side = config.vision_config.image_size // config.vision_config.patch_size
    return (side // int(config.mm_tokens_per_image**0.5)) ** 2


_UNKNOWN = "vtc does not know how its tower's patches become tokens"
_MASKED = "its tower masks padding patches, which pruning inside the tower does not support"
_RESAMPLED = "it resamples projected features, so that a token is no set of patches"


class Tower(NamedTuple):
    """A vision tower that a family's checkpoints come with.

    ``class_token`` says whether it has one, ``prunable`` whether vtc can prune inside it where the family can.
    """

    name: str
    class_token: bool = False
    prunable: bool = True


CLIP, SIGLIP, PIXTRAL = Tower("CLIP", class_token=True), Tower("SigLIP"), Tower("Pixtral", prunable=False)
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
    reads_units : bool
        Whether the projector reads whole tokens (`[R, n, U * D]`) and not patches.
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
    reads_units: bool = False
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
        """A family that only the user's ``VTCConfig(parts=...)`` describes."""
        return cls(
            model_type or "unknown",
            (model_type,),
            layouts.lines,
            projector="",
            project=None,
            no_vision_stage=_UNKNOWN,
            no_project=_UNKNOWN,
        )

    def layouts_of(self, call: VisionCall) -> list[Layout]:
        """One layout per item, a line wherever the family's function doesn't add up."""
        return layouts.checked(call, self.layouts(call))


# towers of the same modules, grids and order of patches
QWEN = {
    "Qwen2-VL": ("qwen2_vl",),
    "Qwen2.5-VL": ("qwen2_5_vl", "qwen2_5_omni_thinker", "exaone4_5"),
    "Qwen3-VL": ("qwen3_vl", "qwen3_vl_moe", "qwen3_omni_moe_thinker", "cosmos3_omni", "cohere_compass"),
}

FAMILIES: tuple[Family, ...] = (
    Family("LLaVA-1.5", ("llava",), layouts.llava, token_patches.one_to_one, towers=(CLIP, SIGLIP, PIXTRAL)),
    Family(
        "LLaVA-NeXT",
        ("llava_next",),
        layouts.anyres,
        token_patches.anyres,
        rows=token_patches.tile_counts,
        newlines=True,
        towers=(CLIP,),
    ),
    Family(
        "LLaVA-OneVision",
        ("llava_onevision",),
        layouts.onevision,
        token_patches.anyres,
        rows=token_patches.tile_counts,
        newlines=True,
        project=None,
        fed=layouts.onevision_fed,
        no_vision_stage=_RESAMPLED,
        no_project=_RESAMPLED,
        towers=(SIGLIP,),
    ),
    *(
        Family(
            name,
            model_types,
            layouts.qwen,
            token_patches.merge_units,
            _vision_merge,
            "visual.merger",
            projectors.merger,
            packed=True,
        )
        for name, model_types in QWEN.items()
    ),
    Family(
        "GLM-V",
        ("glm4v", "glm46v", "glmga", "glm4v_moe", "glm_ocr"),
        layouts.qwen,
        token_patches.merge_units,
        _vision_merge,
        "visual.post_layernorm",
        projectors.glm,
        packed=True,
    ),
    Family(
        "InternVL",
        ("internvl",),
        layouts.square,
        token_patches.internvl,
        lambda config: int(1 / config.downsample_ratio) ** 2,
        reads_units=True,
        no_vision_stage="its tower's layers pass nothing on to their attention",
        towers=(Tower("InternViT", class_token=True),),
        pictures=crops.touching,
    ),
    Family(
        "Idefics3",
        ("idefics3",),
        layouts.square,
        token_patches.idefics3,
        _scale,
        "connector",
        projectors.connector,
        no_vision_stage=_MASKED,
        pictures=crops.marked,
    ),
    Family(
        "SmolVLM",
        ("smolvlm",),
        layouts.square,
        token_patches.idefics3,
        _scale,
        "connector",
        projectors.connector,
        no_vision_stage=_MASKED,
        pictures=crops.marked,
    ),
    Family(
        "Gemma3",
        ("gemma3",),
        layouts.square,
        token_patches.gemma3,
        _gemma3_cell,
        project=projectors.gemma3,
        towers=(SIGLIP,),
    ),
    Family(
        "Mistral3 / Pixtral",
        ("mistral3",),
        layouts.mistral3,
        token_patches.mistral3,
        lambda config: config.spatial_merge_size**2,
        project=projectors.mistral3,
        packed=True,
        no_vision_stage="its tower masks the images of a packed row, which pruning inside the tower does not support",
        towers=(PIXTRAL,),
    ),
)


def family_of(config: Any) -> Family | None:
    """The row of a model's configuration, or None."""
    kind = getattr(config, "model_type", None)
    return next((f for f in FAMILIES if kind in f.model_types), None)


def supported_families() -> list[str]:
    """Names of the families that vtc knows, in table order."""
    return [f.name for f in FAMILIES]
