"""Pictures of any size: Pixtral, Mistral3 and the Qwen-VL families."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from vtc.eval.check.tiny_model.shrink import rescaled
from vtc.eval.check.tiny_model.token_ids import Tokens

from .placeholders import PATCH, Item, Kind, Size, noise, of, set_square


class Packed(Kind):
    """Each row of placeholders ends in a break or end token: Pixtral, Mistral3. A size is (height, width)."""

    def geometry(self, config: dict[str, Any]) -> None:
        """Sizes in whole tokens."""
        self.stride = PATCH * config.get("spatial_merge_size", 1)
        self.sizes = tuple((r * self.stride, c * self.stride) for r, c in ((4, 3), (2, 2), (2, 4), (4, 4)))
        set_square(config["vision_config"], 4 * self.stride, PATCH)

    def picture(self, size: Size, generator: torch.Generator) -> Item:
        """A random picture."""
        return Item("image", noise((3, *size), generator), size)

    def item_ids(self, item: Item, left: list[int], tokens: Tokens) -> list[int]:
        """Rows of its own."""
        rows, cols = item.size[0] // self.stride, item.size[1] // self.stride
        if rows * cols != left.pop(0):
            return super().item_ids(item, [rows * cols], tokens)
        return [*([*[tokens.image] * cols, tokens.line] * rows)[:-1], tokens.close]

    def collate(self, samples: Sequence[Sequence[Item]]) -> dict[str, Any]:
        """Pictures padded to the largest."""
        pictures = of(samples, "image")
        if not pictures:
            return {}
        height, width = (max(p.size[i] for p in pictures) for i in (0, 1))
        pixels = torch.zeros(len(pictures), 3, height, width)
        for i, p in enumerate(pictures):
            pixels[i, :, : p.size[0], : p.size[1]] = p.pixels
        return {"pixel_values": pixels, "image_sizes": torch.tensor([p.size for p in pictures])}


class Patches(Kind):
    """Flattened patches and a (t, h, w) grid, merged 2 x 2: Qwen2-VL, Qwen2.5-VL, Qwen3-VL."""

    touching, framed = False, True
    marked: str | None = "mm_token_type_ids"
    by_frame = False  # Qwen3-VL: each frame between marks of its own, behind a time stamp
    patch = 4

    def geometry(self, config: dict[str, Any]) -> None:
        """Patches of 4 x 4 pixels, windows of two merged patches; position sections, without which no model runs."""
        tower = config["vision_config"]
        merge, frames = tower.get("spatial_merge_size", 2), tower.get("temporal_patch_size", 2)
        self.sizes_of(merge, frames)
        tower["patch_size"] = self.patch
        for name, value in (("window_size", 2 * merge * self.patch), ("num_position_embeddings", 64)):
            if name in tower:
                tower[name] = value
        text = config["text_config"]
        rope = text.get("rope_parameters") or {"rope_type": "default", "rope_theta": 10000.0}
        head_dim = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
        half = int(head_dim * (rope.get("partial_rotary_factor") or 1.0)) // 2
        text["rope_parameters"] = {"mrope_section": rescaled([2, 3, 3], half), **rope}

    def sizes_of(self, merge: int, frames: int) -> None:
        """Sizes in whole tokens of `merge` x `merge` patches, each of which holds `frames` frames."""
        self.length, self.merge = 3 * frames * self.patch**2, merge
        self.sizes = tuple((1, h * merge, w * merge) for h, w in ((4, 4), (2, 4), (4, 2), (6, 4)))
        self.clips = tuple((t, h * merge, w * merge) for t, h, w in ((3, 2, 4), (2, 4, 4), (2, 2, 2)))

    def _item(self, modality: str, size: Size, generator: torch.Generator) -> Item:
        t, h, w = size
        return Item(modality, noise((t * h * w, self.length), generator), size)

    def picture(self, size: Size, generator: torch.Generator) -> Item:
        """A random picture."""
        return self._item("image", size, generator)

    def video(self, size: Size, generator: torch.Generator) -> Item:
        """A random video."""
        return self._item("video", size, generator)

    def item_ids(self, item: Item, left: list[int], tokens: Tokens) -> list[int]:
        """Between marks; Qwen3-VL's videos frame by frame."""
        if item.modality == "image" or not self.by_frame:
            return super().item_ids(item, left, tokens)
        n = left.pop(0) // item.size[0]
        frame = [tokens.open, *[tokens.video or 0] * n, tokens.close]
        return [i for t in range(item.size[0]) for i in (3 + t, *frame)]

    def collate(self, samples: Sequence[Sequence[Item]]) -> dict[str, Any]:
        """Patches of all items behind each other, and their grids."""
        out: dict[str, Any] = {}
        for modality, pixels, grid in (
            ("image", "pixel_values", "image_grid_thw"),
            ("video", "pixel_values_videos", "video_grid_thw"),
        ):
            items = of(samples, modality)
            if items:
                out[pixels] = torch.cat([i.pixels for i in items])
                out[grid] = torch.tensor([i.size for i in items])
        return out


class Qwen3(Patches):
    """Patches, with videos frame by frame."""

    by_frame = True
