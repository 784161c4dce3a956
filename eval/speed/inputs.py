"""The prompt that is timed: a picture of the size asked for and a question, as many times as the batch has samples."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from vtc.bundled_files import bundled_data
from vtc.eval.tasks.questions import Question, TaskSet
from vtc.eval.tasks.reading.load import load_tasks
from vtc.eval.vlm.encode_once import core_of, encode
from vtc.eval.vlm.prompts import TOKEN_INPUTS, Row, make_row, message_inputs, one_turn, visual_token_ids
from vtc.models.layout.model_parts import locate
from vtc.models.tower.tower_hooks import item_lengths

from .options import SpeedOptions

WORDS = 32  # text tokens of a prompt without a tokenizer
MARKS = (
    ("vision_start_token_id", "boi_token_id", "boi_token_index"),
    ("vision_end_token_id", "eoi_token_id", "eoi_token_index"),
)


def picture_and_question(options: SpeedOptions) -> tuple[Image.Image, Question]:
    """The first question about one picture, its picture of the size asked for.

    Raises
    ------
    ValueError
        If the set has none.
    """
    tasks: TaskSet = load_tasks(options.data or bundled_data())
    question = next((q for q in tasks.questions if q.kind == "image" and len(q.media) == 1), None)
    if question is None:
        raise ValueError(f"--data {options.data}: no question is about one picture")
    return tasks.image(question.media[0]).convert("RGB").resize(options.image), question


def row_of_processor(processor: Any, config: Any, picture: Image.Image, question: Question, batch: int) -> Row:
    """The prompt as the model's processor writes it; ``vision`` holds the pixels of the whole batch."""
    row = make_row(processor, config, picture, question)
    if batch == 1:
        return row
    chat = one_turn(processor, question.question, [{"type": "image", "image": picture}])
    inputs = message_inputs(processor, [chat] * batch)
    return replace(
        row, vision={name: value for name, value in inputs.items() if name not in ("input_ids", *TOKEN_INPUTS)}
    )


def row_without_processor(model: nn.Module, config: Any, picture: Image.Image, question: Question, batch: int) -> Row:
    """The prompt of a configuration alone: pixels by the image processor that transformers names for it.

    How many placeholders a picture has is asked of the model.

    Raises
    ------
    NotImplementedError
        If that can't be made, or the model does not take it.
    """
    try:
        core = core_of(model)
        pixels = dict(image_processor(config, picture)(images=[picture] * batch, return_tensors="pt"))
        known = (
            inspect.signature(type(model).forward).parameters | inspect.signature(core.get_image_features).parameters
        )
        vision = {name: value for name, value in pixels.items() if name in known}
        row = Row(question, torch.zeros(0, dtype=torch.long), {}, vision, 0, 0)
        lengths = item_lengths(locate(model), encode(model, row))
        ids = _ids(config, sum(lengths) // batch)
        places = torch.isin(ids, torch.tensor(visual_token_ids(config))).nonzero().flatten()
        tokens = {"attention_mask": torch.ones_like(ids)}
        for name in ("mm_token_type_ids", "token_type_ids"):
            if name in known:
                tokens[name] = torch.isin(ids, ids[places]).long()
        return replace(row, ids=ids, tokens=tokens, prefix=int(places[-1]) + 1, visual=len(places))
    except Exception as error:
        raise NotImplementedError(
            f"vtc can't make a prompt for a {config.model_type!r} model from its configuration alone "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]}); put the processor's files "
            "(processor_config.json, tokenizer.json, chat_template.jinja) beside its config.json"
        ) from error


def _ids(config: Any, count: int) -> Tensor:
    """Words, the placeholders between their marks, words."""
    special = set(visual_token_ids(config))
    start, end = ([v for name in names if isinstance(v := getattr(config, name, None), int)][:1] for names in MARKS)
    special |= {*start, *end}
    words = [i for i in range(3, 3 + WORDS + len(special)) if i not in special][:WORDS]
    half = WORDS // 2
    image = next(v for n in ("image_token_id", "image_token_index") if isinstance(v := getattr(config, n, None), int))
    return torch.tensor([*words[:half], *start, *[image] * count, *end, *words[half:]])


def image_processor(config: Any, picture: Image.Image) -> Any:
    """The image processor that transformers names for a model type, of the sizes of its configuration.

    A model whose pictures keep their size gets this one as it is, whatever the default limit.
    """
    import transformers
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

    names: Any = IMAGE_PROCESSOR_MAPPING_NAMES[config.model_type]
    given = names if isinstance(names, dict) else dict(zip(("pil", "torchvision"), names, strict=True))
    made: Any = getattr(transformers, given.get("torchvision") or given["pil"])
    plain, tower = made(), config.vision_config
    side, size = getattr(tower, "image_size", None), _named(plain.size)
    settings: dict[str, Any] = {}
    if isinstance(side, int) and _named(getattr(plain, "crop_size", None)):
        settings = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    elif isinstance(side, int) and {"height", "width"} <= set(size):
        settings = {"size": {"height": side, "width": side}}
    elif {"shortest_edge", "longest_edge"} <= set(size):
        settings = {"size": {**size, "longest_edge": max(size["longest_edge"], picture.width * picture.height)}}
    for name, called in (("patch_size", "patch_size"), ("merge_size", "spatial_merge_size")):
        value = getattr(tower, called, None)
        if isinstance(value, int) and isinstance(getattr(plain, name, None), int):
            settings[name] = value
    if getattr(config, "image_grid_pinpoints", None):
        settings["image_grid_pinpoints"] = config.image_grid_pinpoints
    return made(**settings)


def _named(size: Any) -> dict[str, int]:
    """What a size says, given as a mapping."""
    return {} if size is None else {name: value for name, value in dict(size).items() if value}
