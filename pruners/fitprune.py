"""FitPrune: after each decoder layer go tokens that neither picture nor text look at, as many as a fit says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

from torch import Tensor

from vtc.pruners.primitives.budget_over_stops import between_recipes
from vtc.pruners.primitives.precision import exact, wide
from vtc.pruners.primitives.score_pruner import ScorePruner

from .base import Stop
from .model_facts import ModelFacts
from .registry import register_pruner
from .signals import DecoderAttention, Signal
from .untrusted_json import CommandFile
from .visual_tokens import VisualTokens

FORMAT = "vtc fitprune recipes, version 1"
Recipes = tuple[tuple[float, ...], ...]
BY_PICTURE = DecoderAttention(queries="visual", heads="max")
BY_TEXT = DecoderAttention(queries="text", heads="max")
TOKENS, DEPTH = 576, 32  # of LLaVA-1.5-7B
# tokens that go after each layer from 0 on, of the authors' release (Apache-2.0): 10 to 90% fewer FLOPs, and 55
GONE = (
    (0, 0, 1, 2, 1, 0, 1, 4, 5, 5, 11, 4, 2, 2, 0, 0, 1, 1, 2, 4, 2, 10, 1, 1, 1, 2, 1, 1, 0, 1),
    (0, 0, 3, 3, 1, 1, 4, 16, 14, 15, 24, 4, 2, 3, 2, 0, 6, 0, 5, 13, 4, 19, 2, 1, 1, 1, 1, 1, 2, 1),
    (0, 0, 7, 6, 4, 5, 16, 40, 24, 21, 24, 4, 2, 3, 4, 0, 16, 0, 11, 26, 6, 32, 3, 1, 0, 1, 2, 2, 4),
    (0, 1, 21, 13, 14, 11, 41, 53, 29, 15, 14, 5, 1, 4, 5, 1, 26, 1, 13, 28, 6, 27, 2, 1, 0, 0, 1, 1, 2),
    (3, 7, 49, 24, 29, 17, 59, 41, 26, 8, 10, 6, 2, 5, 7, 2, 30, 3, 13, 27, 5, 23, 2, 1, 0, 0, 1, 1, 2),
    (6, 17, 69, 31, 34, 19, 59, 30, 23, 6, 8, 7, 2, 5, 8, 2, 29, 4, 12, 25, 4, 19, 2, 1, 0, 0, 1, 0, 1),
    (14, 33, 89, 36, 36, 20, 55, 21, 18, 4, 7, 5, 2, 5, 7, 4, 26, 5, 11, 24, 4, 18, 2, 1, 0, 0, 1, 0, 1),
    (48, 79, 118, 41, 33, 17, 36, 9, 9, 2, 3, 2, 1, 3, 4, 8, 18, 7, 8, 20, 4, 13, 2, 1, 0, 0, 1, 0, 1),
    (128, 127, 118, 35, 26, 8, 13, 3, 2, 1, 0, 0, 0, 2, 1, 8, 7, 8, 5, 11, 2, 6, 1, 1, 0, 0, 0, 1),
    (262, 153, 80, 19, 13, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 1, 2, 0, 1, 0, 0, 0, 0, 0, 1),
)
LLAVA = tuple(tuple((TOKENS - sum(gone[:layer])) / TOKENS for layer in range(1, DEPTH)) for gone in GONE)
DEFAULT = 127 / TOKENS  # what the list for 60% leaves, which the authors' command asks for


@register_pruner("fitprune")
@dataclass(kw_only=True)
class FitPrune(ScorePruner):
    """FitPrune (Ye et al., AAAI 2025, arXiv 2409.10197): a recipe of how many tokens go after each layer.

    Parameters
    ----------
    keep : int or float, optional
        Tokens kept per span after the LAST stop, exactly; by default 127 of 576. It chooses the recipe: between two
        that leave more and less, what each layer keeps is interpolated, and below the shortest all its shares are
        raised to one power. That rule is OURS. The paper asks for FLOPs: half as many, and 40, 30, 20 and 10%, leave
        173, 127, 88, 62 and 37 of LLaVA-1.5-7B's 576 tokens, on average over its layers 302, 245, 188, 131 and 73. The
        average is no `keep` here, since layer 0 sees all: a decoder of 8 layers could not go below an eighth.
    schedule : str, optional
        The recipes: a file of ``vtc fitprune --model ... --output schedule.json``, measured on a model of the same
        depth. Without it the authors' ten lists for LLaVA-1.5-7B, their layers scaled to the depth.
    ratios : tuple of float, optional
        One recipe of your own in their place: what is left of the ORIGINAL tokens after each layer from 0 on, the last
        one for all layers behind as well.
    tokens : int
        How many tokens a span has, to choose a recipe where `keep` is a count.

    Notes
    -----
    Stage: decoder, up to a stop before each layer but 0. With A `[H, L, L]` the attention of the layer before::

        self_j = sum_{visual i} max_h A[h, i, j]      cross_j = sum_{text t behind the span} max_h A[h, t, j]

    and those with the smallest ``self_j * cross_j`` go. O(H L^2 d) beside each layer that something goes after, a whole
    map of attention once more, of which some rows of one group of heads are in memory at a time.

    A recipe comes of a bound alpha: after each layer those tokens go that are both among the least looked at by
    the picture and among the least looked at by text, as many from either end as leave ``1 - alpha`` of what the
    picture, and the text, spend on visual tokens in the same layer of the whole model; averaged over examples.
    The authors bisect alpha for a budget of FLOPs; ``vtc fitprune`` does it for 15 bounds.

    The released code drops between a layer's attention and its MLP. Here tokens go behind the MLP, which changes no
    other token and no cache, and costs the MLP of what goes. All text behind the picture asks, as there, but
    a span without any is ranked by the picture alone; in a prompt of several pictures the visual tokens of all of them
    ask. The paper's own words were not read beyond what its repository says.
    """

    schedule: str | None = None
    ratios: tuple[float, ...] | None = None
    tokens: int = TOKENS

    paper: ClassVar[str] = "arXiv 2409.10197"
    stage: ClassVar[str] = "decoder"
    signals: ClassVar[tuple[Signal, ...]] = (BY_PICTURE, BY_TEXT)
    uses_text: ClassVar[bool] = True
    files: ClassVar[Mapping[str, str]] = {"schedule": "fitprune.json"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ratios is not None:
            self.ratios = tuple(self.ratios)
            if self.schedule is not None:
                raise ValueError("fitprune: schedule and ratios both say what goes after which layer; give one of them")
            if not falls(self.ratios):
                raise ValueError(f"fitprune.ratios={self.ratios} must fall, in (0, 1], to less than 1")
        if self.tokens < 1:
            raise ValueError(f"fitprune.tokens={self.tokens} is out of range; it must be an int >= 1")

    def check_files(self) -> None:
        """The recipes."""
        if self.schedule is not None:
            read_recipes(self.schedule)

    def check_model(self, model: ModelFacts) -> None:
        """Refuse recipes of a decoder of another depth."""
        if self.schedule is not None and (of := len(read_recipes(self.schedule)[0]) + 1) != model.layers:
            raise ValueError(
                f"fitprune.schedule={self.schedule!r} is of a decoder of {of} layers, and this one has {model.layers}: "
                "measure its own with 'vtc fitprune --model ...', or leave schedule out"
            )
        if self.ratios is not None and len(self.ratios) >= model.layers:
            raise ValueError(
                f"fitprune.ratios are {len(self.ratios)}, and after the last of {model.layers} layers nothing goes: "
                f"give {model.layers - 1} at most"
            )

    def recipes(self, depth: int) -> Recipes:
        """What is left after each layer but the last of a decoder of `depth` layers, by recipe."""
        if self.ratios is not None:
            return ((*self.ratios, *self.ratios[-1:] * depth)[: depth - 1],)
        found = LLAVA if self.schedule is None else read_recipes(self.schedule)
        of = len(found[0]) + 1
        ends = [min(of - 1, int(stop * of / depth + 0.5)) for stop in range(1, depth)]
        return tuple(tuple((1.0, *recipe)[end] for end in ends) for recipe in found)

    def stops(self, depth: int) -> tuple[Stop, ...]:
        """Before each layer after whose predecessor something goes, with what is left."""
        recipes = self.recipes(max(2, depth))
        keep = self.keep
        if keep is None:
            keep = DEFAULT if self.ratios is None else self.ratios[-1]
        share = keep if isinstance(keep, float) else min(1.0, keep / self.tokens)
        shares = between_recipes(recipes, share)
        everything: int | float = 1.0
        kept: list[int | float] = [*shares]
        if not isinstance(keep, float):
            everything, kept = self.tokens, [max(keep, int(s * self.tokens + 0.5)) for s in shares]
        fall = [i for i, (before, now) in enumerate(pairwise((everything, *kept))) if now < before]
        return tuple(Stop(self.stage, i + 1, kept[i]) for i in fall or [len(kept) - 1])

    def score(self, tokens: VisualTokens) -> Tensor:
        """What picture and text spend on each token, one times the other, `[B, N]`."""
        picture, text = spent(tokens)
        return picture * text


def spent(tokens: VisualTokens) -> tuple[Tensor, Tensor]:
    """The sums over visual tokens and over text behind a span of what each spends on its tokens, `[B, N]` each.

    The second is 1 where there is no text.
    """
    picture = wide(tokens.read(BY_PICTURE))[:, 0, 0]
    rows = wide(tokens.read(BY_TEXT))[:, 0]
    behind = tokens.text_valid(after=True).to(rows.device)
    text = exact(rows.masked_fill(~behind[..., None], 0)).sum(1)  # so that equal tokens have equal sums
    return picture, text.masked_fill(~behind.any(1, keepdim=True), 1)


def falls(shares: tuple[float, ...]) -> bool:
    """Whether these are shares of tokens that are left after one layer after the other, in the end not all."""
    return bool(shares) and all(0 < b <= a for a, b in pairwise((1.0, *shares))) and shares[-1] < 1


def _recipes(found: dict[str, Any], _: str) -> Recipes:
    return tuple(tuple(float(share) for share in one["kept"]) for one in found["recipes"])


def _alike(recipes: Recipes) -> bool:
    return len({*map(len, recipes)}) == 1 and all(map(falls, recipes))


read_recipes = CommandFile(
    "fitprune.schedule", "vtc fitprune", FORMAT, _recipes, "recipes of one length that fall, in (0, 1]", _alike
).read
