"""Patches with their places, padded to a fixed number: Gemma 4, Gemma 4 unified."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vtc.eval.check.tiny_model.shrink import HEADS
from vtc.eval.check.tiny_model.token_ids import WORDS, Tokens

from .placeholders import Item, Kind, Size, noise, of
from .placeholders_of_single_families import alternate
from .placeholders_of_sound import Sound


class Placed(Kind):
    """Patches that a tower pools 2 x 2, and videos frame by frame: Gemma 4. A size is in pooled (rows, columns)."""

    sizes, clips = ((3, 3), (2, 2), (2, 4), (4, 3)), (2, 1)
    touching, marked, framed = False, "mm_token_type_ids", True
    pool, patch, budget, frame = 2, 4, 12, (2, 2)

    def geometry(self, config: dict[str, Any]) -> None:
        """Patches of 4 x 4 pixels, places for 32 of them in each direction."""
        config["vision_config"].update(
            patch_size=self.patch,
            pooling_kernel_size=self.pool,
            position_embedding_size=32,
            head_dim=16,
            num_key_value_heads=HEADS,
        )
        self.width = 3 * self.patch**2
        text = config["text_config"]
        alternate(text, min(2, text["num_kv_shared_layers"]))
        per_layer: dict[Any, dict[str, Any]] = text.pop("per_layer_config", None) or {}
        own = next(iter(per_layer.values()), {})  # of the layers without a window
        # narrow, as scores are not scaled: else rounding decides
        text.update(head_dim=12, global_head_dim=16, num_global_key_value_heads=own.get("num_key_value_heads"))
        if text.get("vocab_size_per_layer_input"):
            text["vocab_size_per_layer_input"] = text["vocab_size"]
        if config["audio_config"] is not None:
            bins = 16
            config["audio_config"].update(
                hidden_size=32,
                num_hidden_layers=1,
                num_attention_heads=4,
                subsampling_conv_channels=[bins, 8],
                output_proj_dims=32,
            )
            self.sound = self._sound(config, bins, 4)

    @staticmethod
    def _sound(config: dict[str, Any], width: int, frames: int) -> Sound:
        """Clips of which so many frames make a token."""
        marks = config["boa_token_id"], config["eoa_token_index"]
        return Sound(width, (6 * frames, 4 * frames, 9 * frames), marks=marks)

    def _patches(self, size: Size) -> tuple[int, int]:
        return size[0] * self.pool, size[1] * self.pool

    def picture(self, size: Size, generator: torch.Generator) -> Item:
        """Its patches, without padding."""
        rows, cols = self._patches(size)
        return Item("image", noise((1, rows * cols * self.width), generator), size)

    def video(self, size: Size, generator: torch.Generator) -> Item:
        """A size is a number of frames."""
        rows, cols = self._patches(self.frame)
        return Item("video", noise((size, rows * cols * self.width), generator), size)

    def spans(self, item: Item) -> int:
        """One."""
        return 1

    def _padded(self, item: Item) -> tuple[Tensor, Tensor]:
        """Pixels `[frames, patches, width]` and places (x, y) `[frames, patches, 2]`, -1 behind the last patch."""
        rows, cols = self._patches(self.frame if item.modality == "video" else item.size)
        frames, whole = len(item.pixels), self.budget * self.pool**2
        pixels = torch.zeros(frames, whole, self.width)
        places = torch.full((frames, whole, 2), -1)
        pixels[:, : rows * cols] = item.pixels.view(frames, rows * cols, self.width)
        x, y = torch.meshgrid(torch.arange(cols), torch.arange(rows), indexing="xy")
        places[:, : rows * cols] = torch.stack([x, y], -1).reshape(-1, 2)
        return pixels, places

    def collate(self, samples: Sequence[Sequence[Item]]) -> dict[str, Any]:
        """All pictures, and all frames of all videos."""
        out: dict[str, Any] = {}
        for modality, name in (("image", "pixel_values"), ("video", "pixel_values_videos")):
            items = of(samples, modality)
            if items:
                pixels, places = zip(*map(self._padded, items), strict=True)
                out |= {name: torch.cat(pixels), f"{modality}_position_ids": torch.cat(places)}
        clips = of(samples, "video")
        if clips:
            out["num_frames_per_video"] = torch.tensor([clip.size for clip in clips])
        return out

    def item_ids(self, item: Item, left: list[int], tokens: Tokens) -> list[int]:
        """Between marks; videos frame by frame, behind their times."""
        if item.modality == "image":
            return super().item_ids(item, left, tokens)
        n = left.pop(0) // item.size
        frame = [tokens.open, *[tokens.video or 0] * n, tokens.close]
        return [token for t in range(item.size) for token in (WORDS[0] + t, *frame)]


class RawPatches(Placed):
    """Each patch is a token, and nothing looks at it before the text model does: Gemma 4 unified."""

    pool, patch = 1, 4

    def geometry(self, config: dict[str, Any]) -> None:
        """Patches of 4 x 4 pixels."""
        config["vision_config"].update(
            patch_size=2, pooling_kernel_size=2, mm_embed_dim=32, output_proj_dims=32, mm_posemb_size=32
        )
        if config["audio_config"] is not None:
            config["audio_config"]["audio_embed_dim"] = 16
            self.sound = self._sound(config, 16, 1)
        self.width = 3 * self.patch**2
