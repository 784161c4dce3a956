"""G-Prune: tokens pass their lengths on to look-alikes, and those that receive most for their number of links stay."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.pruners.primitives.best_per_part import best, budgets_of, columns_of, part_sizes, per_token, rank_in_part
from vtc.pruners.primitives.crops_and_frames import BLOCK, frames_of
from vtc.pruners.primitives.greedy import barred
from vtc.pruners.primitives.greedy.half_matrix import HalfMatrix, is_large
from vtc.pruners.primitives.greedy.rows import alike, copy_twins, fill_pairs, twins_among
from vtc.pruners.primitives.page_rank import page_rank
from vtc.pruners.primitives.precision import decides_on_host, exact, exact_dtype, settled, wide_dtype

from .base import Pruner
from .registry import register_pruner
from .visual_tokens import VisualTokens

ROWS = 128  # of a matrix at a time: float64 is never held whole
STRIPS, AT_MOST = 6, 1024  # of a matrix on a device, and rows of one


@register_pruner("gprune")
@dataclass(kw_only=True)
class GPrune(Pruner):
    """G-Prune (Jiang et al., AAAI 2025, arXiv 2501.02268): information flow on the graph of alike tokens.

    Parameters
    ----------
    keep : int or float
        Tokens kept per span, exactly. The authors' code keeps a half.
    similarity : float
        Tokens are linked from this cosine on. The authors' is 0.5.
    temperature : float
        Of the links' weights. The authors' is 0.03.
    iterations : int
        How often what a token has flows along its links. The authors' is 5.

    Notes
    -----
    Stage: input; reads projected features x `[N, D]` and nothing else. With ``s_ij = cos(x_i, x_j)`` and
    ``L_i = {j : s_ij >= similarity}``, i itself among them::

        W_ij = exp(s_ij / temperature) / sum_{l in L_i} exp(s_il / temperature)  for j in L_i, else 0
        v_j = ||x_j||,   then so many times as `iterations` says   v_j <- sum_i v_i W_ij
        score_j = v_j / |L_j|

    What many resemble receives much, and shares it with its look-alikes: the division leaves a few of each kind, of the
    foreground and of the background. O(N^2 (D + iterations)) time and an N x N matrix, of large
    pictures half of it. Equal tokens tie, and the lowest index decides; scores are summed in float64 where the device
    has it. Cosines above 1 - 1e-6 are 1.

    Thumbnail and mosaic of an anyres picture are graphs of their own and keep equal shares, as with the authors; so
    does each frame of a video, which they have not. Crops that a model feeds as spans of their own (InternVL) are
    graphs of their own; UniPruneBench joins all but the first one. Row ends are no candidates: the authors keep all.

    From the authors' code for LLaVA-NeXT, as formulas; the paper itself was not read. Theirs keeps ``floor(ratio n)``
    of each graph and runs in float16, where links of weights below 2^-25 vanish and are not counted: on the vectors of
    tests/golden it keeps 0.991 to 0.995 of what float32 does. A vector of zeros has no links and scores 0. What is not
    finite has none either, and comes last.
    """

    similarity: float = 0.5
    temperature: float = 0.03
    iterations: int = 5

    paper: ClassVar[str] = "arXiv 2501.02268"
    ragged: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.similarity <= 1:
            raise ValueError(f"gprune.similarity={self.similarity!r} is out of range; it must be a number in (0, 1]")
        if not self.temperature > 0:
            raise ValueError(f"gprune.temperature={self.temperature!r} is out of range; it must be a number > 0")
        if self.iterations < 1:
            raise ValueError(f"gprune.iterations={self.iterations!r} is out of range; it must be an int >= 1")

    @torch.no_grad()
    def select(self, tokens: VisualTokens, k: int) -> Tensor:
        """The best of each graph, `[B, k]` ascending."""
        score, part, count = self.score(tokens)
        quota = part_sizes(part, count) * (exact(budgets_of(tokens)) / exact(tokens.valid.sum(1, keepdim=True)))
        key = per_token(quota, part) - rank_in_part(score, part, count)
        return columns_of(best(key, budgets_of(tokens), tokens.valid), k)

    def score(self, tokens: VisualTokens) -> tuple[Tensor, Tensor, int]:
        """Score of each token `[B, N]`, NaN where its vector is not finite; the graph it is in, and how many."""
        frames = frames_of(tokens, grids=True)
        usable = barred(tokens.features) == 0
        place, there = frames.column.flatten(0, 1), frames.there.flatten(0, 1)
        row = torch.arange(len(place), device=place.device)[:, None] // frames.there.shape[1]
        there = there & usable[row, place]
        step, scores = max(1, BLOCK // place.shape[1]), []
        for some in (slice(start, start + step) for start in range(0, len(place), step)):
            scores.append(self._received(tokens.features, row[some], place[some], there[some]))
        score = frames.collect(torch.cat(scores).view(frames.there.shape))
        return score.masked_fill(~usable, float("nan")), frames.frame, frames.there.shape[1]

    def _received(self, x: Tensor, row: Tensor, place: Tensor, there: Tensor) -> Tensor:
        """Scores `[G, P]` of graphs, whose nodes are ``x[row, place]``; those that are not `there` are none."""
        found, length = cosines(x, row, place, there)
        links: list[Tensor] = []
        for part in rows_of(found):
            links.append((part >= self.similarity).sum(-1))
            if isinstance(found, Tensor):
                part.copy_(self._weights(part))  # they take the cosines' place
        weights = Rows(found, None if isinstance(found, Tensor) else self._weights)
        received = page_rank(weights, length, self.iterations) / torch.cat(links, 1).clamp(min=1)
        return settled(received, received.amax(1, keepdim=True))

    def _weights(self, part: Tensor) -> Tensor:
        """Of the links that rows of cosines `[G, m, P]` make, the same shape."""
        none = part < self.similarity
        logits = exact(part).div(self.temperature).masked_fill_(none, torch.finfo(torch.float32).min)
        return logits.softmax(-1).masked_fill_(none, 0)


def rows_of(matrix: Tensor | HalfMatrix) -> Iterator[Tensor]:
    """Rows `[G, m, P]` of matrices, some at a time."""
    return iter(matrix.split(ROWS, 1)) if isinstance(matrix, Tensor) else matrix.in_blocks(ROWS)


@dataclass
class Rows:
    """Matrices `[G, P, P]`, or `weights` of their rows, in blocks `[G, m, P]` in float64, as often as they are read."""

    matrix: Tensor | HalfMatrix
    weights: Callable[[Tensor], Tensor] | None

    def __iter__(self) -> Iterator[Tensor]:
        for part in rows_of(self.matrix):
            yield exact(part if self.weights is None else self.weights(part).to(part))


def cosines(x: Tensor, row: Tensor, place: Tensor, there: Tensor) -> tuple[Tensor | HalfMatrix, Tensor]:
    """Cosines of the tokens ``x[row, place]`` `[G, P, D]` with one another, `[G, P, P]`, and their lengths `[G, P]`.

    Equal tokens have equal ones: copies on the CPU, elsewhere computed in float64 without its rounding.
    """
    nodes, on_host = place.shape[1], decides_on_host(x)
    dtype = wide_dtype(x) if on_host else exact_dtype(x.device)
    same = [twins_among(x[r, p], t) for r, p, t in zip(row, place, there, strict=True)] if on_host else []
    length = x.new_zeros(place.shape, dtype=dtype)
    size = ROWS if x.device.type == "cpu" else min(max(ROWS, nodes // STRIPS), AT_MOST)
    made: Tensor | HalfMatrix
    if is_large(nodes):
        made = HalfMatrix(x, len(place), nodes, wide_dtype(x), size)
        made.copy_twins(*same)
    else:
        made = x.new_zeros(*place.shape, nodes, dtype=wide_dtype(x))

    def unit(part: slice) -> Tensor:
        rows = x[row, place[:, part]].to(dtype).masked_fill_(~there[:, part, None], 0)
        length[:, part] = torch.linalg.vector_norm(rows, dim=-1)
        return rows.div_(length[:, part, None].clamp(min=1e-12))

    fill_pairs(made, unit, lambda products: alike(settled(products)), size)
    if isinstance(made, Tensor):
        for graph, twin in zip(made, same, strict=False):
            copy_twins(graph, twin)
    return made, exact(length)
