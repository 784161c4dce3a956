"""QueCC: each window of the picture becomes one token, by cross attention that knows the question."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear

from vtc.pruners.trained.compressor import UNTRAINED, TrainedCompressor
from vtc.pruners.trained.windows import present_grids, tokens_of, windows

from .base import Merged, Stop
from .layout import Layout
from .registry import register_pruner
from .signals import EncoderFeatures, PreProjector, QuestionState, Signal
from .visual_tokens import VisualTokens

LEVELS = (11 / 24, 15 / 24, 21 / 24, 22 / 24)  # layers of CLIP ViT-L/14, as shares of a tower's depth
HEADS = 8
EPSILON = 1e-6
BLOCK = 64  # windows at a time


class Projection(nn.Module):
    """``LN(W2 GELU(W1 x))``, `[..., source]` to `[..., width]`."""

    def __init__(self, source: int, width: int):
        super().__init__()
        self.first, self.second = nn.Linear(source, width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        found: Tensor = self.norm(self.second(gelu(self.first(x))))
        return found


class QueryCompressor(nn.Module):
    """Windows of `kernel x kernel` patches to one vector each; see ``QueCC`` for the formula.

    Parameters
    ----------
    width, text, levels : int
        Channels of a patch, of the question's state, and of a patch in all tower layers side by side.
    kernel, heads : int
        Side of a window, and attention heads.
    """

    def __init__(self, width: int, text: int, levels: int, kernel: int, heads: int):
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads don't divide {width} channels")
        self.heads = heads
        self.query, self.key, self.value = (Projection(n, width) for n in (width, levels, levels))
        self.down = nn.Conv2d(width, width, kernel, stride=kernel, groups=width)
        self.text, self.text_norm = nn.Linear(text, width), nn.LayerNorm(width, eps=EPSILON)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor, multi: Tensor, question: Tensor | None = None, *, there: Tensor) -> Tensor:
        """The windows' tokens.

        Parameters
        ----------
        x, multi : Tensor
            `[n, w, width]` and `[n, w, levels]`: the patches of `n` windows, row by row, zeros where one has fewer.
        question : Tensor, optional
            `[n, text]`, of each window's picture.
        there : Tensor
            `[n, w]` bool: which patches there are.

        Returns
        -------
        Tensor
            `[n, width]`.
        """
        return self.attend(x, self.key(multi), self.value(multi), question, there=there)

    def attend(
        self, x: Tensor, keys: Tensor, values: Tensor, question: Tensor | None = None, *, there: Tensor
    ) -> Tensor:
        """The same of ``key(multi)`` and ``value(multi)``, which all questions about a picture share."""
        weights = self.weights(x, keys, question, there=there)
        _, _, of_value = self.attention.in_proj_weight.chunk(3)
        values = linear(values, of_value, self.attention.in_proj_bias.chunk(3)[2])
        seen = torch.einsum("nhw,nwhd->nhd", weights, values.unflatten(-1, (self.heads, -1))).flatten(1)
        found: Tensor = self.attention.out_proj(seen)
        return found

    def weights(self, x: Tensor, keys: Tensor, question: Tensor | None = None, *, there: Tensor) -> Tensor:
        """What each head of a window looks at, `[n, heads, w]`."""
        if question is not None:
            x = x + self.text_norm(self.text(question))[:, None]
        mixed = self.query(x) * there[..., None]
        # a depthwise convolution whose stride is its size: one weighted sum a window
        offset: Any = self.down.bias
        queries = torch.einsum("nwd,dw->nd", mixed, self.down.weight.flatten(1)) + offset
        (of_query, of_key, _), biases = self.attention.in_proj_weight.chunk(3), self.attention.in_proj_bias.chunk(3)
        q = linear(queries, of_query, biases[0]).unflatten(-1, (self.heads, -1))
        k = linear(keys, of_key, biases[1]).unflatten(-1, (self.heads, -1))
        logits = torch.einsum("nhd,nwhd->nhw", q, k) * q.shape[-1] ** -0.5
        return logits.masked_fill(~there[:, None], float("-inf")).softmax(-1)


@register_pruner("quecc")
@dataclass(kw_only=True)
class QueCC(TrainedCompressor):
    """QueCC (Li et al., ICLR 2025, arXiv 2411.03312): a convolution's queries, the question added, look at windows.

    Parameters
    ----------
    keep : int or float
        Tokens per span: what the windows of the network come to, ``(G / s)^2`` on a grid of G x G patches and windows
        of s x s; else it is refused with what there is. A fraction that rounds to it will do.
    weights : str, optional
        See ``TrainedCompressor``. With ``"untrained"`` the window is the one that gives `keep`.
    kernel : int, optional
        Side of the window of an untrained network.
    exact : bool
        False keeps what the windows come to, whatever `keep` asks (but 1.0).
    no_text : bool
        Leave the question out, as an ablation.
    question : {"words", "ids"}
        Where it comes from, see ``QuestionState``.

    Notes
    -----
    Stage: input; merges, between tower and projector. With x the patches that the projector reads `[N, D]`, M those of
    four layers of the tower side by side `[N, 4 D]`, and t the language model's state of the question alone::

        x' = x + LN(W_t t + b);   Q = conv_s(LN(W2 GELU(W1 x')));   K, V = LN(W2 GELU(W1 M)), each with its own weights
        tokens = projector(attention of Q_i, 8 heads, over the s x s patches of its window alone)

    where conv_s is depthwise with stride and size s. O(N D^2), and a pass of the language model over the question.

    The authors' code is followed (their vectors hold), with its limits: tokens of a later turn of a chat were made for
    the first question; one square grid. OURS: other grids (their last windows have fewer patches), several grids,
    several patches a token (side by side), the position of the patch in the middle of the window, layers as shares of
    the tower's depth, fewer heads where 8 don't divide D, `no_text`, ``question="ids"``.
    """

    kernel: int | None = None
    exact: bool = True
    no_text: bool = False
    question: str = "words"

    paper: ClassVar[str] = "arXiv 2411.03312"
    projects: ClassVar[bool] = True
    merges: ClassVar[bool] = True
    order_dependent: ClassVar[bool] = True
    ragged: ClassVar[bool] = True
    signals: ClassVar[tuple[Signal, ...]] = (
        PreProjector(),
        *(EncoderFeatures(layer=share) for share in LEVELS),
        QuestionState(),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.question not in ("words", "ids"):
            raise ValueError(f"quecc.question={self.question!r}; allowed are words, ids")
        if self.kernel is not None and (self.kernel < 1 or self.weights != UNTRAINED):
            raise ValueError(f"quecc.kernel={self.kernel} is for weights='untrained', and at least 1")

    @property
    def adaptive_count(self) -> bool:  # type: ignore[override]
        """Unless the count is the one asked for."""
        return not self.exact

    @property
    def uses_text(self) -> bool:  # type: ignore[override]
        """Unless the question is left out."""
        return not self.no_text

    @property
    def uses_question(self) -> bool:  # type: ignore[override]
        """Whether it is read as words."""
        return not self.no_text and self.question == "words"

    def signals_at(self, stop: Stop) -> tuple[Signal, ...]:
        """Patches at five places, and the question."""
        return self.signals[:-1] if self.no_text else (*self.signals[:-1], QuestionState(of=self.question))

    def sizes_for(self, tokens: VisualTokens) -> dict[str, Any]:
        """Channels of what is read, and the window that gives the first span's budget."""
        x, levels = self._patches(tokens)
        layout, k = present_grids(tokens, 0), tokens.budgets[0]
        sides = range(1, max(max(g.rows, g.cols) for g in layout.grids) + 1)
        near = min(sides, key=lambda s: (abs(tokens_of(layout, s) - k), s))
        heads = next(h for h in (HEADS, 4, 2, 1) if x.shape[-1] % h == 0)
        return {
            "width": x.shape[-1],
            "text": tokens.features.shape[-1],
            "levels": sum(y.shape[-1] for y in levels),
            "kernel": self.kernel or near,
            "heads": heads,
        }

    @classmethod
    def build(cls, sizes: Mapping[str, Any]) -> nn.Module:
        """A ``QueryCompressor``."""
        return QueryCompressor(*(sizes[name] for name in ("width", "text", "levels", "kernel", "heads")))

    def _patches(self, tokens: VisualTokens) -> tuple[Tensor, list[Tensor]]:
        """What the projector reads and what four layers of the tower give, `[B, N, U D]` each."""
        x, *levels = (tokens.read(signal).flatten(2) for signal in self.signals[:-1])
        return x, levels

    def select(self, tokens: VisualTokens, k: int) -> Merged:
        """One token a window, at its middle."""
        self.network(tokens)
        side = self.sizes["kernel"]
        layouts = [present_grids(tokens, i) for i in range(len(tokens.counts))]
        if self.exact:
            for layout, budget in zip(layouts, tokens.budgets, strict=True):
                self._check(layout, budget, side)
        made = [windows(layout, side) for layout in layouts]
        most = max(len(centres) for _, centres in made)
        index = torch.tensor(np.stack([np.pad(c, (0, most - len(c)), constant_values=-1) for _, c in made]))
        device = tokens.ids.device
        rows = torch.tensor(np.repeat(np.arange(len(made)), [len(c) for _, c in made])).to(device)
        patches = torch.tensor(np.concatenate([p for p, _ in made])).to(device)
        projected = torch.cat(
            [self._tokens(tokens, r, p) for r, p in zip(rows.split(BLOCK), patches.split(BLOCK), strict=True)]
        )
        features = projected.new_zeros(*index.shape, projected.shape[-1])
        features[(index >= 0).to(device)] = projected
        return Merged(index.to(device), features)

    def _tokens(self, tokens: VisualTokens, rows: Tensor, patches: Tensor) -> Tensor:
        """Projected tokens `[n, D]` of windows, given the span of each `[n]` and its `patches` `[n, w]`."""
        there = patches >= 0
        x, levels = self._patches(tokens)
        x, *levels = (y[rows[:, None], patches.clamp(min=0)] * there[..., None] for y in (x, *levels))
        given = [x, torch.cat(levels, -1)]
        if not self.no_text:
            given.append(tokens.text(QuestionState(of=self.question))[tokens.sample[rows]])
        found = self.run(tokens, *given, there=there)
        unit = tokens.read(self.signals[0]).shape[2]
        return tokens.project(found.unflatten(-1, (unit, -1)).to(x.dtype)).to(tokens.features.dtype)

    def _check(self, layout: Layout, budget: int, side: int) -> None:
        """Refuse a count that the windows don't come to."""
        count = tokens_of(layout, side)
        if count == budget:
            return
        shape = " + ".join(f"{g.rows}x{g.cols}" for g in layout.grids)
        if self.weights == UNTRAINED and self.kernel is None:
            sides = range(1, max(max(g.rows, g.cols) for g in layout.grids) + 1)
            can = ", ".join(map(str, sorted({tokens_of(layout, s) for s in sides})))
            raise ValueError(f"quecc can't make {budget} tokens of {shape} patches; the nearest is {count}, all: {can}")
        raise ValueError(
            f"{self._called()} makes {count} tokens of {shape} patches (windows of {side}x{side}), not {budget}: ask "
            f"for keep={count}, take exact=False, or {self._hint()}"
        )
