"""How pictures become placeholder tokens and pixel tensors: one class for each way that models have.

How many placeholders a picture needs is asked of the model's own ``get_image_features``, not worked out.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vtc.eval.check.tiny_model.token_ids import Tokens
from vtc.models.stock.transformers_api import features_in

from .items import Item, Size, noise, of
from .placeholders_of_sound import Sound

SIDE, PATCH = 28, 7  # of a square picture, 4 x 4 patches


class Kind:
    """Square pictures of one resolution, a size is a number of tiles: LLaVA-1.5, Gemma3, and whatever is not known.

    Attributes
    ----------
    sizes, clips : tuple
        The picture and video sizes that prompts go through; no clips: no videos.
    touching : bool
        Whether the placeholders of two pictures may follow each other directly.
    marked : str or None
        Name of the token-type input that the model needs.
    answered : int
        The token type of what follows a prompt.
    framed : bool
        Whether marks stand around a picture.
    video_features : str
        The model's method that makes features of videos.
    mixed : bool
        Whether a batch may hold pictures and videos.
    last : bool
        Whether a row may end in a placeholder.
    sound : Sound or None
        How it is given sound beside pictures; None: it is not.
    sound_in_videos : bool
        Whether a video's sound may stand between its frames.
    """

    sizes: tuple[Size, ...] = (1,)
    clips: tuple[Size, ...] = ()
    touching = True
    marked: str | None = None
    answered = 0
    framed = False
    video_features = "get_video_features"
    mixed = True
    last = True
    sound: Sound | None = None
    sound_in_videos = False
    pixels = (SIDE, SIDE)

    def defaults(self, config: dict[str, Any]) -> None:
        """Fill in what a default configuration leaves out and no model can be built without, in place."""

    def geometry(self, config: dict[str, Any]) -> None:
        """Make the pictures of a configuration small, in place."""
        tower = config["vision_config"]
        set_square(tower, SIDE, PATCH)
        if "image_seq_length" in config:
            config["image_seq_length"] = (SIDE // PATCH) ** 2

    def picture(self, size: Size, generator: torch.Generator) -> Item:
        """A random picture."""
        return Item("image", noise((size, 3, *self.pixels), generator), size)

    def video(self, size: Size, generator: torch.Generator) -> Item:
        """A random video."""
        raise NotImplementedError

    def collate(self, samples: Sequence[Sequence[Item]]) -> dict[str, Any]:
        """Pixel inputs of a batch."""
        pictures = of(samples, "image")
        return {"pixel_values": torch.cat([p.pixels for p in pictures])} if pictures else {}

    def token_types(self, ids: Tensor, tokens: Tokens) -> dict[str, Tensor]:
        """What the model must be told of each token `[B, L]`: 0 is text, 1 a picture, 2 a video, 3 sound."""
        if self.marked is None:
            return {}
        video, audio = (-1 if token is None else token for token in (tokens.video, tokens.audio))
        types = (ids == tokens.image).long() + 2 * (ids == video).long()
        return {self.marked: types + 3 * (ids == audio).long()}

    def ids(self, sample: Sequence[Item], counts: dict[str, list[int]], tokens: Tokens) -> list[list[int]]:
        """Per item of a sample the tokens that stand for it; `counts` are the lengths of the model's features."""
        left = {modality: list(lengths) for modality, lengths in counts.items()}
        return [
            self.sound.ids(left["audio"].pop(0), tokens)
            if self.sound is not None and item.modality == "audio"
            else self.item_ids(item, left[item.modality], tokens)
            for item in sample
        ]

    def sounding(self, video: Item, ids: list[int], sound: list[int]) -> list[int]:
        """Tokens of a video and of its sound as one item, of the `ids` of both alone."""
        raise NotImplementedError

    def item_ids(self, item: Item, left: list[int], tokens: Tokens) -> list[int]:
        """Tokens of one item; takes its lengths from the front of `left`."""
        n = sum(left.pop(0) for _ in range(self.spans(item)))
        ids = [tokens.image if item.modality == "image" else tokens.video or 0] * n
        return [tokens.open, *ids, tokens.close] if self.framed else ids

    def spans(self, item: Item) -> int:
        """Rows of the model's features that are this item's."""
        return int(item.size) if isinstance(item.size, int) else 1


def set_square(tower: dict[str, Any], side: int, patch: int) -> None:
    """Set picture and patch size, as a number or as a pair, as they were given."""
    for name, value in (("image_size", side), ("patch_size", patch)):
        tower[name] = [value, value] if isinstance(tower.get(name), (list, tuple)) else value


def feature_lengths(core: Any, inputs: dict[str, Any], modality: str, video_features: str) -> list[int]:
    """How many tokens the model itself makes of each item of `inputs`: it is asked for their features."""
    method = getattr(core, "get_image_features" if modality == "image" else video_features)
    taken = inspect.signature(method).parameters
    given = {
        k: v
        for k, v in inputs.items()
        if k in taken or (k == "image_sizes" and "kwargs" in taken and modality == "image")
    }
    if modality == "video" and "pixel_values" in taken and "pixel_values_videos" not in taken:
        given["pixel_values"] = inputs["pixel_values_videos"]  # LLaVA-OneVision in transformers 5.5
    with torch.no_grad():
        found = method(**given)
    found = features_in(found)
    found = found[0] if isinstance(found, tuple) and len(found) and isinstance(found[0], (list, tuple)) else found
    return [f.reshape(-1, f.shape[-1]).shape[0] for f in found]
