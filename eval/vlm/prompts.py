"""From pictures, or a video, and a question to model inputs: one row each, padded into batches when needed."""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakSet

import torch
from jinja2 import TemplateError
from PIL import Image
from torch import Tensor

from vtc.eval.tasks.media.frames import Frames
from vtc.eval.tasks.questions import Question

# per-token inputs beside input_ids, with what fills their padding
TOKEN_INPUTS = {"attention_mask": 0, "token_type_ids": 0, "mm_token_type_ids": 0}
_warned: WeakSet[Any] = WeakSet()  # processors whose made-up times were looked at


@dataclass
class Row:
    """One question, ready for the model.

    ``ids [L]`` and the other ``tokens`` are unpadded and on the CPU, ``vision`` are the remaining processor outputs
    (pixels, grids), ``prefix`` counts the columns up to the last visual token, it included, ``visual`` the visual ones.
    ``modality`` is that of the pixels, "image" or "video". Without a picture ``prefix`` and ``visual`` are 0. ``whole``
    are the visual tokens of the pictures as they are, where this row has smaller ones, else 0.
    """

    question: Question
    ids: Tensor
    tokens: dict[str, Tensor] = field(repr=False)
    vision: dict[str, Any] = field(repr=False)
    prefix: int
    visual: int
    modality: str = "image"
    whole: int = 0

    @property
    def total(self) -> int:
        """Visual tokens of the pictures as they are."""
        return self.whole or self.visual

    @functools.cached_property
    def tail(self) -> list[int]:
        """The question's tokens behind the last visual one."""
        tokens: list[int] = self.ids[self.prefix :].tolist()
        return tokens

    @property
    def text(self) -> dict[str, Tensor]:
        """Ids and other tokens of the question as a batch of its own, `[1, L]` each."""
        return {"input_ids": self.ids[None], **{name: value[None] for name, value in self.tokens.items()}}


def one_turn(processor: Any, question: str, visuals: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages of one question behind its visuals."""
    if not getattr(processor, "chat_template", None):
        raise ValueError(f"{type(processor).__name__} has no chat template, so vtc can't build a prompt for this model")
    return [{"role": "user", "content": [*visuals, {"type": "text", "text": question}]}]


def chat_text(processor: Any, question: str, visuals: Sequence[str] = ("image",)) -> str:
    """The chat-template prompt of some images, or a video, and one question, ready for the answer."""
    messages = one_turn(processor, question, [{"type": kind} for kind in visuals])
    return processor.apply_chat_template(messages, add_generation_prompt=True)


def chat_inputs(
    processor: Any, question: str, visuals: Sequence[Mapping[str, Any]] = (), **options: Any
) -> dict[str, Any]:
    """What the processor's own chat template makes of one question, as model inputs of one sample.

    Parameters
    ----------
    visuals : sequence of mappings
        Parts of the message in front of the question: ``{"type": "image", "image": ...}``, or a video's.
    options
        For the processor's call.
    """
    return message_inputs(processor, one_turn(processor, question, visuals), **options)


def message_inputs(processor: Any, messages: Sequence[Any], **options: Any) -> dict[str, Any]:
    """What the processor's own chat template makes of a chat, or of a list of chats, which is a batch.

    Ready for the answer; `options` are for its call.
    """
    # SmolVLM's template loses its arguments where it is given none for the call
    given = {"return_tensors": "pt", **options}
    return dict(
        processor.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs=given,
        )
    )


def prompt_template(processor: Any) -> str:
    """Hash of how prompts are written: a question's chat text with a stand-in for its words."""
    text = chat_text(processor, "\N{OBJECT REPLACEMENT CHARACTER}")
    start = getattr(getattr(processor, "tokenizer", None), "bos_token", None)
    once = "\0one start" if start and text.startswith(start) else ""  # earlier answers were given behind two
    return hashlib.sha256((text + once).encode()).hexdigest()[:16]


def media_form(questions: Iterable[Question]) -> dict[str, str]:
    """For the key of stored answers: how several pictures and videos are fed; empty where a question has one picture.

    Earlier answers to the others, which were fed otherwise, are not taken for today's.
    """
    plain = all(q.kind == "image" and len(q.media) == 1 for q in questions)
    return {} if plain else {"media": "one sample, frames with times"}


def visual_token_ids(config: Any) -> list[int]:
    """Placeholder token ids of images and videos."""
    names = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
    return sorted({getattr(config, n) for n in names if isinstance(getattr(config, n, None), int)})


def takes_video(processor: Any) -> bool:
    """Whether the model's chat template has a place for videos; others are shown the frames as pictures."""
    token = getattr(processor, "video_token", None)
    if token is None or getattr(processor, "video_processor", None) is None:
        return False
    try:
        return token in chat_text(processor, "", ["video"])
    except TemplateError:  # templates may refuse what they don't know
        return False


def video_inputs(processor: Any, frames: Frames, question: str) -> dict[str, Any]:
    """Model inputs of a question about a video, whose frames are sampled already."""
    video = {"type": "video", "video": frames.array}
    return chat_inputs(processor, question, [video], video_metadata=[frames.metadata], do_sample_frames=False)


def _warn_of_times(processor: Any, frames: Frames, question: str, inputs: Mapping[str, Any]) -> None:
    """Say once that times are made up, if the model's inputs depend on them (which ones they are does not matter)."""
    if frames.known or processor in _warned:
        return
    _warned.add(processor)
    other = video_inputs(processor, replace(frames, fps=2 * frames.fps), question)
    same = (torch.equal(v, other[k]) if isinstance(v, Tensor) else v == other[k] for k, v in inputs.items())
    if not all(same):
        warnings.warn(
            f"nothing says how many frames per second a video has, and this model is told when each is shown: "
            f"{frames.fps:g} per second are assumed (say fps in the task's definition)",
            stacklevel=3,
        )


def make_row(
    processor: Any, config: Any, visuals: Image.Image | Sequence[Image.Image], question: Question, **options: Any
) -> Row:
    """Run the processor's chat template on one question: its pictures, in order, and its text are one sample.

    Parameters
    ----------
    processor, config
        The model's.
    visuals : image or sequence of images
        What the question is about, as ``TaskSet.visuals`` gives it: its images (there may be none), or the ``Frames``
        of its video, which know when they are shown.
    question : Question
        Its ``kind`` says which of the two they are.
    options
        For the processor's call, of pictures.

    Raises
    ------
    ValueError
        Without a chat template, for frames of different sizes, and if the prompt has no place for the pictures.
    """
    pictures = [visuals] if isinstance(visuals, Image.Image) else visuals
    if question.kind != "image" and pictures and takes_video(processor):
        frames = pictures if isinstance(pictures, Frames) else Frames.of(pictures)
        inputs = video_inputs(processor, frames, question.question)
        _warn_of_times(processor, frames, question.question, inputs)
    else:
        inputs = chat_inputs(processor, question.question, [{"type": "image", "image": p} for p in pictures], **options)
    # some processors give a video's frames as pictures, and so their models take them
    modality = "video" if "pixel_values_videos" in inputs else "image"
    ids = inputs.pop("input_ids")[0]
    tokens = {name: inputs.pop(name)[0] for name in TOKEN_INPUTS if name in inputs}
    places = torch.isin(ids, torch.tensor(visual_token_ids(config))).nonzero().flatten()
    if pictures and len(places) == 0:
        raise ValueError("the prompt holds no visual token: is this model's processor an image-text processor?")
    prefix = int(places[-1]) + 1 if len(places) else 0
    return Row(question, ids, tokens, inputs, prefix, len(places), modality)


def pad_id(processor: Any) -> int:
    """The token that fills rows up: the tokenizer's own, else its end of text."""
    tokenizer = getattr(processor, "tokenizer", processor)
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (tokenizer.eos_token_id or 0)


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
