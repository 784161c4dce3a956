"""What vtc knows about each model family, in one table; everything else is found in the model itself (``model_parts``).

A new family is one row: a layout function (``layouts_by_family.py``) and an alignment (``token_patches.py``); without
the latter encoder signals are refused, without the former tokens are taken as a line.
"""

from __future__ import annotations

import math
from typing import Any

from . import crops_by_family as crops
from . import layouts_by_family as layouts
from . import projectors_by_family as projectors
from . import token_patches
from .family import Family, Tower


def _vision_merge(config: Any) -> int:
    return config.vision_config.spatial_merge_size**2


def _scale(config: Any) -> int:
    return config.scale_factor**2


def _downsampled(config: Any) -> int:
    return config.downsample_factor**2


def _gemma3_cell(config: Any) -> int:
    side = config.vision_config.image_size // config.vision_config.patch_size
    return (side // int(config.mm_tokens_per_image**0.5)) ** 2


_MASKED = "its tower masks padding patches, which pruning inside the tower does not support"
_RESAMPLED = "it resamples projected features, so that a token is no set of patches"
_POOLED = "it averages patches before its projector, those of images otherwise than those of videos"
_BEHIND = "its patches are merged behind the tower, where vtc has no place to fill up what was pruned"
_ONE_ROW = "its tower masks the images of a packed row, which pruning inside the tower does not support"

CLIP, SIGLIP, PIXTRAL = Tower("CLIP", class_token=True), Tower("SigLIP"), Tower("Pixtral", prunable=False)
DINOV2 = Tower("DINOv2", class_token=True)

# towers of the same modules, grids and order of patches
QWEN = {
    "Qwen2-VL": ("qwen2_vl",),
    "Qwen2.5-VL": ("qwen2_5_vl", "qwen2_5_omni_thinker", "exaone4_5"),
    "Qwen3-VL": (
        "qwen3_vl",
        "qwen3_vl_moe",
        "qwen3_omni_moe_thinker",
        "cosmos3_omni",
        "cohere_compass",
        "qwen3_5",
        "qwen3_5_moe",
    ),
}

FAMILIES: tuple[Family, ...] = (
    Family("LLaVA-1.5", ("llava",), layouts.llava, token_patches.one_to_one, towers=(CLIP, SIGLIP, PIXTRAL, DINOV2)),
    Family("ViP-LLaVA", ("vipllava",), layouts.square, token_patches.one_to_one, cut=1, towers=(CLIP,)),
    Family("PaliGemma", ("paligemma",), layouts.square, token_patches.one_to_one, towers=(SIGLIP,)),
    *(
        Family(
            name,
            (model_type,),
            layouts.square,
            token_patches.one_to_one,
            projector="aligner",
            project=projectors.through("aligner"),
            towers=(tower,),
        )
        for name, model_type, tower in (
            ("DeepSeek-VL", "deepseek_vl", SIGLIP),
            ("Janus", "janus", Tower("Janus")),
        )
    ),
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
        "LLaVA-NeXT-Video",
        ("llava_next_video",),
        layouts.next_video,
        token_patches.next_video,
        rows=token_patches.next_video_rows,
        newlines=True,
        no_vision_stage=_POOLED,
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
            projectors.units("visual.merger"),
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
        "HyperCLOVA X",
        ("hyperclovax_vision_v2",),
        layouts.qwen,
        token_patches.merge_units,
        _vision_merge,
        "vision_model.merger",
        projectors.hyperclova,
        behind="projector",
        packed=True,
    ),
    Family(
        "PaddleOCR-VL",
        ("paddleocr_vl",),
        layouts.qwen,
        token_patches.grid_cells,
        _vision_merge,
        "projector",
        projectors.paddle,
        packed=True,
        no_vision_stage=_BEHIND,
    ),
    Family(
        "VideoLLaMA 3",
        ("video_llama_3",),
        layouts.video_llama,
        token_patches.video_llama,
        projector="projector",
        project=projectors.through("projector"),
        packed=True,
        no_vision_stage=_POOLED,
    ),
    Family(
        "Kimi K2.5",
        ("kimi_k25",),
        layouts.kimi,
        token_patches.kimi,
        lambda config: math.prod(config.vision_config.merge_kernel_size),
        "mm_projector",
        projectors.kimi,
        reads_units=True,
        packed=True,
        no_vision_stage=_POOLED,
    ),
    Family(
        "LFM2-VL",
        ("lfm2_vl",),
        layouts.lfm2,
        token_patches.lfm2,
        _downsampled,
        "vision_tower.post_layernorm",
        projectors.lfm2,
        no_vision_stage=_MASKED,
        towers=(Tower("SigLIP 2", prunable=False),),
    ),
    Family(
        "MiniMax-M3",
        ("minimax_m3_vl",),
        layouts.qwen,
        token_patches.merge_units,
        _vision_merge,
        project=projectors.units("multi_modal_projector"),
        packed=True,
        no_vision_stage=_BEHIND,
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
        "Qianfan-OCR",
        ("qianfan_ocr",),
        layouts.square,
        token_patches.internvl,
        lambda config: int(1 / config.downsample_ratio) ** 2,
        reads_units=True,
        towers=(Tower("InternViT", class_token=True),),
        pictures=crops.touching,
    ),
    *(
        Family(
            name,
            (model_type,),
            layouts.square,
            token_patches.shuffled,
            _downsampled,
            project=projectors.shuffled,
            towers=(SIGLIP,),
        )
        for name, model_type in (("Aya Vision", "aya_vision"), ("Command A Vision", "cohere2_vision"))
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
        project=projectors.mistral3("multi_modal_projector"),
        packed=True,
        no_vision_stage=_ONE_ROW,
        towers=(PIXTRAL,),
    ),
    Family(
        "LightOnOCR",
        ("lighton_ocr",),
        layouts.mistral3,
        token_patches.mistral3,
        lambda config: config.spatial_merge_size**2,
        "vision_projection",
        projectors.mistral3("vision_projection"),
        packed=True,
        no_vision_stage=_ONE_ROW,
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
