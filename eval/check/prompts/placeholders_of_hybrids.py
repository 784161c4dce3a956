"""Pictures of the families whose text models have recurrent layers: Qwen3.5, MiniCPM-V, LFM-VL, Nemotron-H Omni."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from vtc.eval.check.tiny_model.token_ids import VOCABULARY, Tokens

from .placeholders import Item, Kind, noise, of
from .placeholders_by_size import Patches, Qwen3
from .placeholders_of_sound import Sound

PIXELS = 4  # of a patch's side
# names of tokens that default configurations leave open
PLACEHOLDERS = ("image_token_id", "video_token_id")
MARKS = ("image_start_id", "image_end_id", "slice_start_id", "slice_end_id", "newline_id")
FIRST_MARK = VOCABULARY - 20
NEMOTRON = {"M": "linear_attention", "E": "moe", "*": "full_attention", "-": "mlp"}


def interleave(text: dict[str, Any]) -> None:
    """Put every third layer's attention early, in place, so that few layers hold two of each kind.

    The more recurrent layers there are, the more they make of rounding.
    """
    text["layer_types"] = [
        "full_attention" if i % 3 == 1 else "linear_attention" for i in range(len(text["layer_types"]))
    ]


class Recurrent(Qwen3):
    """Qwen3-VL's pictures before recurrent layers: Qwen3.5."""

    def geometry(self, config: dict[str, Any]) -> None:
        """Attention early."""
        super().geometry(config)
        interleave(config["text_config"])


class Grids(Patches):
    """Patches and grids under 1-D positions, without token types: LFM3-VL."""

    marked = None
    frames = 2

    def geometry(self, config: dict[str, Any]) -> None:
        """Key heads of the tower in proportion; positions are the text model's own."""
        tower = config["vision_config"]
        self.merge = tower["spatial_merge_size"]
        self.length = tower["in_channels"] * tower["temporal_patch_size"] * self.patch**2
        self.sizes = tuple((1, h * self.merge, w * self.merge) for h, w in ((4, 4), (2, 4), (4, 2), (6, 4)))
        self.clips = tuple((t, h * self.merge, w * self.merge) for t, h, w in ((3, 2, 4), (2, 4, 4), (2, 2, 2)))
        tower.update(patch_size=self.patch, num_key_value_heads=2)
        config["projector_hidden_size"] = 64


class Indexed(Qwen3):
    """Qwen3.5's pictures, with an indexer in each attention layer: Qwen4."""

    def defaults(self, config: dict[str, Any]) -> None:
        """Sizes of the indexer, which the default configuration leaves open."""
        sizes = {"n_heads": 2, "kv_heads": 1, "head_dim": 256, "budget": 2048, "compress_ratio": 16}
        text = config["text_config"]
        text.update({f"indexer_{n}": v for n, v in sizes.items() if text.get(f"indexer_{n}") is None})


class Unpadded(Kind):
    """Flattened patches, as many as a picture has, padded to the longest: LFM2-VL. A size is (rows, columns)."""

    sizes = ((8, 8), (4, 8), (8, 6), (12, 8))
    framed = True

    def defaults(self, config: dict[str, Any]) -> None:
        """The released models' mix of layers: the default configuration has attention only."""
        text = config["text_config"]
        if "conv" not in text["layer_types"]:
            text["layer_types"] = ["full_attention" if i % 3 == 2 else "conv" for i in range(len(text["layer_types"]))]
            text["full_attn_idxs"] = None

    def geometry(self, config: dict[str, Any]) -> None:
        """Small patches."""
        config["vision_config"].update(patch_size=PIXELS, num_patches=64)
        config["projector_hidden_size"] = 64

    def picture(self, size: Any, generator: torch.Generator) -> Item:
        """A random picture."""
        return Item("image", noise((size[0] * size[1], 3 * PIXELS**2), generator), size)

    def collate(self, samples: Sequence[Sequence[Item]]) -> dict[str, Any]:
        """Pictures padded to the most patches."""
        pictures = of(samples, "image")
        if not pictures:
            return {}
        rows = torch.nn.utils.rnn.pad_sequence([p.pixels for p in pictures], batch_first=True)
        counts = torch.tensor([len(p.pixels) for p in pictures])
        mask = (torch.arange(rows.shape[1]) < counts[:, None]).long()
        return {
            "pixel_values": rows,
            "spatial_shapes": torch.tensor([p.size for p in pictures]),
            "pixel_attention_mask": mask,
        }


class Slices(Kind):
    """A thumbnail and slices behind it, all patches in one row: MiniCPM-V 4.6, MiniCPM-OCR.

    A size is (rows, columns) of the patches of each crop, and how many slices stand below and beside each other.
    """

    clips = ((2, 8, 12), (3, 8, 8))

    def defaults(self, config: dict[str, Any]) -> None:
        """Ids of placeholders and marks, which come from the tokenizer."""
        for i, name in enumerate((*PLACEHOLDERS, *MARKS)):
            if name in config and config[name] is None:
                config[name] = FIRST_MARK + i

    def geometry(self, config: dict[str, Any]) -> None:
        """Small patches, the inner merger behind the first layer; ids of marks in the small vocabulary."""
        tower = config["vision_config"]
        tower.update(image_size=8 * PIXELS, patch_size=PIXELS)
        config["insert_layer_id"] = tower["insert_layer_id"] = 1
        # 16 patches make a token, or 4 where the inner merger is skipped
        scale = 1 if config["downsample_mode"] == "4x" else 2
        grids = ((4, 6, 0, 0), (2, 4, 1, 2), (4, 4, 0, 0), (2, 2, 2, 2))
        self.sizes = tuple((2 * scale * h, 2 * scale * w, *slices) for h, w, *slices in grids)
        interleave(config["text_config"])
        self.marks = {name: FIRST_MARK + 2 + i for i, name in enumerate(MARKS)}
        config.update({name: mark for name, mark in self.marks.items() if name in config})

    def picture(self, size: Any, generator: torch.Generator) -> Item:
        """All crops, one behind the other."""
        height, width, down, across = size
        crops = 1 + down * across
        return Item("image", noise((3, PIXELS, crops * height * width * PIXELS), generator), size)

    def video(self, size: Any, generator: torch.Generator) -> Item:
        """A size is (frames, rows, columns)."""
        frames, height, width = size
        return Item("video", noise((3, PIXELS, frames * height * width * PIXELS), generator), size)

    def spans(self, item: Item) -> int:
        """One for each crop, or for each frame."""
        return int(item.size[0]) if item.modality == "video" else 1 + int(item.size[2] * item.size[3])

    def item_ids(self, item: Item, left: list[int], tokens: Tokens) -> list[int]:
        """Crops and frames between marks, a newline behind each row of slices but the last."""
        marks, one = self.marks, tokens.image if item.modality == "image" else tokens.video or 0
        whole = marks["image_start_id"], marks["image_end_id"]
        if item.modality == "video":
            return [i for _ in range(item.size[0]) for i in (whole[0], *[one] * left.pop(0), whole[1])]
        ids = [whole[0], *[one] * left.pop(0), whole[1]]
        _, _, down, across = item.size
        for row in range(down):
            for _ in range(across):
                ids += [marks["slice_start_id"], *[one] * left.pop(0), marks["slice_end_id"]]
            ids += [marks["newline_id"]] * (row < down - 1)
        return ids

    def collate(self, samples: Sequence[Sequence[Item]]) -> dict[str, Any]:
        """Patches of all crops behind each other, and their sizes."""
        out: dict[str, Any] = {}
        for modality, pixels, sizes in (
            ("image", "pixel_values", "target_sizes"),
            ("video", "pixel_values_videos", "target_sizes_videos"),
        ):
            items = of(samples, modality)
            if items:
                out[pixels] = torch.cat([i.pixels for i in items], -1)[None]
                grids = [i.size[:2] if modality == "image" else i.size[1:] for i in items for _ in range(self.spans(i))]
                out[sizes] = torch.tensor(grids, dtype=torch.int32)
        return out


class CanvasSlices(Slices):
    """Slices whose positions lie on a canvas, told by token types: MiniCPM-V 4.7."""

    touching, marked = False, "mm_token_type_ids"


class Radio(Kind):
    """Flattened patches and (rows, columns), four patches a token: Nemotron-H Omni."""

    sizes = ((8, 8), (4, 8), (8, 6), (12, 8))

    def defaults(self, config: dict[str, Any]) -> None:
        """Ids of placeholders, which come from the tokenizer; layers in the order of the released models."""
        for i, name in enumerate((*PLACEHOLDERS, "audio_token_id")):
            config[name] = FIRST_MARK + i if config[name] is None else config[name]
        text = config["text_config"]
        if text["layers_block_type"] == ["linear_attention", "moe", "full_attention", "mlp"]:  # the bare default
            text["layers_block_type"] = [NEMOTRON[letter] for letter in "MEM*-M*M"]

    def geometry(self, config: dict[str, Any]) -> None:
        """Small patches and states."""
        tower, text = config["vision_config"], config["text_config"]
        tower.update(patch_size=PIXELS, image_size=16 * PIXELS, max_img_size=16 * PIXELS)
        config.update(vision_hidden_size=tower["hidden_size"], projector_hidden_size=64)
        text.update(ssm_state_size=16, mamba_num_heads=4, n_groups=2, chunk_size=8)
        # transformers raises time steps to the least one in a prefill, and not in a step behind it: none is so small
        text.update(time_step_min=1e-6, time_step_floor=0.1)
        if config["audio_config"] is not None:
            small = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 64, "subsampling_conv_channels": 8}
            config["audio_config"].update(small, num_attention_heads=4, num_key_value_heads=4, num_mel_bins=16)
            # a frame more counts than the mask says, so that no clip is of whole tokens
            self.sound = Sound(16, (46, 30, 70))

    picture, spans = Unpadded.picture, Unpadded.spans

    def collate(self, samples: Sequence[Sequence[Item]]) -> dict[str, Any]:
        """Patches of all pictures behind each other, and their grids."""
        pictures = of(samples, "image")
        if not pictures:
            return {}
        grids = torch.tensor([p.size for p in pictures])
        return {"pixel_values": torch.cat([p.pixels for p in pictures]), "image_grid_hw": grids}
