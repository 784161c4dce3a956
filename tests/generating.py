"""Ways to generate, and the positions that belong to them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from zoo import SPECIAL, tiny

BEAMS = {"num_beams": 3, "do_sample": False, "max_new_tokens": 6, "suppress_tokens": SPECIAL}


def beams(model: nn.Module, inputs: dict[str, Any], **kwargs: Any) -> Any:
    return model.generate(**inputs, **BEAMS, return_dict_in_generate=True, output_scores=True, **kwargs)


def extend(mask: Tensor, ids: Tensor, value: int) -> Tensor:
    """`mask` at the width of `ids`, the new columns filled with `value`."""
    return torch.cat([mask, mask.new_full((len(mask), ids.shape[1] - mask.shape[1]), value)], 1)


def dialogue_of(inputs: dict[str, Any], answer: Tensor, turn: list[int]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A prompt with its answer (whole sequences `[B, L + n]`) and a next turn behind it; and the same as text alone."""
    ids = torch.cat([answer, torch.tensor([turn]).expand(len(answer), -1)], 1)
    dialogue = {**inputs, "input_ids": ids, "attention_mask": extend(inputs["attention_mask"], ids, 1)}
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in inputs:
            dialogue[name] = extend(inputs[name], ids, 0)
    text = {k: v for k, v in dialogue.items() if "pixel" not in k and k not in ("image_sizes", "batch_num_images")}
    return dialogue, text


def positions_of(family: str, inputs: dict[str, Any]) -> Tensor:
    """Rope positions of a prompt, from the untouched model's own rule."""
    mask = inputs["attention_mask"]
    if not family.startswith("qwen"):
        return (mask.cumsum(-1) - 1).clamp(min=0)
    return tiny(family).model.get_rope_index(**{k: v for k, v in inputs.items() if "pixel" not in k})[0]
