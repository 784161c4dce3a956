"""Pictures whose features enter the text model at several of its layers: Granite-Docling, Granite 4 vision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .placeholders import PATCH, SIDE, Item
from .placeholders_of_tiles import AnyRes, SampleCrops


class StackedCrops(SampleCrops):
    """Crops of which several layers of the tower are fed: Granite-Docling."""

    def geometry(self, config: dict[str, Any]) -> None:
        """4 x 4 tokens a crop; the connector is part of the tower."""
        tower, text = config["vision_config"], config["text_config"]
        tower["scale_factor"] = 2
        super().geometry({**config, "scale_factor": 2})
        tower["out_hidden_size"] = text["hidden_size"]
        text["attention_multiplier"] = 0.25

    def collate(self, samples: Sequence[Sequence[Item]]) -> dict[str, Any]:
        """Which crops are there, and not which pixels."""
        out = super().collate(samples)
        if out:
            counts = torch.tensor([sum(item.size for item in sample) for sample in samples])
            out["pixel_attention_mask"] = torch.arange(out["pixel_values"].shape[1]) < counts[:, None]
        return out


class Injected(AnyRes):
    """AnyRes; nothing is fed at the input, and features of several layers are added at some layers: Granite 4."""

    def defaults(self, config: dict[str, Any]) -> None:
        """Which layers are fed at which, and how much smaller: no default says it."""
        if config.get("deepstack_layer_map") is None:
            config["deepstack_layer_map"] = [[-8, 9], [-6, 6], [-4, 3], [-2, 0]]
        config["downsample_rate"] = config.get("downsample_rate") or "1/2"

    def geometry(self, config: dict[str, Any]) -> None:
        """2 x 2 tokens a tile, of windows of 2 x 2 patches; all decoder layers but the last are fed."""
        super().geometry(config)
        config["vision_config"].update(hidden_size=64, image_size=SIDE, patch_size=PATCH)
        config["downsample_rate"] = "1/2"
        config["deepstack_layer_map"] = [[-2, 2], [-3, 0]]
        config["spatial_target_layers"] = [1, 3, 4, 4]
        config["qformer_config"].update(intermediate_size=64)
        config["text_config"]["attention_multiplier"] = 0.25
