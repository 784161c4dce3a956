"""Processors of single families."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import transformers as tf
from PIL import Image

from .make import Stock, make
from .of_squares import BOUNDS, GEMMA, GEMMA_OLD, IMAGE, SOUND, side


def mistral3(config: Any) -> Stock:
    names = {"[IMG]": "image_token_id", "[IMG_BREAK]": "", "[IMG_END]": ""}
    sizes = {"size": {"longest_edge": 1008}, "patch_size": side(14)}
    return make(config, names, sizes, patch_size=14, spatial_merge_size=2)


def lighton_ocr(config: Any) -> Stock:
    sizes = {"size": {"longest_edge": 1008}, "patch_size": side(28)}
    attributes = {"image": "<image>", "image_break": "<line>", "image_end": "<close>"}
    return make(config, IMAGE, sizes, attributes, patch_size=14, spatial_merge_size=2)


def aria(config: Any) -> Stock:
    return make(config, IMAGE, {}, {"image": "<image>"}, call={"max_image_size": 490}, size_conversion={490: 9})


def nemotron(config: Any) -> Stock:
    names = {**IMAGE, "<video>": "video_token_id", "<so_embedding>": "", "<img>": "", "</img>": ""}
    sizes = {"patch_size": 16, "min_num_patches": 16, "max_num_patches": 256}
    return make(config, names, sizes, parts={"feature_extractor": tf.ParakeetFeatureExtractor})


def fuyu(config: Any) -> Stock:
    """It puts the picture in front itself."""
    names = {"|SPEAKER|": "image_token_id", "|NEWLINE|": "", "<0x04>": ""}
    return make(
        config, names, {"patch_size": side(64), "size": side(1024)}, mark="", spaced=True,
        call={"return_legacy_image_output": False},
    )  # fmt: skip


def unlimited_ocr(config: Any) -> Stock:
    sizes = {"size": side(1024), "tile_size": 512, "max_patches": 4}
    return make(config, IMAGE, sizes, patch_size=64, downsample_ratio=4)


def deepseek_ocr2(config: Any) -> Stock:
    sizes = {"size": side(1024), "tile_size": 768}
    return make(config, IMAGE, sizes, patch_size=16, call={"max_patches": 2})


def molmo2(config: Any) -> Stock:
    names = {
        "<im_patch>": "image_patch_id", "<im_col>": "", "<im_start>": "image_start_token_id",
        "<low_res_im_start>": "low_res_image_start_token_id", "<frame_start>": "frame_start_token_id",
        "<frame_end>": "frame_end_token_id", "<im_end>": "image_end_token_id", "<im_low>": "", "<|image|>": "",
        "<|video|>": "",
    }  # fmt: skip
    sizes = {"size": side(28), "patch_size": 7, "max_crops": 4, "overlap_margins": [1, 1]}
    return make(config, names, sizes)


def step3p7(config: Any) -> Stock:
    names = {"<im_patch>": "image_token_id"}
    names |= dict.fromkeys(("<im_start>", "<im_end>", "<patch_start>", "<patch_end>", "<patch_newline>"), "")
    sizes = {"size": side(84), "patch_size": 56, "vision_patch_size": 7, "max_image_size": 336}
    return make(config, names, sizes)


def emu3(config: Any) -> Stock:
    attributes = {"image": "<image>", "boi": "<boi>", "eoi": "<eoi>", "image_wrapper": "<wrap>", "eof": "<eof>"}
    return make(config, IMAGE, {"min_pixels": 8 * 64, "max_pixels": 24 * 64}, attributes)


def apertus(config: Any) -> Stock:
    attributes = {"image": "<image>", "audio": "<audio>", "boi": "<boi>", "eoi": "<eoi>", "image_wrapper": "<wrap>"}
    attributes |= {"eol": "<eol>", "boa": "<boa>", "eoa": "<eoa>"}
    names = {**IMAGE, "<audio>": "audio_token_id"}
    sizes = {"spatial_factor": 2, "size": {"min_pixels": 8 * 4, "max_pixels": 48 * 4}}
    return make(config, names, sizes, attributes, parts={"feature_extractor": tf.WavTokenizerFeatureExtractor})


def gemma4(config: Any) -> Stock:
    names = {**GEMMA, "<|video|>": "video_token_id", "<audio>": "audio_token_id", "<boa>": "boa_token_id", "<eoa>": ""}
    unified = config.model_type == "gemma4_unified"
    sound = tf.Gemma4UnifiedAudioFeatureExtractor if unified else tf.Gemma4AudioFeatureExtractor
    sizes = {"patch_size": 2 if unified else 4, "pooling_kernel_size": 2, "max_soft_tokens": 70}
    return make(config, names, sizes, {**BOUNDS, **SOUND}, parts={"feature_extractor": sound})


@dataclass
class Policies(Stock):
    """Writes the prompt itself, about a policy: ShieldGemma 2."""

    def __call__(self, *rows: Sequence[Image.Image]) -> dict[str, Any]:
        images = [list(row) for row in rows] if any(rows) else None
        return dict(self.processor(images=images, policies=["dangerous"], return_tensors="pt"))


def shieldgemma2(config: Any) -> Stock:
    template = "{% for c in messages[0].content %}{{ '<boi>' if c.type == 'image' else 'Which?' }}{% endfor %}"
    made = make(config, GEMMA_OLD, {"size": side(56)}, BOUNDS, image_seq_length=16, chat_template=template)
    return Policies(made.processor, "")


OTHERS = {
    "mistral3": mistral3,
    "lighton_ocr": lighton_ocr,
    "aria": aria,
    "nemotron_h_omni": nemotron,
    "fuyu": fuyu,
    "unlimited_ocr": unlimited_ocr,
    "deepseek_ocr2": deepseek_ocr2,
    "molmo2": molmo2,
    "step3p7": step3p7,
    "emu3": emu3,
    "apertus1p5": apertus,
    "gemma4": gemma4,
    "gemma4_unified": gemma4,
    "shieldgemma2": shieldgemma2,
}
