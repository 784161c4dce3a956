"""Pictures seen whole and in parts, one item of features each: LightOnOCR, Step 3.7, DeepSeek-OCR2, Molmo2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vtc.eval.check.tiny_model.shrink import HEADS
from vtc.eval.check.tiny_model.token_ids import WORDS, Tokens

from .placeholders import PATCH, Item, Kind, Size, noise, of, set_square
from .placeholders_by_size import Packed

SPAN = 48  # width of a small tower


class Joined(Packed):
    """Placeholders in one row, whatever the size: LightOnOCR."""

    def item_ids(self, item: Item, left: list[int], tokens: Tokens) -> list[int]:
        """No break between the rows."""
        return [tokens.image] * left.pop(0)


class Views(Kind):
    """The whole picture, behind a number of smaller views of its parts between marks of their own: Step 3.7."""

    sizes: tuple[Size, ...] = (2, 0, 1)  # views of parts
    framed = True
    side, part = 12 * PATCH, 8 * PATCH

    def defaults(self, config: dict[str, Any]) -> None:
        """Sliding layers as in the released model: the default has none, and can't make the mask that it needs."""
        text = config["text_config"]
        if text.get("sliding_window") is None:
            depth, sliding = text["num_hidden_layers"], "sliding_attention"
            kinds = ["full_attention" if i % 4 == 0 else sliding for i in range(depth)]
            rope = dict(text["rope_parameters"]["full_attention"])
            more = {"num_attention_heads": text["num_attention_heads"] * 3 // 2}
            text.update(
                sliding_window=512,
                layer_types=kinds,
                rope_parameters={"full_attention": {**rope, "partial_rotary_factor": 0.5}, sliding: rope},
                per_layer_config={i: more for i, kind in enumerate(kinds) if kind == sliding},
            )

    def geometry(self, config: dict[str, Any]) -> None:
        """12 x 12 patches, of which convolutions leave 3 x 3 tokens, and parts of 2 x 2."""
        set_square(config["vision_config"], self.side, PATCH)
        config["text_config"]["share_expert_dim"] = 48

    def picture(self, size: Size, generator: torch.Generator) -> Item:
        """The whole; the parts are made with it, and lie behind it in a flat row of pixels."""
        whole, parts = (3, self.side, self.side), (size, 3, self.part, self.part)
        pixels = [noise(shape, generator).flatten() for shape in (whole, parts) if 0 not in shape]
        return Item("image", torch.cat(pixels), size)

    def _split(self, item: Item) -> tuple[Tensor, Tensor]:
        whole = 3 * self.side**2
        parts = item.pixels[whole:].reshape(-1, 3, self.part, self.part)
        return item.pixels[:whole].reshape(1, 3, self.side, self.side), parts

    def collate(self, samples: Sequence[Sequence[Item]]) -> dict[str, Any]:
        """All wholes, all parts, and how many parts each picture has."""
        pictures = of(samples, "image")
        if not pictures:
            return {}
        wholes, parts = zip(*map(self._split, pictures), strict=True)
        out: dict[str, Any] = {"pixel_values": torch.cat(wholes)}
        counts = [p.size for p in pictures]
        if any(counts):
            out |= {"pixel_values_local": torch.cat(parts), "num_local_patches": torch.tensor(counts)}
        return out

    def item_ids(self, item: Item, left: list[int], tokens: Tokens) -> list[int]:
        """Parts first, each between marks, a break behind the first."""
        n, one = left.pop(0), (self.part // PATCH // 4) ** 2
        ids: list[int] = []
        for i in range(item.size):
            ids += [tokens.open, *[tokens.image] * one, tokens.close, *[tokens.line] * (i == 0)]
        return [*ids, tokens.open, *[tokens.image] * (n - item.size * one), tokens.close]

    def spans(self, item: Item) -> int:
        """One, whatever the number of views."""
        return 1


class QueriedViews(Views):
    """As many queries for each view, and a separator that is a placeholder too, in one row: DeepSeek-OCR2."""

    sizes = (0, 1)
    side, part = 16 * PATCH, 8 * PATCH

    def defaults(self, config: dict[str, Any]) -> None:
        """Which layers have experts and how many, which no default says."""
        text = config["text_config"]
        if text.get("mlp_layer_types") is None:
            text["mlp_layer_types"] = ["dense", *["sparse"] * (text["num_hidden_layers"] - 1)]
        if text.get("num_experts_per_tok") is None:
            text["num_experts_per_tok"] = 6

    def geometry(self, config: dict[str, Any]) -> None:
        """Two small towers, one behind the other; the numbers of queries are fixed in the model."""
        tower = config["vision_config"]
        sam, encoder = tower["sam_config"], tower["encoder_config"]
        set_square(sam, self.side, PATCH)
        sam.update(hidden_size=SPAN, num_hidden_layers=2, num_attention_heads=HEADS, mlp_dim=64, output_channels=16)
        sam.update(window_size=6, global_attn_indexes=[1], downsample_channels=[16, SPAN])
        heads = {"num_attention_heads": HEADS, "num_key_value_heads": HEADS}
        encoder.update(hidden_size=SPAN, intermediate_size=64, num_hidden_layers=2, layer_types=None, **heads)

    def item_ids(self, item: Item, left: list[int], tokens: Tokens) -> list[int]:
        """All of them side by side."""
        return [tokens.image] * left.pop(0)


class PooledCrops(Kind):
    """Patches of crops averaged 2 x 2 by a table, tokens of both views between columns and marks: Molmo2.

    A size is (rows, columns) of crops; the whole picture is one more.
    """

    sizes, clips = ((1, 2), (1, 1), (2, 1)), (2, 1)
    marked, mixed = "mm_token_type_ids", False
    grid, width = 4, 3 * PATCH**2

    def defaults(self, config: dict[str, Any]) -> None:
        """Scaled positions in one layer of four, as in a released model: the default has one kind of layer."""
        text = config["text_config"]
        depth = text["num_hidden_layers"]
        if text.get("rope_scaling_layers") in (None, list(range(depth))):
            scaled = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8192}
            text["rope_parameters"] = {**text["rope_parameters"], **scaled}
            text["rope_scaling_layers"] = list(range(3, depth, 4))

    def geometry(self, config: dict[str, Any]) -> None:
        """4 x 4 patches a crop; the adapter's widths are those of the tower and of the text model."""
        tower, adapter = config["vision_config"], config["adapter_config"]
        depth, side = tower["num_hidden_layers"], self.grid * PATCH
        tower.update(image_size=[side, side], patch_size=PATCH, num_position_embeddings=self.grid**2)
        shared = {"num_key_value_heads": HEADS, "num_attention_heads": HEADS, "head_dim": SPAN // HEADS}
        tower.update(shared)
        adapter.update(hidden_size=SPAN, intermediate_size=64, text_hidden_size=config["text_config"]["hidden_size"])
        adapter.update(vision_feature_layer=[depth - 1, depth - 2], **shared)

    def picture(self, size: Size, generator: torch.Generator) -> Item:
        """The whole, then the crops."""
        return Item("image", noise((1 + size[0] * size[1], self.grid**2 * self.width), generator), size)

    def video(self, size: Size, generator: torch.Generator) -> Item:
        """A size is a number of frames."""
        return Item("video", noise((size, self.grid**2 * self.width), generator), size)

    def spans(self, item: Item) -> int:
        """One."""
        return 1

    def _pools(self, item: Item) -> Tensor:
        """`[n, 4]`: the patches of each token, counted from the item's first; the last token lacks one."""
        crops = [(1, 1)] * item.size if item.modality == "video" else [(1, 1), item.size]
        found, seen = [], 0
        for rows, cols in crops:
            own = seen + torch.arange(rows * cols * self.grid**2).view(rows, cols, self.grid, self.grid)
            whole = own.transpose(1, 2).reshape(rows * self.grid, cols * self.grid)
            cells = whole.unfold(0, 2, 2).unfold(1, 2, 2)
            found.append(cells.reshape(-1, 4))
            seen += rows * cols * self.grid**2
        pools = torch.cat(found)
        pools[-1, -1] = -1
        return pools

    def collate(self, samples: Sequence[Sequence[Item]]) -> dict[str, Any]:
        """Crops of all items behind each other, and where in them each token's patches are."""
        out: dict[str, Any] = {}
        half = self.grid // 2
        for modality, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
            items = of(samples, modality)
            if not items:
                continue
            starts = torch.tensor([0, *(len(i.pixels) for i in items[:-1])]).cumsum(0) * self.grid**2
            pools = [self._pools(i) for i in items]
            out[pixels] = torch.cat([i.pixels for i in items]).view(-1, self.grid**2, self.width)
            out[f"{modality}_token_pooling"] = torch.cat(
                [torch.where(pool < 0, -1, pool + start) for pool, start in zip(pools, starts, strict=True)]
            )
            sizes = [i.size for i in items]
            grids = [[half, half, half * s[0], half * s[1]] if modality == "image" else [s, half, half] for s in sizes]
            out[f"{modality}_grids"] = torch.tensor(grids)
        return out

    def item_ids(self, item: Item, left: list[int], tokens: Tokens) -> list[int]:
        """Both views of a picture with a break behind each row; the frames of a video behind their times."""
        half, image = self.grid // 2, tokens.image
        left.pop(0)
        if item.modality == "video":
            frame = [tokens.open, *[image] * half**2, tokens.close]
            return [token for t in range(item.size) for token in (WORDS[0] + t, *frame)]
        ids: list[int] = []
        for rows, cols in ((1, 1), item.size):
            line = [*[image] * (half * cols), tokens.line]
            ids += [tokens.open, *line * (half * rows), tokens.close]
        return ids

    def token_types(self, ids: Tensor, tokens: Tokens) -> dict[str, Tensor]:
        """Marks and breaks belong to the picture, and a video's placeholders are those of a picture."""
        types = torch.isin(ids, torch.tensor([tokens.image, tokens.open, tokens.close, tokens.line])).long()
        return {str(self.marked): types}
