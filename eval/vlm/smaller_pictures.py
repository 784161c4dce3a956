"""``downsample``, the control that every method has to beat: the same pictures, smaller, before the model sees them.

The model's own processor says how many tokens pictures of a size have. Where it makes every picture as large, it is
told a smaller size, and the tower interpolates its table of positions. The model stays the stock one either way.
"""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image
from torch import nn

from vtc.eval.tasks.media.frames import Frames
from vtc.eval.tasks.questions import Question
from vtc.models.layout.model_parts import locate
from vtc.pruners.base import resolve_keep

from .prompts import Row, make_row
from .pruning_settings import DOWNSAMPLE, Cell
from .size_of_few_tokens import share_with

ANY_SIZE = "interpolate_pos_encoding"  # how towers are told that pictures have another size than their table
Visuals = Image.Image | Sequence[Image.Image]


@dataclass(frozen=True)
class _Size:
    """Pictures at a share of their sides, or, where the processor is `told`, its own sizes at that share."""

    share: float
    told: bool


class SmallRows:
    """Rows of questions about smaller pictures; each size is looked for once.

    Parameters
    ----------
    processor, model
        What the rows are for.
    """

    def __init__(self, processor: Any, model: nn.Module):
        self.processor, self.model = processor, model
        self._known: dict[Hashable, _Size] = {}

    def shown(self, cell: Cell, whole: Row, visuals: Visuals) -> Row:
        """The row of a question as `cell` shows it: `whole`, or its smaller pictures."""
        return self.make(whole, visuals, cell.keep) if cell.small and cell.keep is not None else whole

    def make(self, whole: Row, visuals: Visuals, keep: int | float) -> Row:
        """The row of a question whose pictures have at most `keep` of their tokens.

        As large as that allows; where the processor makes no picture so small, its smallest. All pictures of a prompt
        are made smaller by the same factor.

        Parameters
        ----------
        whole : Row
            The question with the pictures as they are.
        visuals : image or sequence of images
            Those pictures, or the frames of a video.
        keep : int or float
            Tokens of each picture (of a video, where the model takes videos), or their share.

        Raises
        ------
        ValueError
            Where no size has fewer tokens than the pictures as they are.
        """
        pictures = [visuals] if isinstance(visuals, Image.Image) else list(visuals)
        if not pictures:
            return whole
        items = 1 if whole.modality == "video" else len(pictures)
        target = items * resolve_keep(keep, whole.visual // items)
        if target >= whole.visual:
            return whole
        key = (tuple(p.size for p in pictures), whole.question.kind, whole.visual, target)
        if key not in self._known:
            self._known[key] = self._look(whole, visuals, target)
        return replace(self._row(whole.question, visuals, self._known[key]), whole=whole.visual)

    def _look(self, whole: Row, visuals: Visuals, target: int) -> _Size:
        for told in (False, True) if takes_any_size(self.model) else (False,):

            def tokens_at(share: float, told: bool = told) -> int | None:
                try:
                    return self._row(whole.question, visuals, _Size(share, told)).visual
                except (ValueError, TypeError, ZeroDivisionError):  # so small a picture is refused
                    return None

            share = share_with(whole.visual, target, tokens_at)
            if share is not None:
                return _Size(share, told)
        raise ValueError(
            f"{type(self.processor).__name__} makes {whole.visual} tokens of smaller pictures, too: there is nothing "
            f"that {DOWNSAMPLE} could compare with on this model"
        )

    def _row(self, question: Question, visuals: Visuals, size: _Size) -> Row:
        if size.told:
            return make_row(self.processor, self.model.config, visuals, question, **self._sizes(size.share))
        return make_row(self.processor, self.model.config, resized(visuals, size.share), question)

    def _sizes(self, share: float) -> dict[str, Any]:
        """The picture processor's own sizes at a share, in whole patches."""
        config: Any = self.model.config
        patch, found = config.vision_config.patch_size, {}
        for name in ("size", "crop_size"):
            own = dict(getattr(self.processor.image_processor, name, None) or {})
            sides = {k: max(1, round(v * share / patch)) * patch for k, v in own.items() if isinstance(v, int)}
            if sides:
                found[name] = sides
        if not found:
            raise ValueError(f"{type(self.processor.image_processor).__name__} has no size")
        return found


def resized(visuals: Visuals, share: float) -> Visuals:
    """Pictures, or the frames of a video, at a `share` of their sides (at least one pixel)."""
    if isinstance(visuals, Image.Image):
        size = (max(1, round(visuals.width * share)), max(1, round(visuals.height * share)))
        return visuals.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    smaller: Any = tuple(resized(picture, share) for picture in visuals)
    return replace(visuals, pictures=smaller) if isinstance(visuals, Frames) else smaller


def takes_any_size(model: nn.Module) -> bool:
    """Whether a model's tower takes pictures of other sizes than that of its table of positions."""
    return any(hasattr(module, ANY_SIZE) for module in locate(model).tower.modules())


@contextmanager
def any_size(model: nn.Module) -> Iterator[nn.Module]:
    """Context in which a model's tower is told to take pictures of any size, if it has to be told."""
    tower: Any = locate(model).tower
    if ANY_SIZE not in inspect.signature(type(tower).forward).parameters:
        yield model
        return

    def tell(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, ANY_SIZE: True}

    hook = tower.register_forward_pre_hook(tell, with_kwargs=True)
    try:
        yield model
    finally:
        hook.remove()
