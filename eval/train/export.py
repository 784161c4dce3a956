"""From a trained run to the folders of the package."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPImageProcessor,
    CLIPModel,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from vtc.eval.train.scenes.palette import IMAGE_SIZE, PATCH_SIZE
from vtc.eval.train.scenes.vocabulary import build_tokenizer
from vtc.eval.train.vision.tower import IMAGE_MEAN, IMAGE_STD

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'USER: ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image> ' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}{{ ' ' }}"
    "{% else %}{{ 'ASSISTANT: ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{{ message['content'][0]['text'] }}{% endif %}{{ '</s>' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def export(model: LlavaForConditionalGeneration, clip: CLIPModel, folder: Path) -> None:
    """Write the model with its processor, and the CLIP model that its tower comes from.

    Parameters
    ----------
    model : LlavaForConditionalGeneration
        The trained model; it is converted to bfloat16.
    clip : CLIPModel
        The result of stage 1; it is converted to bfloat16.
    folder : Path
        Receives ``model/`` and ``clip/``.
    """
    model.to(torch.bfloat16).save_pretrained(folder / "model")
    use_old_names(folder / "model" / "model.safetensors")
    build_processor().save_pretrained(folder / "model")
    clip.to(torch.bfloat16).save_pretrained(folder / "clip")
    fast_tokenizer().save_pretrained(folder / "clip")
    image_processor().save_pretrained(folder / "clip")


def use_old_names(path: Path) -> None:
    """Rename the tower's weights as published LLaVA checkpoints do; all versions of transformers read those names."""
    new, old = "vision_tower.", "vision_tower.vision_model."
    weights = load_file(path)
    renamed = {n if n.startswith(old) else n.replace(new, old, 1): weights[n] for n in weights}
    save_file(renamed, path, metadata={"format": "pt"})


def build_processor() -> LlavaProcessor:
    """Return the processor that the model is loaded with."""
    return LlavaProcessor(
        image_processor=image_processor(),
        tokenizer=fast_tokenizer(),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def fast_tokenizer() -> PreTrainedTokenizerFast:
    """Return the vocabulary as a transformers tokenizer."""
    return PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer(),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        additional_special_tokens=["<image>", "USER:", "ASSISTANT:"],
        padding_side="left",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def image_processor() -> CLIPImageProcessor:
    """Return the image processor: 336 pixels, channels scaled to [-2, 2]."""
    return CLIPImageProcessor(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=[IMAGE_MEAN] * 3,
        image_std=[IMAGE_STD] * 3,
    )
