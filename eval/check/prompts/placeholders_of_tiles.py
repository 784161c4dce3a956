"""Pictures that are cut into tiles or crops: InternVL, LLaVA-NeXT, LLaVA-OneVision, Idefics3, SmolVLM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from vtc.eval.check.tiny_model.token_ids import WORDS, Tokens

from .placeholders import PATCH, SIDE, Item, Kind, Size, noise, of, set_square

BOXES = ((40, 50), (28, 56), (56, 30), (50, 50))


class Gemma(Kind):
    """Patches averaged to a fixed number of tokens between marks: Gemma3."""

    touching, marked, framed = False, "token_type_ids", True
    pixels = (56, 56)

    def geometry(self, config: dict[str, Any]) -> None:
        """4 x 4 tokens of 2 x 2 patches."""
        set_square(config["vision_config"], 56, PATCH)
        config["mm_tokens_per_image"] = 16


class Tiles(Kind):
    """Tiles that are spans of their own, the thumbnail among them: InternVL."""

    sizes = (3, 1, 2)
    framed = True

    def geometry(self, config: dict[str, Any]) -> None:
        """3 x 3 tokens a tile."""
        side = round(3 / config.get("downsample_ratio", 0.5))
        self.pixels = (side * PATCH, side * PATCH)
        set_square(config["vision_config"], side * PATCH, PATCH)
        config["image_seq_length"] = 9


class SampleCrops(Kind):
    """Crops behind marks, a break behind each row of them, and the thumbnail: Idefics3, SmolVLM."""

    sizes: tuple[Size, ...] = (3, 1, 5)

    def geometry(self, config: dict[str, Any]) -> None:
        """4 x 4 tokens a crop."""
        side = 4 * config.get("scale_factor", 2)
        self.pixels = (side * 4, side * 4)
        set_square(config["vision_config"], side * 4, 4)

    def ids(self, sample: Sequence[Item], counts: dict[str, list[int]], tokens: Tokens) -> list[list[int]]:
        """The features are those of a sample, or of each crop, by version: all crops have as many."""
        crops = sum(item.size for item in sample)
        return super().ids(sample, {"image": [sum(counts["image"]) // crops] * crops}, tokens)

    def item_ids(self, item: Item, left: list[int], tokens: Tokens) -> list[int]:
        """Crops in one row, or two where they are four."""
        one = [[WORDS[0] + i, *[tokens.image] * left.pop(0)] for i in range(item.size)]
        if item.size == 1:
            return [tokens.open, *one[0], tokens.open]
        across = 2 if item.size > 3 else item.size - 1
        ids: list[int] = []
        for i, crop in enumerate(one[:-1]):
            ids += [tokens.open, *crop] + [tokens.line] * ((i + 1) % across == 0)
        return [*ids, tokens.line, tokens.open, *one[-1], tokens.open]

    def collate(self, samples: Sequence[Sequence[Item]]) -> dict[str, Any]:
        """Crops of each sample in a row, with empty ones behind."""
        counts = [sum(item.size for item in sample) for sample in samples]
        if not any(counts):
            return {}
        pixels = torch.zeros(len(samples), max(counts), 3, *self.pixels)
        for i, sample in enumerate(samples):
            if sample:
                pixels[i, : counts[i]] = torch.cat([item.pixels for item in sample])
        return {"pixel_values": pixels, "pixel_attention_mask": (pixels != 0).any(2).long()}


class AnyRes(Kind):
    """A base crop and a mosaic of tiles, a size is (height, width): LLaVA-NeXT."""

    sizes: tuple[Size, ...] = BOXES
    several = False  # whether a batch tells how many pictures each sample has

    def geometry(self, config: dict[str, Any]) -> None:
        """Pinpoints in the proportions that they had."""
        before = config["vision_config"]["image_size"]
        super().geometry(config)
        pins = [[round(v / before) * SIDE for v in pin] for pin in config["image_grid_pinpoints"]]
        self.pins = config["image_grid_pinpoints"] = [p for i, p in enumerate(pins) if p not in pins[:i] and min(p)]

    def picture(self, size: Size, generator: torch.Generator) -> Item:
        """All crops; a sample with several pictures may use the first one only."""
        from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

        crops = image_size_to_num_patches(list(size), self.pins, SIDE)
        return Item("image", noise((int(crops), 3, *self.pixels), generator), size)

    def collate(self, samples: Sequence[Sequence[Item]]) -> dict[str, Any]:
        """Crops of each picture in a row, with empty ones behind."""
        pictures = of(samples, "image")
        if not pictures:
            return {}
        alone = [not self.several or len(of([s], "image")) == 1 for s in samples for _ in of([s], "image")]
        cut = [p.pixels if whole else p.pixels[:1] for p, whole in zip(pictures, alone, strict=True)]
        pixels = torch.zeros(len(cut), max(map(len, cut)), 3, *self.pixels)
        for i, one in enumerate(cut):
            pixels[i, : len(one)] = one
        return {"pixel_values": pixels, "image_sizes": torch.tensor([p.size for p in pictures])}


class OneVision(AnyRes):
    """AnyRes; several pictures of a sample come without tiles, and videos as pooled frames: LLaVA-OneVision."""

    clips = (3,)
    several = True

    def video(self, size: Size, generator: torch.Generator) -> Item:
        """A size is a number of frames."""
        return Item("video", noise((size, 3, *self.pixels), generator), size)

    def item_ids(self, item: Item, left: list[int], tokens: Tokens) -> list[int]:
        """2 x 2 tokens a frame and a newline, which older transformers adds behind its ``get_video_features``."""
        if item.modality == "image":
            return super().item_ids(item, left, tokens)
        return [tokens.video or 0] * (item.size * 4 + 1)

    def spans(self, item: Item) -> int:
        """One, whatever the number of frames."""
        return 1

    def collate(self, samples: Sequence[Sequence[Item]]) -> dict[str, Any]:
        """With the number of pictures in each sample."""
        out, clips = super().collate(samples), of(samples, "video")
        if out:
            out["batch_num_images"] = torch.tensor([len(of([s], "image")) for s in samples])
        if clips:
            out["pixel_values_videos"] = torch.stack([c.pixels for c in clips])
        return out
