"""Pictures as flattened patches with a (t, h, w) grid, given in other ways than Qwen-VL's.

GLM-V, Qwen Omni, Cosmos Edge, Cohere Compass, EXAONE 4.5, HyperCLOVA X, PaddleOCR-VL, VideoLLaMA 3, Hunyuan, Kimi.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vtc.eval.check.tiny_model.token_ids import CLOSE, OPEN, WORDS, Tokens

from .placeholders import Item, Size, of
from .placeholders_by_size import Patches, Qwen3
from .placeholders_of_sound import Sound, in_time


class Glm(Patches):
    """Videos stand behind the placeholders of pictures, frame by frame between marks of the whole video: GLM-V.

    The model can't tell them from pictures by their tokens, so that no batch may hold both.
    """

    mixed = False

    def geometry(self, config: dict[str, Any]) -> None:
        """A small table of positions."""
        super().geometry(config)
        config["vision_config"]["image_size"] = 8 * self.patch
        self.ends = config["video_start_token_id"], config["video_end_token_id"]

    def item_ids(self, item: Item, left: list[int], tokens: Tokens) -> list[int]:
        """Each frame between marks, its time behind it."""
        if item.modality == "image":
            return super().item_ids(item, left, tokens)
        frame = [tokens.open, *[tokens.image] * (left.pop(0) // item.size[0]), tokens.close]
        return [self.ends[0], *(i for t in range(item.size[0]) for i in (*frame, 3 + t)), self.ends[1]]

    def token_types(self, ids: Tensor, tokens: Tokens) -> dict[str, Tensor]:
        """Placeholders inside a video's marks are 2."""
        inside = (ids == self.ends[0]).cumsum(1) > (ids == self.ends[1]).cumsum(1)
        return {"mm_token_type_ids": (ids == tokens.image).long() * (1 + inside.long())}


class GlmMoe(Glm):
    """The text model has no norms behind its parts: GLM-4.5V. What its tower rounds, it makes ten times larger."""

    def geometry(self, config: dict[str, Any]) -> None:
        """Fewer layers in the tower, each of which doubles rounding."""
        super().geometry(config)
        config["vision_config"]["depth"] = 2


class Omni(Patches):
    """Kinds of tokens are told by the marks around them, and videos come with their speed: Qwen2.5-Omni, Qwen3-Omni.

    The model counts a mark behind each picture, so that none can be the last of its row.
    """

    marked, last, sound_in_videos = None, False, True

    def geometry(self, config: dict[str, Any]) -> None:
        """Marks, which default configurations lack, and a small tower for audio; time in small steps."""
        super().geometry(config)
        for name, mark in (("vision_start_token_id", OPEN), ("vision_end_token_id", CLOSE)):
            config.setdefault(name, mark)
        audio = config["audio_config"]
        audio.update(d_model=32, encoder_layers=1, encoder_attention_heads=4, encoder_ffn_dim=32, num_mel_bins=16)
        audio["output_dim"] = config["text_config"]["hidden_size"]
        if "downsample_hidden_size" in audio:
            audio["downsample_hidden_size"] = 16
        marks = config["audio_start_token_id"], config.get("audio_end_token_id") or CLOSE
        self.sound = Sound(16, (40, 72, 104), mask="feature_attention_mask", frames_last=True, marks=marks)
        # so that a clip of few tokens lasts as long as a video
        self.step = config["position_id_per_seconds"] = 2
        seconds = config.get("seconds_per_chunk")  # Qwen3-Omni has none
        self.chunk = None if seconds is None else float(self.step * seconds)

    def collate(self, samples: Sequence[Sequence[Item]]) -> dict[str, Any]:
        """With the seconds between two frames of each video."""
        out, clips = super().collate(samples), of(samples, "video")
        if clips:
            out["video_second_per_grid"] = torch.tensor([float(clip.size[0]) for clip in clips])
        return out

    def sounding(self, video: Item, ids: list[int], sound: list[int]) -> list[int]:
        """Both behind both marks, in the order of time."""
        frames, heard = ids[1:-1], sound[1:-1]
        each = len(frames) // video.size[0]
        times = [float(t * video.size[0] * self.step) for t in range(video.size[0]) for _ in range(each)]
        left = iter(frames), iter(heard)
        mixed = [next(left[later]) for later in in_time(times, len(heard), self.chunk)]
        return [ids[0], sound[0], *mixed, sound[-1], ids[-1]]


class Edge(Qwen3):
    """A patch is one frame high, and the projector stands behind the tower: Cosmos 3 Edge."""

    def geometry(self, config: dict[str, Any]) -> None:
        """A small table of positions."""
        super().geometry(config)
        tower = config["vision_config"]
        tower["num_patches"] = 64
        self.sizes_of(tower["spatial_merge_size"], 1)
        config["projector_hidden_size"] = 64


class Compass(Qwen3):
    """Qwen3-VL's pictures, with rotary parameters for each kind of layer: Cohere Compass."""

    def defaults(self, config: dict[str, Any]) -> None:
        """The released models' mix of layers, where the default configuration has one kind without positions."""
        text = config["text_config"]
        if not text["rope_parameters"]:
            kinds = ("sliding_attention", "sliding_attention", "sliding_attention", "full_attention")
            text["layer_types"] = [kinds[i % 4] for i in range(text["num_hidden_layers"])]
            turned = {"rope_type": "default", "rope_theta": 10000.0}
            text["rope_parameters"] = {"sliding_attention": turned, "full_attention": None}

    def geometry(self, config: dict[str, Any]) -> None:
        """Sections of each kind of layer that has positions."""
        text = config["text_config"]
        rope = text.pop("rope_parameters")
        super().geometry(config)
        sections = {"mrope_section": text["rope_parameters"]["mrope_section"]}
        text["rope_parameters"] = {kind: own and {**sections, **own} for kind, own in rope.items()}


class Lines(Patches):
    """Patches and grids under 1-D positions: HyperCLOVA X, MiniMax M3, and EXAONE 4.5 with grouped heads."""

    touching, marked, framed = True, None, False

    def geometry(self, config: dict[str, Any]) -> None:
        """Positions are the text model's own."""
        text = config["text_config"]
        rope = text.get("rope_parameters")
        super().geometry(config)
        text["rope_parameters"] = rope
        tower = config["vision_config"]
        if "num_key_value_heads" in tower:
            tower["num_key_value_heads"] = tower["num_heads"] // 2


class Squares(Patches):
    """Patches are small pictures, `[N, 3, p, p]`, of one frame: PaddleOCR-VL."""

    def geometry(self, config: dict[str, Any]) -> None:
        """A small table of positions."""
        super().geometry(config)
        tower = config["vision_config"]
        tower["image_size"] = 8 * self.patch
        self.sizes_of(tower["spatial_merge_size"], 1)

    def collate(self, samples: Sequence[Sequence[Item]]) -> dict[str, Any]:
        """Patches as pictures."""
        found = super().collate(samples)
        return {k: v.view(-1, 3, self.patch, self.patch) if "pixel" in k else v for k, v in found.items()}


class Pooled(Squares):
    """Such patches; the frames of a video are averaged: Kimi K2.5."""

    touching, marked, framed = True, None, False

    def geometry(self, config: dict[str, Any]) -> None:
        """Small tables of positions, of the tower's alone."""
        tower = config["vision_config"]
        tower.update(patch_size=self.patch, pos_emb_height=8, pos_emb_width=8)
        config["projection_hidden_size"] = tower["hidden_size"]
        self.sizes_of(tower["merge_kernel_size"][0], 1)


class Merged(Lines):
    """How many patches make a token is told for each picture: VideoLLaMA 3. A size is (t, h, w, side of a token).

    Of a video's tokens only those are fed that differ from the frame before.
    """

    def geometry(self, config: dict[str, Any]) -> None:
        """Small patches, of one frame."""
        super().geometry(config)
        self.sizes_of(1, 1)
        self.sizes = ((1, 4, 4, 1), (1, 8, 12, 2), (1, 2, 4, 1), (1, 8, 8, 2))
        self.clips = ((3, 4, 8, 2), (2, 2, 3, 1), (1, 4, 6, 2))

    def _item(self, modality: str, size: Size, generator: torch.Generator) -> Item:
        item = super()._item(modality, size[:3], generator)
        return Item(modality, item.pixels, size)

    def collate(self, samples: Sequence[Sequence[Item]]) -> dict[str, Any]:
        """Grids, the sides of tokens beside them, and which tokens of videos are fed."""
        out, clips = super().collate(samples), of(samples, "video")
        if clips:
            out["video_compression_mask"] = torch.cat([self._fed(clip).flatten() for clip in clips])
        for modality in ("image", "video"):
            if f"{modality}_grid_thw" in out:
                sizes = out[f"{modality}_grid_thw"]
                out[f"{modality}_grid_thw"], out[f"{modality}_merge_sizes"] = sizes[:, :3], sizes[:, 3]
        return out

    @staticmethod
    def _fed(clip: Item) -> Tensor:
        """`[frames, tokens]` bool: all of the first frame, of the others those above average, and one at least."""
        frames, *_, side = clip.size
        units = clip.pixels.view(frames, -1, side**2 * clip.pixels.shape[-1])
        change = units.diff(dim=0).abs().mean(-1)
        fed = torch.ones(units.shape[:2], dtype=torch.bool)
        fed[1:] = change > change.mean()
        fed[:, 0] |= ~fed.any(1)
        return fed

    def item_ids(self, item: Item, left: list[int], tokens: Tokens) -> list[int]:
        """A word in front of the tokens of each frame."""
        if item.modality == "image":
            return super().item_ids(item, left, tokens)
        fed = self._fed(item)
        if left.pop(0) != fed.numel():
            raise ValueError(f"the model does not make {fed.numel()} tokens of a video of {item.size}")
        return [i for t, n in enumerate(fed.sum(1).tolist()) for i in (WORDS[0] + t, *[tokens.video or 0] * n)]


class RowEnds(Patches):
    """A placeholder more for each row of tokens, and two for the ends: Hunyuan. Positions have four axes."""

    def geometry(self, config: dict[str, Any]) -> None:
        """Heads and sections, which the default configuration leaves open."""
        text, tower = config["text_config"], config["vision_config"]
        width = text["hidden_size"]
        tower.update(patch_size=self.patch, num_key_value_heads=tower["num_attention_heads"])
        tower.update(out_hidden_size=width, text_hidden_size=width, max_image_size=16 * self.patch)
        text["head_dim"] = width // text["num_attention_heads"]
        text["rope_parameters"] = {"mrope_section": [2, 2, 2, 2], **text["rope_parameters"]}
        self.sizes_of(tower["spatial_merge_size"], 1)
