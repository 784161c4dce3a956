"""Processors that keep a picture's proportions and give patches with a grid."""

from __future__ import annotations

from typing import Any

import transformers as tf

from .make import Stock, make

PATCH, MERGE = 4, 2
CELL = (PATCH * MERGE) ** 2
SIZES: dict[str, Any] = {
    "patch_size": PATCH, "merge_size": MERGE, "size": {"shortest_edge": CELL, "longest_edge": 24 * CELL},
}  # fmt: skip
QWEN = {
    "<|image_pad|>": "image_token_id", "<|video_pad|>": "video_token_id",
    "<|vision_start|>": "vision_start_token_id", "<|vision_end|>": "vision_end_token_id",
}  # fmt: skip
FREE = {**QWEN, "<|vision_start|>": "", "<|vision_end|>": ""}
FRAMED = "<|vision_start|><|image_pad|><|vision_end|>"
GLM = {
    "<|image|>": "image_token_id", "<|video|>": "video_token_id",
    "<|begin_of_image|>": "image_start_token_id", "<|end_of_image|>": "image_end_token_id",
    "<|begin_of_video|>": "video_start_token_id", "<|end_of_video|>": "video_end_token_id",
}  # fmt: skip


def qwen(config: Any) -> Stock:
    return make(config, QWEN, SIZES, mark=FRAMED)


def qwen3_moe(config: Any) -> Stock:
    return make(config, QWEN, SIZES, mark=FRAMED, cls="Qwen3VLProcessor", like="qwen3_vl")


def cosmos3_edge(config: Any) -> Stock:
    """Its model can't do without token types, which it gives only to those who ask."""
    return make(config, QWEN, SIZES, mark=FRAMED, call={"return_mm_token_type_ids": True})


def omni(config: Any) -> Stock:
    names = {"<audio>": "audio_token_id", **QWEN}
    attributes = {
        "image": "<|image_pad|>", "video": "<|video_pad|>", "audio": "<audio>", "audio_bos": "<sound>",
        "audio_eos": "</sound>", "vision_bos": "<|vision_start|>", "vision_eos": "<|vision_end|>",
    }  # fmt: skip
    older = config.model_type == "qwen2_5_omni_thinker"
    return make(
        config, names, SIZES, attributes, mark=FRAMED, like="qwen2_vl",
        cls="Qwen2_5OmniProcessor" if older else "Qwen3OmniMoeProcessor",
        parts={"feature_extractor": tf.WhisperFeatureExtractor},
    )  # fmt: skip


def glm(config: Any) -> Stock:
    return make(config, GLM, SIZES, mark="<|begin_of_image|><|image|><|end_of_image|>")


def glm_moe(config: Any) -> Stock:
    return make(config, GLM, SIZES, mark="<|begin_of_image|><|image|><|end_of_image|>", like="glm4v")


def glm46(config: Any) -> Stock:
    like = None if config.model_type == "glmga" else "glm46v"
    mark = "<|begin_of_image|><|image|><|end_of_image|>"
    return make(config, GLM, SIZES, mark=mark, cls="Glm46VProcessor", like=like)


def lines(config: Any) -> Stock:
    return make(config, FREE, SIZES, mark=FRAMED)


def cohere_compass(config: Any) -> Stock:
    names = {name.upper(): field for name, field in QWEN.items()}
    return make(config, names, SIZES, mark=FRAMED.upper())


def minimax_m3_vl(config: Any) -> Stock:
    names = {
        "]<]image[>[": "image_token_id", "]<]video[>[": "video_token_id", "]<]start of image[>[": "",
        "]<]end of image[>[": "",
    }  # fmt: skip
    return make(config, names, SIZES)


def ernie(config: Any) -> Stock:
    fields = {"image": "<image>", "image_start": "<open>", "image_end": "<close>"}
    fields |= {"video": "<video>", "video_start": "<film>", "video_end": "</film>"}
    names = {token: f"{name}_token_id" for name, token in fields.items()}
    return make(config, names, SIZES, fields, mark="<open><image><close>")


def paddle(config: Any) -> Stock:
    names = {"<image>": "image_token_id", "<open>": "vision_start_token_id", "<close>": "vision_end_token_id"}
    return make(config, names, SIZES, {"image": "<image>"}, mark="<open><image><close>")


def hunyuan(config: Any) -> Stock:
    fields = {"image": "<image>", "image_start": "<open>", "image_end": "<close>"}
    return make(config, {"<image>": "image_token_id"}, SIZES, fields, mark="<open><image><close>")


def muse(config: Any) -> Stock:
    names = {"<|patch|>": "image_token_id", "<|video|>": "video_token_id"}
    names |= dict.fromkeys(("<|image_start|>", "<|image_end|>"), "")
    if config.model_type == "muse_spark":
        names["<|audio|>"] = "audio_token_id"
    sizes = {"patch_size": PATCH, "merge_size": MERGE, "max_image_tokens": 24}
    sound = {"feature_extractor": lambda: tf.MuseSparkFeatureExtractor()}
    return make(config, names, sizes, parts=sound)


def kimi(config: Any) -> Stock:
    names = {"<|media_pad|>": "image_token_id", "<|kimi_k25_video_placeholder|>": "video_token_id"}
    sizes = {"patch_size": PATCH, "merge_size": MERGE, "max_patches": 96, "size": {"max_height": 16, "max_width": 16}}
    return make(config, names, sizes)


GRIDS = {
    "qwen2_vl": qwen,
    "qwen2_5_vl": qwen,
    "qwen3_vl": qwen,
    "qwen3_5": qwen,
    "qwen3_5_moe": qwen,
    "qwen4_exp": qwen,
    "qwen3_vl_moe": qwen3_moe,
    "cosmos3_omni": qwen3_moe,
    "cosmos3_edge": cosmos3_edge,
    "lfm3_vl": qwen,
    "qwen2_5_omni_thinker": omni,
    "qwen3_omni_moe_thinker": omni,
    "glm4v": glm,
    "glm46v": glm46,
    "glmga": glm46,
    "glm4v_moe": glm_moe,
    "glm_ocr": glm46,
    "cohere_compass": cohere_compass,
    "exaone4_5": lines,
    "hyperclovax_vision_v2": lines,
    "video_llama_3": lines,
    "minimax_m3_vl": minimax_m3_vl,
    "ernie4_5_vl_moe": ernie,
    "paddleocr_vl": paddle,
    "hunyuan_vl": hunyuan,
    "muse_glimmer": muse,
    "muse_spark": muse,
    "kimi_k25": kimi,
}
