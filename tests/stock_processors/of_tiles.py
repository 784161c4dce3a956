"""Processors that cut a picture into tiles or crops."""

from __future__ import annotations

from typing import Any

from transformers.models.smolvlm import processing_smolvlm

from .make import Stock, make
from .of_squares import BOUNDS, IMAGE, LLAVA, cropped, side

TILES = {"crop_to_patches": True, "min_patches": 1, "max_patches": 4}
FAKE = {**IMAGE, "<fake_token_around_image>": "", "<global-img>": "", "<end_of_utterance>": ""}
IDEFICS: dict[str, Any] = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}


def pins(config: Any) -> list[list[int]]:
    return [list(pin) for pin in config.image_grid_pinpoints]


def llava_next(config: Any) -> Stock:
    return make(config, IMAGE, {**cropped(28), "image_grid_pinpoints": pins(config)}, **LLAVA)


def llava_next_video(config: Any) -> Stock:
    names = {**IMAGE, "<video>": "video_token_id"}
    return make(config, names, {**cropped(28), "image_grid_pinpoints": pins(config)}, **LLAVA)


def granite4_vision(config: Any) -> Stock:
    sizes = {**cropped(28), "image_grid_pinpoints": pins(config)}
    return make(
        config, IMAGE, sizes, patch_size=7, vision_feature_select_strategy="full",
        downsample_rate=config.downsample_rate,
    )  # fmt: skip


def llava_onevision(config: Any) -> Stock:
    names = {**IMAGE, "<video>": "video_token_id"}
    sizes = {"size": side(28), "image_grid_pinpoints": pins(config)}
    return make(config, names, sizes, num_image_tokens=16, vision_feature_select_strategy="full")


def internvl(config: Any) -> Stock:
    names = {"<IMG_CONTEXT>": "image_token_id", "<img>": "", "</img>": "", "<video>": ""}
    attributes = {"start_image": "<img>", "end_image": "</img>", "context_image": "<IMG_CONTEXT>", "video": "<video>"}
    return make(config, names, {"size": side(42), **TILES}, attributes, image_seq_length=9)


def qianfan_ocr(config: Any) -> Stock:
    names = {"<IMG_CONTEXT>": "image_token_id", "<img>": "", "</img>": "", "<image>": ""}
    attributes = {"start_image": "<img>", "end_image": "</img>", "context_image": "<IMG_CONTEXT>"}
    return make(config, names, {"size": side(42), **TILES}, attributes, mark="<image>", image_seq_length=9)


def aya_vision(config: Any) -> Stock:
    names = {"<|IMG_PATCH|>": "image_token_id", "<image>": "", "<|START_OF_IMG|>": "", "<|END_OF_IMG|>": ""}
    sizes = {"size": side(42), **TILES}
    return make(config, names, sizes, patch_size=7, img_size=42, downsample_factor=2)


def cohere2_vision(config: Any) -> Stock:
    """What it calls patch size is the number of tokens on a tile's side."""
    return make(config, IMAGE, {"size": side(42), "patch_size": 3, **TILES}, {**BOUNDS, "img_line_break": "<line>"})


def ovis2(config: Any) -> Stock:
    names = {"<IMG_ATOM>": "image_token_id", "<image>": ""}
    marks = ("<IMG_START>", "<IMG_END>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>")
    names |= {mark: f"visual_indicator_token_ids.{i}" for i, mark in enumerate(marks)}
    return make(config, names, {"size": side(28), **TILES}, image_seq_length=16)


def idefics2(config: Any) -> Stock:
    sizes = {"size": {"shortest_edge": 14, "longest_edge": 28}, "do_image_splitting": True}
    return make(config, FAKE, sizes, image_seq_len=9)


def smolvlm(config: Any) -> Stock:
    if processing_smolvlm.num2words is None:  # not installed: the number of frames stands there in digits then
        processing_smolvlm.num2words = str
    return idefics3(config)


def idefics3(config: Any) -> Stock:
    return make(config, FAKE, IDEFICS, image_seq_len=16)


def granite_docling(config: Any) -> Stock:
    return make(config, FAKE, {"size": side(32), **TILES}, image_seq_len=16)


def perception_lm(config: Any) -> Stock:
    names = {**IMAGE, "<video>": "video_token_id"}
    sizes = {"size": side(28), "tile_size": 28, "max_num_tiles": 4}
    return make(config, names, sizes, {"image": "<image>", "video": "<video>"}, patch_size=7, pooling_ratio=1)


def lfm2_vl(config: Any) -> Stock:
    names = {**IMAGE, "<|image_start|>": "", "<|image_end|>": "", "<|img_thumbnail|>": ""}
    sizes = {"encoder_patch_size": 16, "tile_size": 256, "size": side(256), "max_tiles": 4}
    return make(config, names, {**sizes, "min_image_tokens": 16, "max_image_tokens": 64})


def minicpm(config: Any) -> Stock:
    names = {**IMAGE, "<video>": "video_token_id"}
    attributes = {
        "image": "<image>", "video": "<video>", "image_start": "<open>", "image_end": "<close>",
        "slice_start": "<slice>", "slice_end": "</slice>", "image_id_start": "<id>", "image_id_end": "</id>",
    }  # fmt: skip
    for name in ("image_start", "image_end", "slice_start", "slice_end"):
        if hasattr(config, f"{name}_id"):
            names[attributes[name]] = f"{name}_id"
    return make(config, names, {"patch_size": 4, "scale_resolution": 32, "max_slice_nums": 4}, attributes)


TILED = {
    "llava_next": llava_next,
    "llava_next_video": llava_next_video,
    "granite4_vision": granite4_vision,
    "llava_onevision": llava_onevision,
    "internvl": internvl,
    "qianfan_ocr": qianfan_ocr,
    "aya_vision": aya_vision,
    "cohere2_vision": cohere2_vision,
    "ovis2": ovis2,
    "idefics2": idefics2,
    "idefics3": idefics3,
    "smolvlm": smolvlm,
    "granite_docling": granite_docling,
    "perception_lm": perception_lm,
    "lfm2_vl": lfm2_vl,
    "minicpmv4_6": minicpm,
    "minicpmv4_7": minicpm,
    "minicpm_ocr": minicpm,
}
