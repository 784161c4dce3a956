"""How each family turns pictures and videos into placeholder tokens and pixel tensors, as its processor does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .tokens import BREAK, CLOSE, IMAGE, OPEN, VIDEO, words

Size = Any  # what a size is differs: a number of tiles, (height, width) or a grid


@dataclass
class Media:
    """One picture or video: the tokens that stand for it and its pixels, and how many spans vtc sees in it."""

    modality: str
    ids: list[int]
    pixels: Tensor
    size: Size
    spans: int = 1


@dataclass(frozen=True)
class Family:
    """A model family: how to build it, which pictures it takes and how they are batched.

    ``sizes`` and ``clips`` list the picture and video sizes that the prompts go through; ``touching`` says that the
    placeholders of two pictures may follow each other directly; ``marked`` names the token-type input that it needs.
    """

    name: str
    build: Callable[[str], nn.Module]
    sizes: tuple[Size, ...] = (1,)
    clips: tuple[Size, ...] = ()
    touching: bool = True
    marked: str | None = None
    pixels: tuple[int, int] = (28, 28)
    tokens: int = 16

    def picture(self, size: Size, alone: bool, g: torch.Generator) -> Media:
        """A random picture. `alone`: the only one of its sample."""
        raise NotImplementedError

    def video(self, size: Size, g: torch.Generator) -> Media:
        """A random video."""
        raise NotImplementedError

    def collate(self, samples: Sequence[Sequence[Media]]) -> dict[str, Any]:
        """Pixel inputs of a batch."""
        raise NotImplementedError

    def __str__(self) -> str:
        return self.name


def flat(samples: Sequence[Sequence[Media]], modality: str) -> list[Media]:
    """All media of one modality, in batch order."""
    return [m for sample in samples for m in sample if m.modality == modality]


def grid_of(size: int) -> tuple[int, int]:
    """Rows and columns of the crops of a picture that has `size` of them, the thumbnail among them."""
    down = max((r for r in range(1, size) if r * r <= size - 1 and (size - 1) % r == 0), default=0)
    return down, (size - 1) // max(down, 1)


def crops(size: int, side: tuple[int, int], g: torch.Generator) -> Tensor:
    """Crops of a random picture, row by row, and the thumbnail: `[size, 3, H, W]`; a single one is all noise."""
    down, across = grid_of(size)
    if not down:
        return torch.randn(size, 3, *side, generator=g)
    coarse = torch.randn(1, 3, 3 * down + 2, 3 * across + 2, generator=g)
    whole = nn.functional.interpolate(coarse, (side[0] * down, side[1] * across), mode="bicubic")
    whole = whole + 0.3 * torch.randn(whole.shape, generator=g)
    cut = whole.unflatten(3, (across, -1)).unflatten(2, (down, -1))[0].permute(1, 3, 0, 2, 4).flatten(0, 1)
    return torch.cat([cut, nn.functional.interpolate(whole, side, mode="bicubic", antialias=True)])


@dataclass(frozen=True)
class Fixed(Family):
    """One resolution, a size is a number of tiles: LLaVA-1.5, Gemma3 (always 1), InternVL."""

    def picture(self, size: Size, alone: bool, g: torch.Generator) -> Media:
        ids = [IMAGE] * self.tokens * size
        if not self.name.startswith("llava"):
            ids = [OPEN, *ids, CLOSE]
        return Media("image", ids, crops(size, self.pixels, g), size, size)

    def collate(self, samples: Sequence[Sequence[Media]]) -> dict[str, Any]:
        pictures = flat(samples, "image")
        return {"pixel_values": torch.cat([m.pixels for m in pictures])} if pictures else {}


def anyres_tokens(size: tuple[int, int]) -> tuple[int, int]:
    """Crops and placeholders of a picture under LLaVA-NeXT's scheme, for tiles of 4 x 4 tokens.

    Written from the scheme's description: the pinpoint that keeps most of the picture and wastes least is chosen, the
    padding is cut away from the mosaic, and each row gets a newline.
    """
    from .models import PINPOINTS

    height, width = size

    def fit(pin: list[int]) -> tuple[int, int]:
        scale = min(pin[1] / width, pin[0] / height)
        used = min(int(width * scale) * int(height * scale), width * height)
        return used, -(pin[0] * pin[1] - used)

    best = max(PINPOINTS, key=fit)
    rows, cols = best[0] // 7, best[1] // 7
    if width / height > cols / rows:
        new = int(round(height * (cols / width), 7))
        rows -= 2 * ((rows - new) // 2)
    else:
        new = int(round(width * (rows / height), 7))
        cols -= 2 * ((cols - new) // 2)
    return 1 + best[0] // 28 * best[1] // 28, 16 + rows * (cols + 1)


@dataclass(frozen=True)
class AnyRes(Family):
    """A base crop and a mosaic of tiles, a size is (height, width): LLaVA-NeXT, LLaVA-OneVision."""

    def picture(self, size: Size, alone: bool, g: torch.Generator) -> Media:
        crops, tokens = anyres_tokens(size)
        if self.clips and not alone:  # OneVision shows several pictures of a sample without tiles, and one newline each
            crops, tokens = 1, 17
        return Media("image", [IMAGE] * tokens, torch.randn(crops, 3, *self.pixels, generator=g), size)

    def video(self, size: Size, g: torch.Generator) -> Media:
        ids = [VIDEO] * (size * 4 + 1)  # 4 x 4 tokens a frame, pooled to 2 x 2, and a newline at the end
        return Media("video", ids, torch.randn(size, 3, *self.pixels, generator=g), size)

    def collate(self, samples: Sequence[Sequence[Media]]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        pictures, clips = flat(samples, "image"), flat(samples, "video")
        if pictures:
            pixels = torch.zeros(len(pictures), max(len(m.pixels) for m in pictures), 3, *self.pixels)
            for i, m in enumerate(pictures):
                pixels[i, : len(m.pixels)] = m.pixels
            out = {"pixel_values": pixels, "image_sizes": torch.tensor([m.size for m in pictures])}
            if self.clips:
                out["batch_num_images"] = torch.tensor([len(flat([s], "image")) for s in samples])
        if clips:
            out["pixel_values_videos"] = torch.stack([m.pixels for m in clips])
        return out


@dataclass(frozen=True)
class SampleCrops(Family):
    """Crops behind marks, a line break (here: ``BREAK``) behind each row of them, and the thumbnail: Idefics3, SmolVLM.

    A size is a number of crops, the thumbnail among them.
    """

    def picture(self, size: Size, alone: bool, g: torch.Generator) -> Media:
        down, across = grid_of(size)
        one = [*words(1, g), *[IMAGE] * self.tokens]
        ids = ([OPEN, *one] * across + [BREAK]) * down + [BREAK, OPEN, *one, OPEN] if size > 1 else [OPEN, *one, OPEN]
        return Media("image", ids, crops(size, self.pixels, g), size, size)

    def collate(self, samples: Sequence[Sequence[Media]]) -> dict[str, Any]:
        counts = [sum(m.size for m in sample) for sample in samples]
        if not any(counts):
            return {}
        pixels = torch.zeros(len(samples), max(counts), 3, *self.pixels)
        for i, sample in enumerate(samples):
            if sample:
                pixels[i, : counts[i]] = torch.cat([m.pixels for m in sample])
        mask = (pixels != 0).any(2).long()
        return {"pixel_values": pixels, "pixel_attention_mask": mask}


@dataclass(frozen=True)
class Packed(Family):
    """Any size (height, width); each row of placeholders ends in a break or end token: Pixtral, Mistral3."""

    stride: int = 14

    def picture(self, size: Size, alone: bool, g: torch.Generator) -> Media:
        rows, cols = size[0] // self.stride, size[1] // self.stride
        ids = ([IMAGE] * cols + [BREAK]) * rows
        return Media("image", [*ids[:-1], CLOSE], torch.randn(3, *size, generator=g), size)

    def collate(self, samples: Sequence[Sequence[Media]]) -> dict[str, Any]:
        pictures = flat(samples, "image")
        if not pictures:
            return {}
        height, width = (max(m.size[i] for m in pictures) for i in (0, 1))
        pixels = torch.zeros(len(pictures), 3, height, width)
        for i, m in enumerate(pictures):
            pixels[i, :, : m.size[0], : m.size[1]] = m.pixels
        return {"pixel_values": pixels, "image_sizes": torch.tensor([m.size for m in pictures])}


@dataclass(frozen=True)
class Patches(Family):
    """Flattened patches and a (t, h, w) grid with 2 x 2 merging: the Qwen-VL families."""

    frames: bool = False  # Qwen3: each frame between its own markers, behind a time stamp
    touching: bool = False

    def _pixels(self, size: Size, g: torch.Generator) -> Tensor:
        t, h, w = size
        return torch.randn(t * h * w, 3 * 2 * 4 * 4, generator=g)

    def picture(self, size: Size, alone: bool, g: torch.Generator) -> Media:
        t, h, w = size
        return Media("image", [OPEN, *[IMAGE] * (t * h * w // 4), CLOSE], self._pixels(size, g), size)

    def video(self, size: Size, g: torch.Generator) -> Media:
        t, h, w = size
        pixels = self._pixels(size, g)
        if not self.frames:
            return Media("video", [OPEN, *[VIDEO] * (t * h * w // 4), CLOSE], pixels, size)
        ids = [i for _ in range(t) for i in (*words(2, g), OPEN, *[VIDEO] * (h * w // 4), CLOSE)]
        return Media("video", ids, pixels, size)

    def collate(self, samples: Sequence[Sequence[Media]]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for modality, pixels, grid in (
            ("image", "pixel_values", "image_grid_thw"),
            ("video", "pixel_values_videos", "video_grid_thw"),
        ):
            media = flat(samples, modality)
            if media:
                out[pixels] = torch.cat([m.pixels for m in media])
                out[grid] = torch.tensor([m.size for m in media])
        return out
