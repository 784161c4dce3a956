"""ToDRE: diverse tokens before the language model, and none at all where the text no longer looks at them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.pruners.primitives.best_per_part import within_budgets
from vtc.pruners.primitives.greedy import farthest_point, max_sum
from vtc.pruners.primitives.precision import wide
from vtc.pruners.primitives.ranking import top_k

from .base import Pruner, Stop
from .random import _seed
from .registry import register_pruner
from .signals import DecoderAttention, EncoderAttention, Signal
from .visual_tokens import VisualTokens

PIVOT = EncoderAttention(layer=-1, queries="cls_or_none")


@register_pruner("todre_diversity")
@dataclass(kw_only=True)
class ToDREDiversity(Pruner):
    """Stage 1 of ToDRE (Li et al. 2025, arXiv 2505.18757): greedy diversity from a pivot on, before the language model.

    Parameters
    ----------
    keep : int or float
        Tokens kept per span, exactly. The paper uses 0.25 and 0.1.
    objective : {"maxsum", "kcenter"}
        What is made large: the paper's second version sums distances, its first names the k-center problem (the least
        distance). They are different objectives.
    pivot : {"auto", "random"}
        The first token: the one that the class token of the tower's last layer attends to most, and on towers without a
        class token a random one, as in the paper; or always a random one. In its ablation it makes little difference.
    pivot_seed : int
        Seed of a random pivot, which depends on it, on the number of tokens and on the picture's place in its sample.

    Notes
    -----
    Stage: input. With projected features x `[N, D]` and C what is chosen::

        maxsum:   argmin_i sum_{j in C} cos(x_i, x_j)
        kcenter:  argmax_i min_{j in C} (1 - cos(x_i, x_j))

    O(k N D), no N x N matrix needed. The pivot of a cropped image is looked for in the whole image, not in its crops.
    No code was published: heads are averaged, ties go to the lowest index and kept tokens stay in order by our choice;
    the paper's 720 and 288 of 2,880 agree with this package's rounding. Limits: max-sum keeps taking what lies farthest
    from the bulk and may take near-duplicates there.
    """

    objective: str = "maxsum"
    pivot: str = "auto"
    pivot_seed: int = 0

    paper: ClassVar[str] = "arXiv 2505.18757"
    ragged: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in (("objective", ("maxsum", "kcenter")), ("pivot", ("auto", "random"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{self.name}.{name}={getattr(self, name)!r}; allowed are {', '.join(allowed)}")
        if self.pivot == "random":
            self.order_dependent = True  # type: ignore[misc]  # of this instance only

    @property
    def signals(self) -> tuple[Signal, ...]:  # type: ignore[override]
        """The class token's attention in the last encoder layer, unless the pivot is random."""
        return (PIVOT,) if self.pivot == "auto" else ()

    def select(self, tokens: VisualTokens, k: int) -> Tensor:
        """The pivot, then what is least like the chosen, `[B, k]` in the order chosen."""
        start = self._random(tokens)
        if self.pivot == "auto":
            attention = wide(tokens.read(PIVOT)).mean(1)
            # all zero: there is no class token
            start = torch.where((attention > 0).any(1, keepdim=True), attention, start)
        # a cropped image begins with its whole image
        firsts = [layout.grids[0] for layout in tokens.layouts]
        ends = [g.tokens if g.kind == "base" else t.tokens for g, t in zip(firsts, tokens.layouts, strict=True)]
        crops = tokens.ids >= torch.tensor(ends, device=tokens.ids.device)[:, None]
        start = start.masked_fill(crops, -1)
        if self.objective == "kcenter":
            return farthest_point(tokens.features, k, tokens.valid, start=start)
        return max_sum(tokens.features, k, start, tokens.valid)

    def _random(self, tokens: VisualTokens) -> Tensor:
        score = torch.zeros(tokens.ids.shape)
        for row, (count, order) in enumerate(zip(tokens.counts, tokens.order, strict=True)):
            generator = torch.Generator().manual_seed(_seed(self.pivot_seed, count, order))
            score[row, :count] = torch.rand(count, generator=generator)
        return score.to(tokens.ids.device)


@register_pruner("todre_removal")
@dataclass(kw_only=True)
class ToDRERemoval(Pruner):
    """Stage 2 of ToDRE (Li et al. 2025, arXiv 2505.18757): all visual tokens go when the text hardly looks at them.

    Parameters
    ----------
    keep : int or float, optional
        What is left of a span where its sample's tokens go: those that the text looks at most. Default (and the paper):
        none. ``keep=1.0`` removes nothing.
    layer : int, optional
        Prune before this decoder layer. Default (and the paper): seven eighths of the depth, 28 of 32.
    tau : float
        Threshold of the test, in [0, 1]. The paper's default is 0.1.

    Notes
    -----
    Stage: decoder, adaptive: all of a sample's tokens or `keep` of them stay, and the host waits for the answer. With A
    `[H, T, N]` the attention of layer - 1 from the text behind the sample's last picture to its visual tokens::

        alpha = sum_{t, v} mean_h A[h, t, v] / T;   remove where alpha < tau

    The paper also asks that visual tokens hardly look at the text, which causal attention makes zero for text behind
    them. O(H d T L): attention rows of one layer. Whether the paper counts layers from 0 or 1 it does not say; here it
    is the attention of the 28th layer, and the 29th has no visual tokens any more. Earlier layers keep theirs in the
    cache, positions stay. A sample without text behind its last picture keeps its tokens, and so does a span that is
    down to one token already. No code was published.
    """

    layer: int | None = None
    tau: float = 0.1

    stage: ClassVar[str] = "decoder"
    paper: ClassVar[str] = "arXiv 2505.18757"
    signals: ClassVar[tuple[Signal, ...]] = (DecoderAttention(queries="text"),)
    adaptive_count: ClassVar[bool] = True
    uses_text: ClassVar[bool] = True
    ragged: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_tau(self)

    def stops(self, depth: int) -> tuple[Stop, ...]:
        """At the layer; what is kept there is decided by the test."""
        layer = max(1, 7 * depth // 8) if self.layer is None else self.layer
        return (Stop("decoder", layer, 1 if self.keep is None else self.keep),)

    def select(self, tokens: VisualTokens, k: int) -> Tensor:
        """All columns of the spans that stay, `keep` or none of the others', -1 elsewhere: `[B, N]`."""
        looks = wide(tokens.read(DecoderAttention(queries="text"))).mean(1)  # [B, T, N]
        return _remove(tokens, looks, self.tau, [0 if self.keep is None else b for b in tokens.budgets])


def _check_tau(pruner: ToDRE | ToDRERemoval) -> None:
    if not 0 <= pruner.tau <= 1:
        raise ValueError(f"{pruner.name}.tau={pruner.tau!r} is out of range; it must be a number in [0, 1]")


def _remove(tokens: VisualTokens, looks: Tensor, tau: float, left: list[int]) -> Tensor:
    """Apply the test to attention `looks` `[B, T, N]`; `left` tokens stay of a row that fails it."""
    behind = tokens.text_valid(after=True)
    samples = looks.new_zeros(tokens.text_valid().shape)
    # the question is the text behind ALL spans of the sample
    before = samples.index_add(0, tokens.sample, (~behind).to(samples.dtype))
    question = (before == 0) & tokens.text_valid()
    looks = looks.masked_fill(~question[tokens.sample][..., None], 0)  # rows of padding may hold anything
    count = question.sum(1)
    alpha = samples.index_add(0, tokens.sample, looks.sum(-1)).sum(1) / count.clamp(min=1)
    stays = (~(alpha < tau) | (count == 0))[tokens.sample]  # attention that is not finite removes nothing
    width = tokens.ids.shape[1]
    order = top_k(looks.sum(1), width, tokens.valid)
    limit = torch.tensor([list(tokens.counts), left], device=order.device)
    kept = torch.arange(width, device=order.device) < torch.where(stays, limit[0], limit[1])[:, None]
    return order.masked_fill(~kept, -1)


@register_pruner("todre")
@dataclass(kw_only=True)
class ToDRE(ToDREDiversity):
    """ToDRE (Li et al. 2025, arXiv 2505.18757): diverse tokens, and none at all once the text hardly looks at them.

    Parameters
    ----------
    keep : int or float
        Tokens kept per span before the language model, exactly. ``keep=1.0`` removes nothing later, either.
    objective, pivot, pivot_seed
        As for ``todre_diversity``.
    layer, tau
        As for ``todre_removal``.

    Notes
    -----
    Both stages, input and decoder: see ``todre_diversity`` and ``todre_removal``, which work alone, too. What the
    second stage leaves is not counted in `keep`; the report tells.
    """

    layer: int | None = None
    tau: float = 0.1

    adaptive_count: ClassVar[bool] = True
    uses_text: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_tau(self)

    @property
    def signals(self) -> tuple[Signal, ...]:  # type: ignore[override]
        """Those of both stages."""
        return (*super().signals, *ToDRERemoval.signals)

    def stops(self, depth: int) -> tuple[Stop, ...]:
        """Before the language model and deep inside it."""
        first = Stop("input", None, self.keep)
        return (first,) if isinstance(self.keep, float) and self.keep == 1 else (first, *self._second().stops(depth))

    def signals_at(self, stop: Stop) -> tuple[Signal, ...]:
        """Each stage its own."""
        return super().signals if stop.stage == "input" else ToDRERemoval.signals

    def select(self, tokens: VisualTokens, k: int) -> Tensor:
        """What the stage that `tokens` are at selects, -1 in unused columns."""
        if tokens.stage != "input":
            return self._second().select(tokens, k)
        return within_budgets(super().select(tokens, k), tokens)

    def _second(self) -> ToDRERemoval:
        return ToDRERemoval(layer=self.layer, tau=self.tau)
