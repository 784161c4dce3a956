"""MMTok: the tokens that cover the question's words and the whole picture together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.pruners.primitives.greedy import all_cosines, barred, cover, cover_in_rows, half_cosines
from vtc.pruners.primitives.greedy.half_matrix import HalfMatrix, is_large
from vtc.pruners.primitives.merging import cosine, mean_of_patches
from vtc.pruners.primitives.precision import decides_on_host, held_together

from .base import Pruner
from .registry import register_pruner
from .signals import PreProjector, Signal, TextEmbeddings
from .visual_tokens import VisualTokens

BLOCK = 96  # rows at a time
MARGIN = 2.0**-14  # more than cosines, sums and powers in float32 are off by
SPACES = ("encoder", "projected")


@register_pruner("mmtok")
@dataclass(kw_only=True)
class MMTok(Pruner):
    """MMTok (Dong et al., ICLR 2026, arXiv 2508.18264): coverage of text tokens and of visual tokens, maximised.

    Parameters
    ----------
    keep : int or float
        Tokens kept per span, exactly.
    alpha : float
        Weight of the visual tokens, >= 0, beside 1 for the text. The authors' default is 0.5.
    text_temperature, vision_temperature : float
        Of the softmax of the two kinds of similarities, > 0. The authors' defaults are 0.02 and 0.2.
    space : {"encoder", "projected"}
        What v is: what the projector reads, as the authors have it, or x again (OURS): that is there in every family.

    Notes
    -----
    Stage: input. With the embeddings z `[M, D]` of the text behind the span, projected features x `[N, D]` and what the
    projector reads, v `[N, D_enc]`::

        P = softmax_i(cos(z_m, x_i) / text_temperature) / M
        Q = softmax_i(cos(v_u, v_i) / vision_temperature) / N
        greedy maximum over sets S of k of  sum_m max_{i in S} P_mi + alpha sum_u max_{i in S} Q_ui

    O(N^2 D_enc + k N (M + N)) time and an (M + N) x N matrix, on the CPU about (M + N) N log k behind the similarities.
    Its rows are sums of softmax over the tokens that are there; of large pictures they are made anew whenever they are
    read, of half a matrix of cosines.

    The authors cover the words of the question but some 40 ("what", "the") and the usual instructions, told apart by a
    tokenizer; here every text token behind the picture counts, the template's too. With LLaVA-1.5 they choose no token
    of the padding that makes a picture square; here all are candidates. Without text it is coverage of the picture.
    """

    alpha: float = 0.5
    text_temperature: float = 0.02
    vision_temperature: float = 0.2
    space: str = "encoder"

    paper: ClassVar[str] = "arXiv 2508.18264"
    uses_text: ClassVar[bool] = True
    ragged: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.alpha >= 0:
            raise ValueError(f"mmtok.alpha={self.alpha!r} is out of range; it must be a number >= 0")
        if self.space not in SPACES:
            raise ValueError(f"mmtok.space={self.space!r}; allowed are {', '.join(SPACES)}")
        for name in ("text_temperature", "vision_temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"mmtok.{name}={getattr(self, name)!r} is out of range; it must be a number > 0")

    @property
    def signals(self) -> tuple[Signal, ...]:  # type: ignore[override]
        """The words, and what v is."""
        return (TextEmbeddings(), PreProjector()) if self.space == "encoder" else (TextEmbeddings(),)

    @torch.no_grad()
    def select(self, tokens: VisualTokens, k: int) -> Tensor:
        """Greedy coverage, `[B, k]` in the order chosen."""
        x, device = tokens.features, tokens.ids.device
        words = tokens.text(TextEmbeddings())[tokens.sample]
        behind = tokens.text_valid(after=True)
        seen, bar = x, barred(x, tokens.valid)
        if self.space == "encoder":
            seen = mean_of_patches(tokens.read(PreProjector())).to(device)
            bar = torch.minimum(bar, barred(seen, tokens.valid))
        sets = held_together(x, seen, bar, words, behind)
        return torch.cat([self._cover(k, *one) for one in sets])

    def _cover(self, k: int, x: Tensor, seen: Tensor, bar: Tensor, words: Tensor, behind: Tensor) -> Tensor:
        """The choice, for rows whose matrices are held together."""
        there, lines = bar == 0, words.shape[1]
        named = cosine(words, x)  # before the matrix is there: it holds wide channels of x
        if is_large(x.shape[1]):
            _shares(named, there, behind, self.text_temperature, 1.0)
            seen_by = Shares(half_cosines(seen, there), there, self.vision_temperature, self.alpha)
            return cover_in_rows([Named(named), seen_by], k, bar)
        covers = all_cosines(seen, there, lines)
        covers[:, :lines] = named
        _shares(covers[:, :lines], there, behind, self.text_temperature, 1.0)
        _shares(covers[:, lines:], there, there, self.vision_temperature, self.alpha)
        return cover(covers, k, bar)


def _shares(likeness: Tensor, columns: Tensor, rows: Tensor, temperature: float, weight: float) -> None:
    """Softmax of each row over the `columns [B, N]`, times the weight of one of the `rows [B, R]`; in place."""
    each = (weight / rows.sum(1, keepdim=True).clamp(min=1)) * rows
    for part, share in zip(likeness.split(BLOCK, 1), each.split(BLOCK, 1), strict=True):
        part.div_(temperature).masked_fill_(~columns[:, None], torch.finfo(part.dtype).min)
        part.copy_(part.softmax(-1).mul_(share[..., None]))


@dataclass
class Named:
    """Of the text `[B, M, N]`, as ``cover_in_rows`` asks for it."""

    covers: Tensor

    def __len__(self) -> int:
        return self.covers.shape[1]

    def rows(self, some: slice | Tensor) -> Tensor:
        """`[B, n, N]`."""
        return self.covers[:, some]

    def at_most(self, one: int) -> Tensor:
        """`[M]`."""
        return self.covers[0, :, one]


class Shares:
    """Of the tokens, as ``_shares`` makes it of their cosines, some rows at a time.

    Parameters
    ----------
    cosines : HalfMatrix
        Of the tokens that are `there [B, N]` bool.
    temperature, weight : float
        As for ``_shares``.
    """

    def __init__(self, cosines: HalfMatrix, there: Tensor, temperature: float, weight: float):
        self.cosines, self.there, self.temperature = cosines, there, temperature
        self.each = (weight / there.sum(1, keepdim=True).clamp(min=1)) * there
        self.all_there = decides_on_host(there) and bool(there.all())
        self.total: Tensor | None = None

    def __len__(self) -> int:
        return len(self.cosines)

    def rows(self, some: slice | Tensor) -> Tensor:
        """`[B, n, N]`."""
        return self._logits(some).softmax(-1).mul_(self.each[:, some, None])

    def _logits(self, some: slice | Tensor) -> Tensor:
        made = self.cosines.rows(some).div_(self.temperature)
        return made if self.all_there else made.masked_fill_(~self.there[:, None], torch.finfo(made.dtype).min)

    def at_most(self, one: int) -> Tensor:
        """`[N]`: what the softmax in float32 may come to at most."""
        if self.total is None:
            parts = (slice(s, min(s + BLOCK, len(self))) for s in range(0, len(self), BLOCK))
            self.total = torch.cat([self._logits(part)[0].logsumexp(-1) for part in parts]).double()
        logit = self.cosines.at_most(one).double().div_(self.temperature)
        return (
            logit.sub_(self.total)
            .add_(MARGIN * (4 + 1 / self.temperature))
            .exp_()
            .mul_(self.each[0])
            .to(self.cosines.held)
        )
