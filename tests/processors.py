"""Real processors of transformers for every family, small enough for the tiny models of ``zoo`` and offline.

Their tokenizer has a token for each letter, and the zoo's ids for the marks of pictures and videos.
"""

from __future__ import annotations

from collections.abc import Callable
from string import ascii_letters, digits
from typing import Any

import transformers as tf
from tokenizers import Tokenizer, decoders, models, processors
from transformers.models.smolvlm import processing_smolvlm
from zoo.models import PINPOINTS
from zoo.tokens import BOS, BREAK, CLOSE, EOS, IMAGE, OPEN, PAD, VIDEO

LETTERS = ascii_letters + digits + " .,:?!<>_-/\n"
SQUARE = {"height": 28, "width": 28}
QWEN_SIZES: dict[str, Any] = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
QWEN_PIXELS = {"size": {"shortest_edge": 8 * 8, "longest_edge": 40 * 8 * 8}}
CLIP_SIZES: dict[str, Any] = {"size": {"shortest_edge": 28}, "crop_size": SQUARE}
LLAVA: dict[str, Any] = {
    "patch_size": 7, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1,
}  # fmt: skip
IDEFICS: dict[str, Any] = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}


def template(start: str = "", image: str = "<image>", video: str = "") -> str:
    """A chat template that begins with `start`, and writes these for a picture and a video."""
    parts = f"{{% if c.type == 'image' %}}{image}"
    parts += f"{{% elif c.type == 'video' %}}{video}" if video else ""
    turn = f"{{% for c in m.content %}}{parts}{{% else %}}{{{{ c.text }}}}{{% endif %}}{{% endfor %}}"
    end = "{% if add_generation_prompt %}assistant:{% endif %}"
    return f"{start}{{% for m in messages %}}{{{{ m.role }}}}: {turn}\n{{% endfor %}}{end}"


def letters(
    image: str, video: str = "<video>", opened: str = "<open>", closed: str = "<close>", line: str = "<line>",
    start: bool = True,
) -> Any:  # fmt: skip
    """A tokenizer of single letters; with `start` it puts a BOS in front, as LLaMA's does."""
    special = {"<pad>": PAD, "<s>": BOS, "</s>": EOS, image: IMAGE, video: VIDEO, opened: OPEN, closed: CLOSE,
               line: BREAK, "<global-img>": 95, "<end_of_utterance>": 96}  # fmt: skip
    words = Tokenizer(models.BPE({**{c: 3 + i for i, c in enumerate(LETTERS)}, **special}, [], unk_token="?"))
    words.decoder = decoders.Fuse()
    if start:
        words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=words, additional_special_tokens=list(special)[3:], pad_token="<pad>", eos_token="</s>",
        bos_token="<s>" if start else None,
    )  # fmt: skip


def qwen(cls: type, video: Any) -> Any:
    """A Qwen processor; `video` is its video processor."""
    names = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    image, clip = (f"{names[2]}{name}{names[3]}" for name in names[:2])
    return cls(
        tf.Qwen2VLImageProcessor(**QWEN_SIZES, **QWEN_PIXELS), letters(*names, start=False), video,
        chat_template=template(image=image, video=clip),
    )  # fmt: skip


def qwen_video() -> Any:
    return tf.Qwen2VLVideoProcessor(**QWEN_SIZES, **QWEN_PIXELS)


def qwen3_video() -> Any:
    return tf.Qwen3VLVideoProcessor(
        **QWEN_SIZES, size={"shortest_edge": 2 * 8 * 8, "longest_edge": 320 * 8 * 8}
    )  # fmt: skip


def llava() -> Any:
    return tf.LlavaProcessor(
        tf.CLIPImageProcessor(**CLIP_SIZES), letters("<image>"), **LLAVA, chat_template=template(image="<image>\n")
    )


def mistral(merge: int) -> Any:
    """Pixtral's processor, of LLaVA's class of models (`merge` 1) and of Mistral3's (2)."""
    sizes = {"size": {"longest_edge": 56}, "patch_size": {"height": 7, "width": 7}}
    words = letters("[IMG]", closed="[IMG_END]", line="[IMG_BREAK]")
    return tf.PixtralProcessor(
        tf.PixtralImageProcessor(**sizes), words, patch_size=7, spatial_merge_size=merge,
        chat_template=template("{{ bos_token }}", "[IMG]"),
    )  # fmt: skip


def llava_next() -> Any:
    pictures = tf.LlavaNextImageProcessor(**CLIP_SIZES, image_grid_pinpoints=PINPOINTS)
    return tf.LlavaNextProcessor(pictures, letters("<image>"), **LLAVA, chat_template=template(image="<image>\n"))


def llava_onevision() -> Any:
    pictures = tf.LlavaOnevisionImageProcessor(size=SQUARE, image_grid_pinpoints=PINPOINTS)
    return tf.LlavaOnevisionProcessor(
        pictures, letters("<image>", start=False), tf.LlavaOnevisionVideoProcessor(size=SQUARE), num_image_tokens=16,
        vision_feature_select_strategy="full", chat_template=template(video="<video>"),
    )  # fmt: skip


def internvl() -> Any:
    words = letters("<IMG_CONTEXT>", opened="<img>", closed="</img>", start=False)
    names = {"start_image": "<img>", "end_image": "</img>", "context_image": "<IMG_CONTEXT>", "video": "<video>"}
    for name, token in names.items():
        setattr(words, f"{name}_token", token)
        setattr(words, f"{name}_token_id", words.convert_tokens_to_ids(token))
    pictures = tf.GotOcr2ImageProcessor(size=SQUARE, min_patches=1, max_patches=4)
    return tf.InternVLProcessor(
        pictures, words, tf.InternVLVideoProcessor(size=SQUARE), image_seq_length=4,
        chat_template=template(image="<IMG_CONTEXT>\n", video="<video>\n"),
    )  # fmt: skip


def idefics3() -> Any:
    pictures, words = tf.Idefics3ImageProcessor(**IDEFICS), letters("<image>", opened="<fake_token_around_image>")
    return tf.Idefics3Processor(pictures, words, image_seq_len=16, chat_template=template("{{ bos_token }}"))


def smolvlm() -> Any:
    if processing_smolvlm.num2words is None:  # not installed: the number of frames stands there in digits then
        processing_smolvlm.num2words = str
    videos = tf.SmolVLMVideoProcessor(
        size={"longest_edge": 32}, max_image_size={"longest_edge": 32},
        video_sampling={"max_frames": 8, "fps": 1, "video_size": {"longest_edge": 32}},
    )  # fmt: skip
    pictures = tf.SmolVLMImageProcessor(**IDEFICS)
    words = letters("<image>", opened="<fake_token_around_image>", start=False)
    return tf.SmolVLMProcessor(pictures, words, videos, image_seq_len=16, chat_template=template())


def gemma3() -> Any:
    words = letters("<image_soft_token>", opened="<start_of_image>", closed="<end_of_image>")
    for name, token in (("image", "<image_soft_token>"), ("boi", "<start_of_image>"), ("eoi", "<end_of_image>")):
        setattr(words, f"{name}_token", token)
        setattr(words, f"{name}_token_id", words.convert_tokens_to_ids(token))
    pictures = tf.Gemma3ImageProcessor(size={"height": 56, "width": 56})
    return tf.Gemma3Processor(
        pictures, words, image_seq_length=16, chat_template=template("{{ bos_token }}", "<start_of_image>")
    )


# by name in the zoo
PROCESSORS: dict[str, Callable[[], Any]] = {
    "llava": llava,
    "pixtral": lambda: mistral(1),
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
    "qwen2_vl": lambda: qwen(tf.Qwen2VLProcessor, qwen_video()),
    "qwen2_5_vl": lambda: qwen(tf.Qwen2_5_VLProcessor, qwen_video()),
    "qwen3_vl": lambda: qwen(tf.Qwen3VLProcessor, qwen3_video()),
    "internvl": internvl,
    "idefics3": idefics3,
    "smolvlm": smolvlm,
    "gemma3": gemma3,
    "mistral3": lambda: mistral(2),
}
WITH_VIDEO = ("llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "smolvlm")
WITH_TIMES = ("qwen2_5_vl", "qwen3_vl", "smolvlm")  # whose inputs depend on when frames are shown
