"""What stock processors refuse, and in which words: odd sizes, several pictures of a prompt, prompts of text."""

from __future__ import annotations

from typing import NamedTuple

from .of_grids import GRIDS

THIN, FLAT = (1, 1000), (1000, 1)
SHAPES: dict[str, tuple[tuple[int, int], ...]] = {
    "1 x 1000": (THIN,),
    "1000 x 1": (FLAT,),
    "5 x 1000": ((5, 1000),),
    "20 x 20": ((20, 20),),
    "4000 x 300": ((4000, 300),),
    "300 x 4000": ((300, 4000),),
    "two": ((20, 20), (4000, 300)),
    "text": (),
}


class Refused(NamedTuple):
    """An error of the processor."""

    error: type[Exception]
    words: str


ASPECT = Refused(ValueError, "absolute aspect ratio must be smaller than 200")
# these take any; the others with grids refuse a picture more than 200 times as long as wide
ANY_ASPECT = ("muse_glimmer", "muse_spark", "kimi_k25")

REFUSED: dict[str, dict[str, Refused]] = {
    kind: {"1 x 1000": ASPECT, "1000 x 1": ASPECT} for kind in (*GRIDS, "emu3", "apertus1p5") if kind not in ANY_ASPECT
} | {
    # of an array without a word on its axes, one row of pixels is read as a channel
    "video_llava": {"1000 x 1": Refused(ValueError, "mean must have 1 elements if it is an iterable, got 3")},
    # it cuts a picture in halves, of which one has no pixels
    "idefics2": {
        "1 x 1000": Refused(RuntimeError, "is invalid for input of size 0"),
        "1000 x 1": Refused(ZeroDivisionError, "division by zero"),
    },
    "fuyu": {"two": Refused(ValueError, r"tokens in the prompts should be the same as the number of images passed")},
    "shieldgemma2": {
        "two": Refused(ValueError, "can process at most one image per sample, but got 2 images"),
        "text": Refused(ValueError, "needs images to classify"),
    },
    "got_ocr2": {"text": Refused(ValueError, "You must provide valid `images` for GotOcr2Processor")},
    "pp_chart2table": {"text": Refused(ValueError, "Both `images` and `text` must be provided")},
    "paligemma": {"text": Refused(ValueError, "`images` are expected as arguments to a `PaliGemmaProcessor`")},
}

# what the untouched model can't be given although its processor makes it
MODEL_FAILS: dict[str, dict[str, Refused]] = {
    # a picture of a single token loses an axis in get_image_features
    "mistral3": {"20 x 20": Refused(RuntimeError, "split_with_sizes expects split_sizes to sum exactly")},
}
# what vtc refuses when wrapping, so that only processor and model can be compared
NOT_WRAPPED = {"qwen4_exp": "in its cache"}
