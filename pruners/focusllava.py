"""FocusLLaVA: a router pools each window of the picture coarsely or finely; in the decoder the question chooses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from vtc.pruners.primitives.best_per_part import budgets_of, columns_of, part_sums, per_token
from vtc.pruners.primitives.budget_over_stops import scaled_layer
from vtc.pruners.primitives.merging import channel_blocks, group_sums, take
from vtc.pruners.primitives.precision import exact, exact_dtype, settled, wide
from vtc.pruners.primitives.ranking import top_k
from vtc.pruners.trained.compressor import TrainedCompressor
from vtc.pruners.trained.nested_cells import SCALES, NestedCells, cells_of, spread

from .base import Merged, Stop
from .registry import register_pruner
from .signals import DecoderAttention, DecoderHidden, Signal
from .visual_tokens import VisualTokens

LAYER = 8, 32  # of the text-guided sampler, and the depth that this is meant for
HIDDEN, RANK = 64, 32
SMALL = 1e-6
BLOCK = 1024  # tokens at a time


class FocusSamplers(nn.Module):
    """What both samplers learn; the last matrix of each begins at zero, so that a new one adds nothing.

    Parameters
    ----------
    width : int
        Of the language model.
    hidden, rank : int
        Channels inside the router, and of the product of question and picture.
    """

    def __init__(self, width: int, hidden: int, rank: int):
        super().__init__()
        self.window_norm, self.window = nn.LayerNorm(width), nn.Linear(width, hidden)
        self.detail = nn.Linear(SCALES, hidden, bias=False)
        self.scales = nn.Linear(hidden, SCALES)
        self.visual_norm, self.question_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.visual, self.question = nn.Linear(width, rank, bias=False), nn.Linear(width, rank, bias=False)
        for weight in (*self.scales.parameters(), *self.question.parameters()):
            nn.init.zeros_(weight)

    def forward(self, x: Tensor, y: Tensor, sampler: str) -> Tensor:
        """Of ``"vision"`` what each scale is worth to a window, of ``"text"`` what each token is worth to a question.

        Parameters
        ----------
        x : Tensor
            `[B, W, width]`, means of windows; `[B, N, width]`, states of visual tokens.
        y : Tensor
            `[B, W, 3]`, what a window loses at each scale; `[B, width]`, the state of the last text token.

        Returns
        -------
        Tensor
            `[B, W, 3]`; `[B, N]`.
        """
        found: Tensor
        if sampler == "vision":
            mixed = self.window(self.window_norm(x)) + self.detail(y.clamp(min=SMALL).log())
            found = self.scales(gelu(mixed))
        else:
            asked = self.question(self.question_norm(y))[..., None]
            found = (self.visual(self.visual_norm(x)) @ asked)[..., 0] * asked.shape[-2] ** -0.5
        return found


class Windows(NamedTuple):
    """Of the windows of a batch, at each scale: what it is worth, `[B, W, 3]` float64, and its tokens, `[B, W, 3]`."""

    value: Tensor
    size: Tensor

    def prices(self) -> Tensor:
        """`[2, B, W]`: what a token more is worth to a window, in its first step and in its second, which is no dearer.

        Where the second step alone would be, both are one.
        """
        value, size = self.value.detach(), self.size
        (one, two), (n, m) = value.diff(dim=-1).unbind(-1), size.diff(dim=-1).unbind(-1)
        both = (one + two) / (n + m).clamp(min=1)
        first, second = one / n.clamp(min=1), two / m.clamp(min=1)
        as_one = (second > first) | (n == 0)
        return torch.stack([torch.where(as_one, both, first), torch.where(as_one, both, second)])


@register_pruner("focusllava")
@dataclass(kw_only=True)
class FocusLLaVA(TrainedCompressor):
    """FocusLLaVA (arXiv 2411.14228): coarse to fine, a vision-guided and then a text-guided sampler, both trained.

    Parameters
    ----------
    keep : int or float
        Tokens kept per span in the end, exactly.
    weights : str, optional
        See ``TrainedCompressor``. With ``"untrained"`` windows are pooled by what they would lose, and the text chooses
        by attention alone.
    ratio : float
        How many times `keep` the vision-guided sampler leaves. Ours.
    layer : int, optional
        Decoder layer before which the text-guided sampler chooses. By default a quarter of the depth. Ours.
    vision, text : bool
        False leaves a sampler out; the other one keeps `keep` by itself.

    Notes
    -----
    Of the paper only the abstract could be read, and of that this sentence is what is built: "a vision-guided sampler
    for compressing redundant regions with low information density, and a text-guided sampler for selecting visual
    tokens that are strongly correlated with the user instructions". ALL details beyond it are ours, and no figure of
    the paper was compared.

    Input stage; merges. The grid is cut into windows of 4 x 4 tokens (twice and more that where there are fewer tokens
    than windows), each of which becomes 1, 4 or 16 means of its cells. With ``e_s`` what scale s loses, the squared
    distances of a window's tokens `[16, D]` to the means of their cells in units of the picture's variance, and ``m``
    the window's mean `[D]`::

        value_s = -e_s + W_2 GELU(W_1 LN(m) + W_0 log e)_s           of one window, s = 1, 4, 16 tokens
        chosen: the scales of the largest sum of values that has k tokens

    which is one price of a token for all windows of a span: steps to a finer scale are taken by value per token. The
    window whose step does not fit any more takes it in part (some of its cells), so that the count is met exactly.
    Tokens stand where the token in the middle of their cell stood. O(N D), and O(W D) for the router.

    Decoder stage. With h_i `[D]` the states that enter the layer, t that of the last text token, A the attention of the
    layer before `[H]` heads, the best of ``log mean_h A[h, last, i] + (W_v LN(h_i)) . (W_q LN(t)) / sqrt(r)`` stay.

    Trained by straight-through: what comes out is the hard choice, and what the networks learn from is a mixture. For
    each token of the input stage, of its cells at the three scales, by the softmax of ``value_s - price * tokens_s``;
    for each token that the question keeps, of itself and those left out, with c halfway between the two sets::

        p_i h_i + (1 - p_i) sum_left softmax(s)_j h_j,   p_i = sigmoid(s_i - c)

    so that a score rises where the token does more in its place than another would. (SoftSort's mixture of all tokens
    was tried, and made the choice worse; a gate on a state teaches little, because the norm in front of a layer takes
    its length off.) Both networks begin as nothing: what they add to is a choice already.
    """

    ratio: float = 2.0
    layer: int | None = None
    vision: bool = True
    text: bool = True

    paper: ClassVar[str] = "arXiv 2411.14228"
    merges: ClassVar[bool] = True
    order_dependent: ClassVar[bool] = True
    ragged: ClassVar[bool] = True
    training_counts: ClassVar[tuple[tuple[int, float], ...]] = ((32, 0.25), (64, 0.5), (128, 0.25))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.ratio >= 1:
            raise ValueError(f"focusllava.ratio={self.ratio} is out of range: it must be 1 or more")
        if not self.vision and not self.text:
            raise ValueError("focusllava: vision=False and text=False leave nothing that chooses")

    @property
    def uses_text(self) -> bool:  # type: ignore[override]
        """Unless that sampler is left out."""
        return self.text

    @property
    def signals(self) -> tuple[Signal, ...]:  # type: ignore[override]
        """States of the text, and attention of the last prompt token."""
        return (DecoderHidden(), DecoderAttention()) if self.text else ()

    def signals_at(self, stop: Stop) -> tuple[Signal, ...]:
        """Nothing but the tokens themselves at the input stage."""
        return self.signals if stop.stage == "decoder" else ()

    def stops(self, depth: int) -> tuple[Stop, ...]:
        """The samplers that there are."""
        layer = scaled_layer(*LAYER, depth) if self.layer is None else self.layer
        last, first = Stop("decoder", layer, self.keep), self.keep
        if not self.text:
            return (Stop("input", None, self.keep),)
        if first is not None:
            scaled = first * self.ratio
            first = min(1.0, scaled) if isinstance(first, float) else int(scaled + 0.5)
        return (Stop("input", None, first), last) if self.vision else (last,)

    def sizes_for(self, tokens: VisualTokens) -> dict[str, Any]:
        """The width of the language model, and those inside."""
        return {"width": tokens.features.shape[-1], "hidden": HIDDEN, "rank": RANK}

    @classmethod
    def build(cls, sizes: Mapping[str, Any]) -> nn.Module:
        """``FocusSamplers``."""
        return FocusSamplers(sizes["width"], sizes["hidden"], sizes["rank"])

    def select(self, tokens: VisualTokens, k: int) -> Tensor | Merged:
        """Pooled cells at the input stage, in the decoder the best by the question."""
        return self._by_question(tokens, k) if tokens.stage == "decoder" else self._by_picture(tokens, k)

    def _by_picture(self, tokens: VisualTokens, k: int) -> Merged:
        cells = cells_of(tokens)
        windows = self._windows(tokens, cells)
        kept, owner, price = spread(tokens, cells, per_token(windows.prices(), cells.cell[0]))
        index = columns_of(kept, k)
        slot = (kept.cumsum(1) - 1).gather(1, owner)
        sums, sizes = group_sums(tokens.features, slot, k, tokens.valid)
        found = sums / sizes.clamp(min=1)[..., None]
        if windows.value.requires_grad:
            found = found + self._soft(tokens, cells, windows, price, index)
        return Merged(index, found.to(tokens.features.dtype))

    def _windows(self, tokens: VisualTokens, cells: NestedCells) -> Windows:
        """What each scale is worth to each window; equal windows are worth exactly the same."""
        (window, *_), valid = cells.cell, tokens.valid
        x, count = tokens.features.detach(), cells.number[0]
        loses = part_sums(self._loses(x, cells, valid), window, count).movedim(0, -1)
        sums, n = group_sums(x, window, count, valid)
        learned = self.run(tokens, sums / n.clamp(min=1)[..., None], loses.to(sums), sampler="vision")
        column = torch.arange(valid.shape[1], device=valid.device)
        middles = [part_sums(((a == column) & valid).long(), window, count) for a in cells.anchor]
        return Windows(exact(learned) - settled(loses.contiguous()), torch.stack(middles, -1))

    @staticmethod
    def _loses(x: Tensor, cells: NestedCells, valid: Tensor) -> Tensor:
        """Squared distance of each token to the mean of its cell at each scale, `[3, B, N]`, 1 on average to all's."""
        groups = [*zip(cells.cell, cells.number, strict=True), (torch.where(valid, 0, 1), 1)]
        found = torch.zeros(len(groups), *valid.shape, dtype=exact_dtype(x.device), device=x.device)
        length = torch.zeros_like(found[0])
        for c in channel_blocks(x.shape[-1], found.dtype, x.dtype):
            some = exact(x[..., c]).nan_to_num(0, 0, 0)
            length += some.square().sum(-1)
            for into, (group, count) in zip(found, groups, strict=True):
                sums, n = group_sums(some, group, count, valid, dtype=found.dtype)
                mean = sums / n.clamp(min=1)[..., None].to(sums)
                into += take(mean, group.clamp(max=count - 1)).sub_(some).square_().sum(-1)
        found = settled(found, length.amax(1, keepdim=True)).masked_fill_(~valid, 0)
        variance = found[SCALES].sum(1, keepdim=True) / valid.sum(1, keepdim=True)
        return found[:SCALES] / variance.clamp(min=torch.finfo(torch.float32).tiny)

    def _soft(self, tokens: VisualTokens, cells: NestedCells, windows: Windows, price: Tensor, index: Tensor) -> Tensor:
        """Zeros `[B, k, D]` whose gradient is that of the mixture of scales that the kept tokens `index` would be."""
        share = (windows.value - price[:, None, None] * windows.size).float().softmax(-1)
        soft: Tensor | float = 0.0
        for scale, (cell, count) in enumerate(zip(cells.cell, cells.number, strict=True)):
            sums, n = group_sums(tokens.features.detach(), cell, count, tokens.valid)
            mean = take(sums / n.clamp(min=1)[..., None], cell.gather(1, index).clamp(max=count - 1))
            soft = soft + per_token(share[..., scale], cells.cell[0]).gather(1, index)[..., None] * mean
        assert isinstance(soft, Tensor)
        return soft - soft.detach()

    def _by_question(self, tokens: VisualTokens, k: int) -> Tensor | Merged:
        hidden, attention = self.signals
        said, there = tokens.text(hidden), tokens.text_valid()
        last = (there * torch.arange(1, there.shape[1] + 1, device=there.device)).argmax(1)
        asked = take(said, last[:, None].to(said.device))[tokens.sample, 0]
        seen = wide(tokens.read(attention)).detach().mean(1)[:, 0]
        blocks = tokens.features.split(BLOCK, 1)  # half precision is widened
        learned = torch.cat([self.run(tokens, x, asked.to(x), sampler="text") for x in blocks], 1)
        score = seen.clamp(min=torch.finfo(torch.float32).tiny).log() + learned.to(seen.device)
        index = top_k(score.detach(), k, tokens.valid)
        if not score.requires_grad:
            return index
        soft = self._exchanged(tokens, score, index)
        found = wide(take(tokens.features, index)) + (soft - soft.detach())
        return Merged(index, found.to(tokens.features.dtype))

    @staticmethod
    def _exchanged(tokens: VisualTokens, score: Tensor, index: Tensor) -> Tensor:
        """The kept tokens `[B, k, D]`, each the less itself the less sure it is, and else what is left out."""
        first = torch.arange(index.shape[1], device=index.device) < budgets_of(tokens).to(index.device)
        kept = torch.zeros_like(tokens.valid).scatter(1, index, first)
        left, x, lowest = tokens.valid & ~kept, wide(tokens.features).detach(), torch.finfo(score.dtype).min / 4
        above = score.detach().masked_fill(~kept, -lowest).amin(1, keepdim=True)
        below = score.detach().masked_fill(~left, lowest).amax(1, keepdim=True)
        others = score.masked_fill(~left, lowest).softmax(-1)[:, None] @ x
        sure = (score.gather(1, index) - (above + below) / 2).sigmoid()[..., None]
        return sure * take(x, index) + (1 - sure) * others
