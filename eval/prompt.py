"""From an image and a question to model inputs: one row each, padded into batches when needed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .tasks import Question

# per-token inputs beside input_ids, with what fills their padding
TOKEN_INPUTS = {"attention_mask": 0, "token_type_ids": 0, "mm_token_type_ids": 0}


@dataclass
class Row:
    """One question, ready for the model.

    ``ids [L]`` and the other ``tokens`` are unpadded and on the CPU, ``vision`` are the remaining processor outputs
    (pixels, grids), ``prefix`` counts the columns up to the last visual token, it included, ``visual`` the visual ones.
    ``modality`` is "image" or "video".
    """

    question: Question
    ids: Tensor
    tokens: dict[str, Tensor] = field(repr=False)
    vision: dict[str, Any] = field(repr=False)
    prefix: int
    visual: int
    modality: str = "image"


def chat_text(processor: Any, question: str, visuals: Sequence[str] = ("image",)) -> str:
    """The chat-template prompt of some images, or a video, and one question, ready for the answer."""
    content = [*({"type": kind} for kind in visuals), {"type": "text", "text": question}]
    if not getattr(processor, "chat_template", None):
        raise ValueError(f"{type(processor).__name__} has no chat template, so vtc can't build a prompt for this model")
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def prompt_template(processor: Any) -> str:
    """Hash of how prompts are written: a question's chat text with a stand-in for its words."""
    return hashlib.sha256(chat_text(processor, "\N{OBJECT REPLACEMENT CHARACTER}").encode()).hexdigest()[:16]


def visual_token_ids(config: Any) -> list[int]:
    """Placeholder token ids of images and videos."""
    names = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
    return sorted({getattr(config, n) for n in names if isinstance(getattr(config, n, None), int)})


def takes_video(processor: Any, config: Any) -> bool:
    """Whether the model has videos of its own; others are shown the frames as pictures."""
    token = getattr(config, "video_token_id", None) or getattr(config, "video_token_index", None)
    return token is not None and getattr(processor, "video_processor", None) is not None


def make_row(processor: Any, config: Any, visuals: Image.Image | Sequence[Image.Image], question: Question) -> Row:
    """Run the processor on one question.

    Parameters
    ----------
    processor, config
        The model's.
    visuals : image or sequence of images
        What the question is about, as ``TaskSet.visuals`` gives it: its images, or the frames of its video.
    question : Question
        Its ``kind`` says which of the two they are.
    """
    pictures = [visuals] if isinstance(visuals, Image.Image) else list(visuals)
    given: dict[str, Any] = {"images": pictures}
    kinds, modality = ["image"] * len(pictures), "image"
    if question.kind != "image" and takes_video(processor, config):
        # sampled already: every frame counts
        given = {"videos": [np.stack([np.asarray(p.convert("RGB")) for p in pictures])], "do_sample_frames": False}
        kinds, modality = ["video"], "video"
    text = chat_text(processor, question.question, kinds)
    inputs = dict(processor(text=[text], **given, return_tensors="pt"))
    ids = inputs.pop("input_ids")[0]
    tokens = {name: inputs.pop(name)[0] for name in TOKEN_INPUTS if name in inputs}
    places = torch.isin(ids, torch.tensor(visual_token_ids(config))).nonzero().flatten()
    if len(places) == 0:
        raise ValueError("the prompt holds no visual token: is this model's processor an image-text processor?")
    return Row(question, ids, tokens, inputs, int(places[-1]) + 1, len(places), modality)


def pad_rows(ids: Sequence[Tensor], tokens: Sequence[dict[str, Tensor]], pad: int) -> dict[str, Tensor]:
    """Left-pad rows to a batch: `input_ids`, `attention_mask` and the other per-token inputs, each `[B, L]`."""
    width = max(len(row) for row in ids)

    def left(row: Tensor, value: int) -> Tensor:
        return torch.nn.functional.pad(row, (width - len(row), 0), value=value)

    batch = {"input_ids": torch.stack([left(row, pad) for row in ids])}
    mask = [t.get("attention_mask", torch.ones_like(i)) for i, t in zip(ids, tokens, strict=True)]
    batch["attention_mask"] = torch.stack([left(row, 0) for row in mask])
    for name, fill in TOKEN_INPUTS.items():
        if name != "attention_mask" and name in tokens[0]:
            batch[name] = torch.stack([left(t[name], fill) for t in tokens])
    return batch
