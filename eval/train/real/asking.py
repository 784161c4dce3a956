"""How ``bundled-real`` is asked: SmolLM2's chat format, the image in front of the question."""

from __future__ import annotations

import functools
from typing import Any

from vtc.eval.train.language.pack_questions import Wording

_BEFORE, _BETWEEN, _END = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"


def wording_of(tokenizer: Any, patches: int) -> Wording:
    """What the chat template writes, in parts.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        SmolLM2's.
    patches : int
        Visual tokens of a picture.
    """

    @functools.lru_cache(maxsize=8192)
    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False).input_ids)

    return Wording(
        prefix=ids(_BEFORE),
        patches=patches,
        prompt=lambda text: ids(text + _BETWEEN),
        answer=lambda text: ids(text + _END),
        pad=tokenizer.pad_token_id,
    )
