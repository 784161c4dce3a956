"""Families whose visual tokens are no sets of a tower's patches, and why: no row can give them encoder signals."""

from __future__ import annotations

UNKNOWN = "vtc does not know how its tower's patches become tokens"

_REASONS: dict[str, tuple[str, ...]] = {
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
NO_PATCHES = {kind: reason for reason, kinds in _REASONS.items() for kind in kinds}
