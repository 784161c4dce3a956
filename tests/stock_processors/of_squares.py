"""Processors that make every picture a square of one size."""

from __future__ import annotations

from typing import Any

import transformers as tf

from .make import Stock, make


def side(pixels: int) -> dict[str, int]:
    """A square."""
    return {"height": pixels, "width": pixels}


def cropped(pixels: int) -> dict[str, Any]:
    """Settings of a CLIP image processor."""
    return {"size": {"shortest_edge": pixels}, "crop_size": side(pixels)}


IMAGE = {"<image>": "image_token_id"}
LLAVA = {"patch_size": 7, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
BOUNDS = {"image": "<image>", "boi": "<boi>", "eoi": "<eoi>"}
GEMMA = {"<image>": "image_token_id", "<boi>": "boi_token_id", "<eoi>": "eoi_token_id"}
GEMMA_OLD = {name: field.replace("_id", "_index") for name, field in GEMMA.items()}
SOUND = {"audio": "<audio>", "boa": "<boa>", "eoa": "<eoa>"}


def llava(config: Any) -> Stock:
    return make(config, IMAGE, cropped(28), **LLAVA)


def video_llava(config: Any) -> Stock:
    return make(config, {**IMAGE, "<video>": "video_token_id"}, cropped(28), **LLAVA)


def fast_vlm(config: Any) -> Stock:
    return make(
        config, IMAGE, cropped(256), cls="LlavaProcessor", like="vipllava", patch_size=64,
        vision_feature_select_strategy="full",
    )  # fmt: skip


def deepseek_vl(config: Any) -> Stock:
    return make(config, IMAGE, {"size": side(28)}, {"image": "<image>"}, num_image_tokens=16)


def deepseek_vl_hybrid(config: Any) -> Stock:
    sizes = {"size": side(28), "high_res_size": side(56)}
    return make(config, IMAGE, sizes, {"image": "<image>"}, num_image_tokens=16)


def got_ocr2(config: Any) -> Stock:
    names = {"<imgpad>": "image_token_id", "<img>": "", "</img>": "", "<|im_start|>": "", "<|im_end|>": ""}
    call = {"num_image_tokens": 16, "crop_to_patches": True, "max_patches": 4}
    return make(config, names, {"size": side(64)}, mark="<img><imgpad></img>", call=call, flat=True)


def pp_chart2table(config: Any) -> Stock:
    """Its chat template writes the placeholders."""
    names = {"<imgpad>": "image_token_id", "<img>": "", "</img>": ""}
    return make(config, names, {"size": side(64)}, mark=f"<img>{'<imgpad>' * 16}</img>")


def janus(config: Any) -> Stock:
    return make(config, IMAGE, {"size": side(28)}, BOUNDS, num_image_tokens=16)


def paligemma(config: Any) -> Stock:
    def pictures() -> Any:
        made = tf.SiglipImageProcessor(size=side(28))
        made.image_seq_length = 16
        return made

    return make(config, IMAGE, {}, parts={"image_processor": pictures}, drop=("labels",))


def gemma3(config: Any) -> Stock:
    return make(config, GEMMA_OLD, {"size": side(56)}, BOUNDS, mark="<boi>", image_seq_length=16)


def gemma3n(config: Any) -> Stock:
    sound = {"<audio>": "audio_token_id", "<boa>": "boa_token_id", "<eoa>": "eoa_token_id"}
    return make(
        config, {**GEMMA, **sound}, {"size": side(128)}, {**BOUNDS, **SOUND}, image_seq_length=16,
        parts={"feature_extractor": tf.Gemma3nAudioFeatureExtractor},
    )  # fmt: skip


SQUARES = {
    "llava": llava,
    "vipllava": llava,
    "video_llava": video_llava,
    "fast_vlm": fast_vlm,
    "deepseek_vl": deepseek_vl,
    "deepseek_vl_hybrid": deepseek_vl_hybrid,
    "got_ocr2": got_ocr2,
    "pp_chart2table": pp_chart2table,
    "janus": janus,
    "paligemma": paligemma,
    "gemma3": gemma3,
    "gemma3n": gemma3n,
}
