"""Looks at the projected tokens of a picture where the language model takes them in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from vtc.eval.sweep.answer import answer_plain
from vtc.eval.tasks.questions import Question
from vtc.eval.vlm.loading import Loaded
from vtc.eval.vlm.prompts import Row, make_row
from vtc.pruners.base import Pruner
from vtc.pruners.visual_tokens import VisualTokens

QUESTION = "What is in the image?"


@dataclass(kw_only=True)
class _Looker(Pruner):
    """Shows the tokens to `see`; keeps one of each span, so that what follows costs little."""

    see: Callable[[VisualTokens], None] = field(repr=False, default=lambda tokens: None)

    name: ClassVar[str] = "looker"
    ragged: ClassVar[bool] = True

    def select(self, tokens: VisualTokens, k: int) -> Tensor:
        self.see(tokens)
        return torch.zeros(len(tokens.counts), k, dtype=torch.int64, device=tokens.ids.device)


@torch.no_grad()
def look(loaded: Loaded, image: Image.Image, see: Callable[[VisualTokens], None]) -> tuple[Row, Any]:
    """Run the model on `image` and show its projected tokens, newline tokens left out, to `see`.

    Parameters
    ----------
    loaded : Loaded
        A model that is not wrapped, and its processor.
    image : Image
        The picture.
    see : callable
        Is given the ``VisualTokens`` of all spans (crops may be spans of their own), once; they hold no more after it.

    Returns
    -------
    row, report
        The model's inputs, and the report of the run.

    Raises
    ------
    ValueError
        If the picture gives no span of at least two tokens.
    """
    from vtc.api import compressed

    row = make_row(loaded.processor, loaded.model.config, image, Question("lens", "", "image", QUESTION, ""))
    calls: list[bool] = []

    def once(tokens: VisualTokens) -> None:
        if not calls:
            see(tokens)
        calls.append(True)

    model: Any = loaded.model
    with compressed(model, _Looker(keep=1, see=once)):
        answer_plain(model, loaded.processor, [row], None, 1)
        report = model.vtc.report
    if not calls:
        raise ValueError("the picture has a single visual token: there is nothing to look at")
    return row, report


def features_of(loaded: Loaded, image: Image.Image) -> Tensor:
    """Projected tokens of all spans of a picture, `[n, D]` in the model's dtype, on the CPU."""
    found: list[Tensor] = []
    look(loaded, image, lambda tokens: found.append(tokens.features[tokens.valid.to(tokens.features.device)].cpu()))
    return found[0]


def table_of(loaded: Loaded) -> Tensor:
    """The input embedding table `[V, D]`."""
    from vtc.models.layout.embedding_table import embeddings
    from vtc.models.layout.model_parts import locate

    return embeddings(locate(loaded.model))
