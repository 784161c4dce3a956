"""What of a small model's pictures is changed, where its stock processor can't make them so small."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Change = Callable[[dict[str, Any]], None]


def patches(size: int, side: int) -> Change:
    """Patches of `size` pixels, and places for pictures of `side` pixels: a thin picture may be 1000 long."""

    def change(config: dict[str, Any]) -> None:
        config["vision_config"].update(patch_size=size, image_size=side)

    return change


def aria(config: dict[str, Any]) -> None:
    """It has two sizes, of 490 and 980 pixels."""
    patches(70, 490)(config)
    config["projector_patch_to_query_dict"] = {49: 9}


def fuyu(config: dict[str, Any]) -> None:
    config["patch_size"] = 64


def nemotron(config: dict[str, Any]) -> None:
    config["vision_config"].update(patch_size=16, image_size=256, max_img_size=256)


def lfm2(config: dict[str, Any]) -> None:
    config["vision_config"].update(patch_size=16)


def unlimited_ocr(config: dict[str, Any]) -> None:
    config["vision_config"]["sam_config"].update(image_size=1024, patch_size=64)


def deepseek_ocr2(config: dict[str, Any]) -> None:
    """The model has 144 or 256 queries for a crop, so that a crop has as many tokens; no layer sees a whole crop."""
    config["vision_config"]["sam_config"].update(image_size=1024, patch_size=16, global_attn_indexes=[])


def emu3(config: dict[str, Any]) -> None:
    """The processor counts a code for 8 x 8 pixels, whatever its settings."""
    config["vq_config"]["channel_multiplier"] = [1, 1, 1, 1]


def gemma4(config: dict[str, Any]) -> None:
    """70 tokens are the fewest, in one row of a thin picture."""
    name = "mm_posemb_size" if "mm_posemb_size" in config["vision_config"] else "position_embedding_size"
    config["vision_config"][name] = 160


GEOMETRY: dict[str, Change] = {
    "mistral3": patches(14, 1008),
    "lighton_ocr": patches(14, 1008),
    "aria": aria,
    "fuyu": fuyu,
    "nemotron_h_omni": nemotron,
    "lfm2_vl": lfm2,
    "unlimited_ocr": unlimited_ocr,
    "deepseek_ocr2": deepseek_ocr2,
    "emu3": emu3,
    "gemma4": gemma4,
    "gemma4_unified": gemma4,
}
