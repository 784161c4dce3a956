"""Pictures of one resolution, and what else comes with them: videos, a second tower, marks, a resampler, timm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vtc.eval.check.tiny_model.layer_kinds import keep_layers
from vtc.eval.check.tiny_model.shrink import HEADS, TOWER_DEPTH, WIDTH
from vtc.eval.check.tiny_model.token_ids import WORDS, Tokens

from .placeholders import PATCH, SIDE, Item, Kind, Size, noise, of, set_square
from .placeholders_of_tiles import AnyRes, SampleCrops, Tiles

SAM = {"output_channels": 16, "window_size": 3, "num_pos_feats": 8, "mlp_dim": 64}


class Clips(Kind):
    """Videos of a tower of their own, as many frames in each: Video-LLaVA."""

    clips = (3,)

    def video(self, size: Size, generator: torch.Generator) -> Item:
        """A size is a number of frames."""
        return Item("video", noise((size, 3, *self.pixels), generator), size)

    def collate(self, samples: Sequence[Sequence[Item]]) -> dict[str, Any]:
        """Videos beside each other."""
        clips = of(samples, "video")
        videos = {"pixel_values_videos": torch.stack([c.pixels for c in clips])} if clips else {}
        return {**super().collate(samples), **videos}


class NextClips(Clips, AnyRes):
    """AnyRes pictures, and videos as pooled frames: LLaVA-NeXT-Video."""

    def spans(self, item: Item) -> int:
        """One, whatever the number of frames."""
        return 1


class MarkedTiles(Tiles):
    """Tiles that each follow a mark of their own, the thumbnail last: Aya Vision, Command A Vision."""

    def geometry(self, config: dict[str, Any]) -> None:
        """3 x 3 tokens a tile."""
        side = 3 * config["downsample_factor"] * PATCH
        self.pixels = (side, side)
        set_square(config["vision_config"], side, PATCH)
        config["alignment_intermediate_size"] = 2 * WIDTH

    def item_ids(self, item: Item, left: list[int], tokens: Tokens) -> list[int]:
        """A mark before each tile."""
        tiles = [[WORDS[0] + i, *[tokens.image] * left.pop(0)] for i in range(item.size)]
        return [tokens.open, *(i for tile in tiles for i in tile), tokens.close]


class HighRes(Kind):
    """A second, larger version of each picture for a SAM tower: DeepSeek-VL hybrid."""

    framed = True

    def geometry(self, config: dict[str, Any]) -> None:
        """4 x 4 patches in both towers."""
        super().geometry(config)
        tower = config["high_res_vision_config"]
        keep_layers(tower, "num_hidden_layers", TOWER_DEPTH)
        tower.update(SAM, hidden_size=32, num_attention_heads=HEADS)
        set_square(tower, 2 * SIDE, 2 * PATCH)

    def collate(self, samples: Sequence[Sequence[Item]]) -> dict[str, Any]:
        """Both versions."""
        out = super().collate(samples)
        if out:
            out["high_res_pixel_values"] = nn.functional.interpolate(out["pixel_values"], scale_factor=2)
        return out


class Sam(Kind):
    """A SAM tower, whose 4 x 4 patches become one token by convolution: GOT-OCR2, PP-Chart2Table."""

    sizes = (1, 3)
    framed = True
    pixels = (64, 64)

    def geometry(self, config: dict[str, Any]) -> None:
        """4 x 4 tokens."""
        config["vision_config"].update(SAM, window_size=6)
        set_square(config["vision_config"], 64, 4)
        config["image_seq_length"] = 16


class Janus(Kind):
    """An understanding tower beside a generating one, which stays unused: Janus."""

    framed = True

    def geometry(self, config: dict[str, Any]) -> None:
        """Small ones of both."""
        super().geometry(config)
        config["vision_config"].update(projection_dim=WIDTH, num_image_tokens=(SIDE // PATCH) ** 2)
        config["vq_config"].update(
            num_embeddings=32,
            latent_channels=32,
            base_channels=32,
            channel_multiplier=[1, 1],
            projection_dim=WIDTH,
            image_token_embed_dim=WIDTH,
        )


class Indicators(Kind):
    """Marks around a picture and between its tiles whose embeddings come from the visual table: Ovis2."""

    sizes = (1, 3)

    def geometry(self, config: dict[str, Any]) -> None:
        """A visual vocabulary of 40 words."""
        super().geometry(config)
        config["vision_config"]["vocab_size"] = 40
        self.marks = config["visual_indicator_token_ids"]

    def item_ids(self, item: Item, left: list[int], tokens: Tokens) -> list[int]:
        """The thumbnail, a mark, and the other tiles in one row."""
        start, end, grid, column, _ = self.marks
        first, *tiles = ([tokens.image] * left.pop(0) for _ in range(item.size))
        row = [i for j, tile in enumerate(tiles) for i in ([column] * (j > 0) + tile)]
        return [start, *first, grid, *row, end]


class Prefix(Kind):
    """Picture and question see each other whole, the answer only what is before it: PaliGemma."""

    marked, answered = "token_type_ids", 1

    def geometry(self, config: dict[str, Any]) -> None:
        """As wide as the text model."""
        super().geometry(config)
        config["projection_dim"] = WIDTH

    def token_types(self, ids: Tensor, tokens: Tokens) -> dict[str, Tensor]:
        """All of a prompt is prefix."""
        return {"token_type_ids": torch.zeros_like(ids)}


class Queries(Kind):
    """A resampler, whose number of queries depends on the number of patches: Aria."""

    sizes = (1, 3)

    def geometry(self, config: dict[str, Any]) -> None:
        """9 queries for 4 x 4 patches."""
        super().geometry(config)
        config["projector_patch_to_query_dict"] = {(SIDE // PATCH) ** 2: 9, (2 * SIDE // PATCH) ** 2: 12}
        config.pop("max_value_projector_patch_to_query_dict", None)

    def collate(self, samples: Sequence[Sequence[Item]]) -> dict[str, Any]:
        """With a mask that hides the lowest row of patches."""
        out = super().collate(samples)
        if out:
            mask = torch.ones(len(out["pixel_values"]), *self.pixels)
            mask[:, -PATCH:] = 0
            out["pixel_mask"] = mask.long()
        return out


class Latents(SampleCrops):
    """A resampler with few latents a crop, marks between the crops: Idefics2."""

    sizes = (1, 5)
    pixels = (SIDE, SIDE)

    def geometry(self, config: dict[str, Any]) -> None:
        """9 latents a crop."""
        set_square(config["vision_config"], SIDE, PATCH)
        config["perceiver_config"].update(
            hidden_size=WIDTH,
            resampler_n_latents=9,
            resampler_n_heads=HEADS,
            resampler_head_dim=12,
            num_key_value_heads=HEADS // 2,
        )

    def item_ids(self, item: Item, left: list[int], tokens: Tokens) -> list[int]:
        """The same mark before each crop and behind the last one."""
        crops = [[tokens.open, *[tokens.image] * left.pop(0)] for _ in range(item.size)]
        return [*(i for crop in crops for i in crop), tokens.open]


class ConvNet(Kind):
    """A convolutional tower of timm, a token for each place of its last feature map: FastVLM."""

    pixels = (256, 256)

    def geometry(self, config: dict[str, Any]) -> None:
        """The same stages with a block each, 4 x 4 tokens."""
        widths = (8, 8, 16, 32, 32)  # of the last two in heads of 32
        tower = config["vision_config"]
        tower["model_args"] = {**(tower.get("model_args") or {}), "layers": (1,) * 5, "embed_dims": widths}
        tower["hidden_size"] = 2 * widths[-1]
        config["image_seq_length"] = 16


class TimmTiles(Clips, Tiles):
    """A ViT of timm, pictures as a thumbnail and tiles, videos as frames: Perception LM.

    The default configuration names a ResNet, of which no such model can be built; released ones have this ViT.
    """

    video_features = "get_image_features"
    framed = False

    def geometry(self, config: dict[str, Any]) -> None:
        """4 x 4 patches and a class token, pooled to 2 x 2 where it pools."""
        self.pixels = (SIDE, SIDE)
        before = config["vision_config"].get("model_args") or {}
        sizes = {
            "img_size": self.pixels,
            "patch_size": PATCH,
            "depth": TOWER_DEPTH,
            "embed_dim": 48,
            "num_heads": HEADS,
        }
        small = {"global_pool": "", "ref_feat_shape": (4, 4), **before, **sizes}
        config["vision_config"].update(architecture="vit_pe_core_tiny_patch16_384", do_pooling=False, model_args=small)

    def collate(self, samples: Sequence[Sequence[Item]]) -> dict[str, Any]:
        """Tiles of each picture in a row, or of all pictures where they have not as many; videos beside each other."""
        out, counts = super().collate(samples), [picture.size for picture in of(samples, "image")]
        if counts:
            rows = len(counts) if len(set(counts)) == 1 else 1
            out["pixel_values"] = out["pixel_values"].unflatten(0, (rows, -1))
        return out
