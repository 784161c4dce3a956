"""Pictures of single families with inputs of their own: Muse, ERNIE-4.5-VL, Gemma 3n, Fuyu, Unlimited-OCR."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vtc.eval.check.tiny_model.token_ids import Tokens

from .placeholders import Item, Kind, Size, noise, of
from .placeholders_by_size import Patches
from .placeholders_of_sound import Sound


class Muse(Patches):
    """Patches and grids as Qwen-VL's, but positions are a line: Muse Glimmer, Muse Spark."""

    touching, marked, framed = True, None, False

    def geometry(self, config: dict[str, Any]) -> None:
        """Windows of 4 x 4 patches; the sound encoder narrow; attention not so sharp that rounding decides."""
        self.sizes_of(2, 2)
        tower = config["vision_config"]
        tower.update(patch_size=self.patch, pos_emb_height=4, pos_emb_width=4)
        config.update(out_hidden_size=tower["hidden_size"] * self.merge**2, projector_hidden_size=32)
        config["text_config"]["qk_scale_factor"] = 1.0
        if "audio_config" in config:
            width = config["text_config"]["hidden_size"]
            config["audio_config"].update(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], out_hidden_size=width)
            token = math.prod(config["audio_config"]["patch_sizes"])  # whole tokens: no convolution looks ahead
            self.sound = Sound(0, (6 * token, 4 * token, 9 * token), "input_values", "input_values_mask")


class Ernie(Patches):
    """Patches and grids; marks count as visual for the experts that a token is sent to: ERNIE-4.5-VL."""

    by_frame = False

    def geometry(self, config: dict[str, Any]) -> None:
        """A patch is one frame high; two frames become one."""
        self.sizes_of(2, 1)
        self.clips = tuple((2 * t, h, w) for t, h, w in self.clips)
        config["vision_config"]["patch_size"] = self.patch
        text = config["text_config"]
        text["rope_parameters"]["mrope_section"] = [3, 3, 2]  # height, width and time
        text.update(moe_intermediate_size=[48, 32], moe_num_experts=4, moe_num_shared_experts=1)

    def token_types(self, ids: Tensor, tokens: Tokens) -> dict[str, Tensor]:
        """Both kinds of types."""
        types = super().token_types(ids, tokens)
        marks = (ids == tokens.open) | (ids == tokens.close)
        return {**types, "moe_mm_token_type_ids": types["mm_token_type_ids"].masked_fill(marks, 1).int()}


def alternate(text: dict[str, Any], shared: int) -> None:
    """Eight layers, sliding and full in turn, of which the last `shared` read the keys of layers before them."""
    text.update(num_hidden_layers=8, layer_types=["sliding_attention", "full_attention"] * 4)
    text.update(num_kv_shared_layers=shared, hidden_size_per_layer_input=min(16, text["hidden_size_per_layer_input"]))


class Gemma3n(Kind):
    """Pictures of one resolution between marks, through a convolutional tower of timm: Gemma 3n."""

    touching, marked, framed = False, "token_type_ids", True
    pixels = (128, 128)

    def geometry(self, config: dict[str, Any]) -> None:
        """Timm's smallest network instead of one of 300 million weights; 4 x 4 tokens; two layers without keys.

        Narrow heads, as scores are not scaled: else rounding decides.
        """
        text, tower, audio = (config[name] for name in ("text_config", "vision_config", "audio_config"))
        alternate(text, 2)
        text.update(head_dim=8, laurel_rank=8)
        text.update(intermediate_size=[96] * 8, activation_sparsity_pattern=[0.95] * 2 + [0.0] * 6)
        tower.update(architecture="test_efficientnet", hidden_size=256, vocab_size=8)
        audio.update(
            hidden_size=32, conf_num_attention_heads=4, conf_num_hidden_layers=1, sscp_conv_channel_size=[8, 4]
        )
        audio["vocab_size"] = 8  # the last words of the vocabulary, with the picture's in front of them
        audio["vocab_offset"] = text["vocab_size"] - 8
        tower["vocab_offset"] = text["vocab_size"] - 16
        config["vision_soft_tokens_per_image"] = 16
        # shorter clips are filled up with one and the same token
        fixed = config["audio_soft_tokens_per_image"] = 8
        marks = config["boa_token_id"], config["eoa_token_id"]
        self.sound = Sound(audio["input_feat_size"], (96, 64, 128), marks=marks, fixed=fixed)


class Fuyu(Kind):
    """Flat patches that the text model reads without a tower, a newline behind each row: Fuyu. A size is in patches.

    Pictures of one batch have as many patches.
    """

    sizes = ((4, 4), (2, 8), (8, 2))
    patch = 4

    def geometry(self, config: dict[str, Any]) -> None:
        """Small patches."""
        config["patch_size"] = self.patch

    def picture(self, size: Size, generator: torch.Generator) -> Item:
        """A random picture."""
        return Item("image", noise((1, size[0] * size[1], 3 * self.patch**2), generator), size)

    def item_ids(self, item: Item, left: list[int], tokens: Tokens) -> list[int]:
        """Rows of its own."""
        left.pop(0)
        return [*[tokens.image] * item.size[1], tokens.line] * item.size[0]


class Pages(Kind):
    """A whole page and parts of it, a newline behind each row of tokens and a separator at the end: Unlimited-OCR.

    A size is (columns, rows) of parts.
    """

    sizes = ((2, 1), (0, 0), (1, 2), (2, 2))
    pixels, part = (64, 64), 32

    def geometry(self, config: dict[str, Any]) -> None:
        """4 x 4 tokens a page, 2 x 2 a part; of both towers four layers."""
        sam, clip = (config["vision_config"][name] for name in ("sam_config", "encoder_config"))
        sam.update(num_hidden_layers=4, num_attention_heads=4, hidden_size=32, mlp_dim=64, global_attn_indexes=[1, 3])
        sam.update(image_size=64, patch_size=4, window_size=3, output_channels=16, downsample_channels=[24, 48])
        clip.update(num_hidden_layers=4, num_attention_heads=4, hidden_size=48, intermediate_size=64)
        clip.update(image_size=16, patch_size=4)

    def picture(self, size: Size, generator: torch.Generator) -> Item:
        """The page in front, its parts behind it, each in a corner of as much."""
        return Item("image", noise((1 + size[0] * size[1], 3, *self.pixels), generator), size)

    def collate(self, samples: Sequence[Sequence[Item]]) -> dict[str, Any]:
        """Pages, and the parts of all of them."""
        pages = of(samples, "image")
        if not pages:
            return {}
        out: dict[str, Any] = {"pixel_values": torch.stack([p.pixels[0] for p in pages])}
        parts = torch.cat([p.pixels[1:, :, : self.part, : self.part] for p in pages])
        if len(parts):
            out["pixel_values_local"] = parts
        out["num_local_patches"] = [len(p.pixels) - 1 for p in pages]
        out["patches_grid"] = [list(p.size) for p in pages]
        return out
