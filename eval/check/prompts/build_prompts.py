"""Builds the prompts that ``vtc check`` runs on a small model: one for each named shape."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from vtc.eval.check.tiny_model.token_ids import BOS, Tokens, pad, words

from .items import Item, of
from .placeholders import Kind, feature_lengths
from .placeholders_by_position import Placed, RawPatches
from .placeholders_by_size import Packed, Patches, Qwen3
from .placeholders_of_codes import CodeRows, Codes
from .placeholders_of_deepstack import Injected, StackedCrops
from .placeholders_of_grids import Compass, Edge, Glm, GlmMoe, Lines, Merged, Omni, Pooled, RowEnds, Squares
from .placeholders_of_hybrids import CanvasSlices, Grids, Indexed, Radio, Recurrent, Slices, Unpadded
from .placeholders_of_single_families import Ernie, Fuyu, Gemma3n, Muse, Pages
from .placeholders_of_squares import (
    Clips,
    ConvNet,
    HighRes,
    Indicators,
    Janus,
    Latents,
    MarkedTiles,
    NextClips,
    Prefix,
    Queries,
    Sam,
    TimmTiles,
)
from .placeholders_of_tiles import AnyRes, Gemma, OneVision, SampleCrops, Tiles
from .placeholders_of_views import Joined, PooledCrops, QueriedViews, Views

# pictures (i), videos (v), clips of sound (a) and videos with their sound (w) of each row; "ii" touch, "i.i" have text
# between them, "|" ends the row right there
SHAPES: dict[str, tuple[str, ...]] = {
    "ragged": ("i", "i.i", "i"),
    "text row": ("i", "", "i.i"),
    "touching": ("ii", "i"),
    "sizes": ("i", "i.i", "i", "i"),
    "last": ("i|", "i", ".i|"),
    "video": ("v", "i.v", "v.v"),
    "sound": ("i.a", "a", "v", "a.i.a"),
    "sound in video": ("w", "a.i", "i.w", ""),
    "right": ("i", "i.i", "i"),
    "text": ("", ""),
    "singles": ("i", "", "i"),
}
VARIED = ("sizes", "text row", "video", "sound", "sound in video")  # shapes of several sizes
BEFORE, AFTER = (5, 3, 9, 4), (6, 8, 4, 7)

KINDS: dict[str, type[Kind]] = {
    "llava": Kind,
    "llava_next": AnyRes,
    "llava_onevision": OneVision,
    "qwen2_vl": Patches,
    "qwen2_5_vl": Patches,
    "qwen3_vl": Qwen3,
    "qwen3_5": Recurrent,
    "qwen3_5_moe": Recurrent,
    "qwen4_exp": Indexed,
    "internvl": Tiles,
    "idefics3": SampleCrops,
    "smolvlm": SampleCrops,
    "gemma3": Gemma,
    "mistral3": Packed,
    "vipllava": Kind,
    "video_llava": Clips,
    "llava_next_video": NextClips,
    "aya_vision": MarkedTiles,
    "cohere2_vision": MarkedTiles,
    "deepseek_vl": Kind,
    "deepseek_vl_hybrid": HighRes,
    "fast_vlm": ConvNet,
    "got_ocr2": Sam,
    "pp_chart2table": Sam,
    "janus": Janus,
    "ovis2": Indicators,
    "paligemma": Prefix,
    "shieldgemma2": Gemma,
    "aria": Queries,
    "idefics2": Latents,
    "qianfan_ocr": Tiles,
    "perception_lm": TimmTiles,
    "lfm2_vl": Unpadded,
    "lfm3_vl": Grids,
    "minicpmv4_6": Slices,
    "minicpmv4_7": CanvasSlices,
    "minicpm_ocr": Slices,
    "nemotron_h_omni": Radio,
    "muse_glimmer": Muse,
    "muse_spark": Muse,
    "ernie4_5_vl_moe": Ernie,
    "gemma3n": Gemma3n,
    "fuyu": Fuyu,
    "unlimited_ocr": Pages,
    "lighton_ocr": Joined,
    "molmo2": PooledCrops,
    "step3p7": Views,
    "deepseek_ocr2": QueriedViews,
    "emu3": Codes,
    "apertus1p5": CodeRows,
    "gemma4": Placed,
    "gemma4_unified": RawPatches,
    "granite_docling": StackedCrops,
    "granite4_vision": Injected,
    "qwen3_vl_moe": Qwen3,
    "cosmos3_omni": Qwen3,
    "glm4v": Glm,
    "glm46v": Glm,
    "glmga": Glm,
    "glm4v_moe": GlmMoe,
    "glm_ocr": Glm,
    "qwen2_5_omni_thinker": Omni,
    "qwen3_omni_moe_thinker": Omni,
    "cosmos3_edge": Edge,
    "cohere_compass": Compass,
    "exaone4_5": Lines,
    "hyperclovax_vision_v2": Lines,
    "minimax_m3_vl": Lines,
    "paddleocr_vl": Squares,
    "video_llama_3": Merged,
    "hunyuan_vl": RowEnds,
    "kimi_k25": Pooled,
}


def kind_of(config: Any) -> Kind:
    """How pictures are given to a model of this configuration; of an unknown family: plain ``pixel_values``."""
    tower = getattr(getattr(config, "vision_config", None), "model_type", None)
    if config.model_type == "llava" and tower == "pixtral":
        return Packed()
    return KINDS.get(config.model_type, Kind)()


@dataclass
class Prompt:
    """A batch: rows of token ids, the pictures of each, and what makes model inputs of them."""

    kind: Kind
    tokens: Tokens
    rows: list[list[int]]
    media: list[list[Item]] = field(default_factory=list)
    side: str = "left"
    told: dict[str, Any] = field(default_factory=dict)

    @property
    def inputs(self) -> dict[str, Any]:
        """Fresh inputs for ``model(**inputs)`` and ``model.generate(**inputs)``."""
        text = pad(self.rows, self.side)
        sound = self.kind.sound.collate(self.media) if self.kind.sound is not None else {}
        types = self.kind.token_types(text["input_ids"], self.tokens)
        return {**text, **self.kind.collate(self.media), **sound, **types, **self.told}

    def alone(self, row: int) -> Prompt:
        """One row by itself, without padding."""
        return replace(self, rows=[self.rows[row]], media=[self.media[row]])


class Prompts:
    """Makes prompts for a model.

    Parameters
    ----------
    core : nn.Module
        The composite model, untouched: it is asked how many placeholders a picture needs.
    kind : Kind
        How it is given pictures.
    tokens : Tokens
        Its special tokens.
    """

    def __init__(self, core: Any, kind: Kind, tokens: Tokens):
        self.core, self.kind, self.tokens = core, kind, tokens
        self._made: dict[str, Prompt] = {}

    def shapes(self) -> list[str]:
        """Names of the shapes that make sense for this model."""
        sound = self.kind.sound is not None and self.tokens.audio is not None
        skip = {"touching": not self.kind.touching, "sizes": len(self.kind.sizes) < 2, "video": not self.videos}
        skip |= {"last": not self.kind.last, "sound": not sound}
        skip["sound in video"] = not (sound and self.videos and self.kind.sound_in_videos)
        return [s for s in SHAPES if not skip.get(s, False)]

    @property
    def videos(self) -> bool:
        """Whether the model takes videos."""
        named = self.tokens.video is not None and hasattr(self.core, self.kind.video_features)
        return bool(self.kind.clips) and named

    def __getitem__(self, shape: str) -> Prompt:
        if shape not in self._made:
            self._made[shape] = self._make(shape)
        return self._made[shape]

    def _make(self, shape: str) -> Prompt:
        g = torch.Generator().manual_seed(0)
        kind, rows, media, seen = self.kind, [], [], dict.fromkeys("iva", 0)
        for s, plan in enumerate(SHAPES[shape]):
            if "v" in plan and not kind.mixed:
                plan = plan.replace("i", "")
            plan = plan if self.videos else plan.replace("v", "i")
            row, own = [BOS, *words(BEFORE[s], g)], []
            for mark in plan.replace("w", "va"):
                if mark not in seen:
                    continue
                sizes = self._sizes(mark)
                size = sizes[seen[mark] % len(sizes)] if shape in VARIED else sizes[0]
                size = min(sizes) if shape == "singles" else size
                seen[mark] += 1
                own.append(self._item(mark, size, g))
            items = iter(zip(own, self._ids(own), strict=True))
            for mark in plan:
                if mark == "w":
                    video, ids = next(items)
                    row += kind.sounding(video, ids, next(items)[1])
                else:
                    row += words(2, g) if mark == "." else next(items)[1] if mark in seen else []
            if plan.endswith("|"):
                visual = (self.tokens.image, self.tokens.video)
                row = row[: 1 + max(i for i, t in enumerate(row) if t in visual)]
            else:
                row += words(AFTER[s], g)
            rows.append(row)
            media.append(own)
        told = {"use_audio_in_video": True} if shape == "sound in video" else {}
        return Prompt(kind, self.tokens, rows, media, "right" if shape == "right" else "left", told)

    def _sizes(self, mark: str) -> tuple[Any, ...]:
        if mark == "a":
            assert self.kind.sound is not None
            return self.kind.sound.sizes
        return self.kind.sizes if mark == "i" else self.kind.clips

    def _item(self, mark: str, size: Any, generator: torch.Generator) -> Item:
        if mark == "a":
            assert self.kind.sound is not None
            return self.kind.sound.clip(size, generator)
        return self.kind.picture(size, generator) if mark == "i" else self.kind.video(size, generator)

    def _ids(self, own: list[Item]) -> list[list[int]]:
        if not own:
            return []
        inputs, sound = self.kind.collate([own]), self.kind.sound
        modalities = [m for m in dict.fromkeys(item.modality for item in own) if m != "audio"]
        lengths = {m: feature_lengths(self.core, inputs, m, self.kind.video_features) for m in modalities}
        if sound is not None:
            lengths["audio"] = [sound.length(self.core, clip) for clip in of([own], "audio")]
        return self.kind.ids(own, lengths, self.tokens)
