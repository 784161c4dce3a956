"""The stock processor of a model type, of the sizes of a small model and with a tokenizer of single letters."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from string import ascii_letters, digits
from typing import Any

import numpy as np
import transformers as tf
from PIL import Image
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING_NAMES

from vtc.eval.check.tiny_model.token_ids import BOS, EOS, PAD

LETTERS = ascii_letters + digits + " .,:?!<>_-/\n"
SPACE = "▁"  # what a tokenizer of Llama's puts in front
FREE = range(97, 116)  # ids for marks that no configuration names, in front of the codes of Emu3 and Apertus
BETWEEN = "Z"  # stands between two pictures, and nowhere else


@dataclass
class Stock:
    """A processor at work.

    Attributes
    ----------
    processor : ProcessorMixin
    mark : str
        What stands for a picture in a prompt.
    call : dict
        Further arguments of each call.
    drop : tuple of str
        Outputs that are for training.
    flat : bool
        Whether a batch's pictures are given in one list.
    """

    processor: Any
    mark: str
    call: dict[str, Any] = field(default_factory=dict)
    drop: tuple[str, ...] = ()
    flat: bool = False

    def __call__(self, *rows: Sequence[Image.Image]) -> dict[str, Any]:
        """Inputs of prompts of these pictures with a letter between them."""
        texts = [f"Q{BETWEEN.join([self.mark] * len(row))}?" for row in rows]
        images: Any = [list(row) for row in rows]
        if self.flat or len(rows) == 1:
            images = [picture for row in images for picture in row] or None
        out = self.processor(text=texts, images=images, return_tensors="pt", padding=True, **self.call)
        return {name: value for name, value in out.items() if name not in self.drop}

    def counts(self, ids: Sequence[int], image: int) -> list[int]:
        """How many placeholders each picture of such a prompt has."""
        between = self.processor.tokenizer.convert_tokens_to_ids(BETWEEN)
        found = [0]
        for token in ids:
            found[-1] += token == image
            found += [0] if token == between else []
        return found


def letters(special: dict[str, int], attributes: dict[str, str], spaced: bool = False) -> Any:
    """A tokenizer of single letters, with the ids of special tokens, some of which it has as attributes.

    With `spaced`, a space stands in front of each text, also where that begins with a special token.
    """
    fixed = {"<pad>": PAD, "<s>": BOS, "</s>": EOS, SPACE: 3 + len(LETTERS)}
    vocabulary = {**fixed, **{c: 3 + i for i, c in enumerate(LETTERS)}, **special}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    words.normalizer = normalizers.Prepend(SPACE) if spaced else None
    whole = "|".join(map(re.escape, special))  # words like any other where `spaced`, as in Fuyu's own vocabulary
    words.pre_tokenizer = pre_tokenizers.Split(Regex(rf"{whole}|[\s\S]" if spaced else r"[\s\S]"), "isolated")
    words.decoder = decoders.Fuse()
    tokenizer = tf.PreTrainedTokenizerFast(
        tokenizer_object=words,
        additional_special_tokens=[] if spaced else list(special),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
    )
    for name, token in attributes.items():
        setattr(tokenizer, f"{name}_token", token)
        setattr(tokenizer, f"{name}_token_id", tokenizer.convert_tokens_to_ids(token))
    return tokenizer


def tokenizer_of(config: Any, names: dict[str, str], attributes: dict[str, str], spaced: bool) -> Any:
    """`letters`, where `names` says which field of the configuration has the id of a token; "" is a free id."""
    free = iter(FREE)
    special = {token: _id(config, name) if name else next(free) for token, name in names.items()}
    special |= {token: next(free) for token in attributes.values() if token not in special}
    return letters(special, attributes, spaced)


def _id(config: Any, name: str) -> int:
    name, _, place = name.partition(".")
    value = getattr(config, name)
    return int(value[int(place)] if place else value)


def part(kind: str, table: Any, **settings: Any) -> Any:
    """The class that transformers' own table names for a model type, with these settings."""
    names = table[kind]
    return getattr(tf, names.get("torchvision") or names["pil"])(**settings)


def make(
    config: Any,
    names: dict[str, str],
    image: dict[str, Any],
    attributes: dict[str, str] | None = None,
    mark: str | None = None,
    call: dict[str, Any] | None = None,
    drop: tuple[str, ...] = (),
    flat: bool = False,
    cls: str | None = None,
    like: str | None = None,
    spaced: bool = False,
    parts: dict[str, Callable[[], Any]] | None = None,
    **more: Any,
) -> Stock:
    """The processor that transformers names for `config`.

    Parameters
    ----------
    names, attributes, spaced
        As for `tokenizer_of`.
    image
        Settings of the image processor; a video processor has its defaults.
    mark, call, drop, flat
        Of the `Stock`; the mark of a picture is the processor's own if not given.
    cls
        Name of the processor's class, where no table has it.
    like
        A model type whose image and video processor this one has, where no table has them.
    parts
        Makes parts that no table has: of sound, or an image processor with an attribute of its own.
    more
        Arguments of the processor.
    """
    made = getattr(tf, cls or PROCESSOR_MAPPING_NAMES[config.model_type])
    kind = like or config.model_type
    given: dict[str, Any] = {}
    for name in made.get_attributes():
        if name == "tokenizer":
            given[name] = tokenizer_of(config, names, attributes or {}, spaced)
        elif parts and name in parts:
            given[name] = parts[name]()
        elif name == "image_processor":
            given[name] = part(kind, IMAGE_PROCESSOR_MAPPING_NAMES, **image)
        else:
            given[name] = part(kind, VIDEO_PROCESSOR_MAPPING_NAMES)
    processor = made(**given, **more)
    return Stock(processor, processor.image_token if mark is None else mark, call or {}, drop, flat)


@lru_cache(maxsize=16)
def picture(width: int, height: int) -> Image.Image:
    """Noise."""
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)
