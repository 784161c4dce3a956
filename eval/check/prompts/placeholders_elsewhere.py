"""Pictures of families with arguments, features or caches of their own: Muse, ERNIE-4.5-VL, Gemma 3n and 4, ..."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vtc.eval.check.tiny_model.token_ids import Tokens

from .placeholders import set_square
from .placeholders_by_size import Patches


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
