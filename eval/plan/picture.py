"""How many tokens a model's own processor makes of a blank picture, and smaller pictures with as many."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from vtc.eval.vlm.prompts import TOKEN_INPUTS, chat_inputs, visual_token_ids
from vtc.eval.vlm.size_of_few_tokens import share_with

QUESTION = "What is shown in this picture?"


@dataclass(frozen=True)
class Picture:
    """One picture in a prompt.

    Attributes
    ----------
    size : tuple of int
        Width and height.
    tokens, text : int
        Its visual tokens, and all others of the prompt.
    inputs : dict
        What the processor gives beside the tokens: pixels, grids.
    """

    size: tuple[int, int]
    tokens: int
    text: int
    inputs: dict[str, Any]


def blank(size: tuple[int, int]) -> Image.Image:
    """A grey picture."""
    return Image.new("RGB", size, (127, 127, 127))


def inputs_of(processor: Any, picture: Image.Image) -> dict[str, Any]:
    """Model inputs of a picture and a question; of a processor without a chat template, of its mark of a picture."""
    if getattr(processor, "chat_template", None):
        return chat_inputs(processor, QUESTION, [{"type": "image", "image": picture}])
    mark = getattr(processor, "image_token", None)
    if mark is None:
        raise ValueError(f"{type(processor).__name__} has neither a chat template nor an image token")
    return dict(processor(text=f"{mark}{QUESTION}", images=picture, return_tensors="pt"))


def read_picture(inputs: dict[str, Any], config: Any, size: tuple[int, int], text: int | None = None) -> Picture:
    """The tokens in a processor's outputs for one prompt with one picture; `text` replaces the prompt's other tokens.

    Raises
    ------
    ValueError
        If there is no visual token.
    """
    rest = dict(inputs)
    ids = rest.pop("input_ids")[0]
    visual = int(torch.isin(ids, torch.tensor(visual_token_ids(config))).sum())
    if not visual:
        raise ValueError("the prompt holds no visual token: is this model's processor an image-text processor?")
    pixels = {name: value for name, value in rest.items() if name not in TOKEN_INPUTS}
    return Picture(size, visual, len(ids) - visual if text is None else text, pixels)


def smaller(picture: Picture, tokens: int, again: Callable[[tuple[int, int]], Picture]) -> Picture | None:
    """The largest smaller version of a picture that has no more than `tokens` tokens.

    Parameters
    ----------
    picture : Picture
        The whole one.
    tokens : int
        To get along with.
    again : callable
        Makes the picture of another size.

    Returns
    -------
    Picture or None
        None where no size has so few, as with processors that make every picture as large.
    """
    width, height = picture.size
    found: dict[float, Picture] = {}

    def tokens_at(share: float) -> int | None:
        try:
            found[share] = again((max(1, round(width * share)), max(1, round(height * share))))
        except (ValueError, ZeroDivisionError):  # processors refuse some sizes
            return None
        return found[share].tokens

    share = share_with(picture.tokens, tokens, tokens_at)
    best = None if share is None else found[share]
    return best if best is not None and best.tokens <= tokens else None
