"""Zero-TPrune: inside the vision encoder, tokens vote by attention for those to keep, and look-alikes go first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from vtc.pruners.primitives.best_per_part import best, budgets_of, parts_of
from vtc.pruners.primitives.merging import cosine
from vtc.pruners.primitives.precision import decides_on_host, wide
from vtc.pruners.primitives.ranking import top_k

from .base import Pruner, Stop
from .registry import register_pruner
from .signals import EncoderKeys, EncoderQueries, EncoderSegments, EncoderSpecial, Signal
from .visual_tokens import VisualTokens

VARIANCE = 0.01, 0.7  # of a head's importance over its mean: heads in this range are heard
AT_A_TIME = 1 << 23  # entries of attention matrices held at once, unless one has more

QUERIES, KEYS, METRIC, SEGMENTS = EncoderQueries(), EncoderKeys(), EncoderKeys(heads="mean"), EncoderSegments()
SPECIAL_QUERIES, SPECIAL_KEYS = EncoderSpecial(of="queries"), EncoderSpecial(of="keys")


def page_rank(
    attention: Tensor, start: Tensor, votes: int, total: Tensor | float = 1.0, size: Tensor | float = 1.0
) -> Tensor:
    """Weighted page rank: `votes` times ``s_j <- sum_i A_ij s_i``, so that who is looked at gets what looks at it.

    Parameters
    ----------
    attention : Tensor
        `[..., M, M]`, A: row i is the attention of query i.
    start : Tensor
        `[..., M]`, s at first.
    votes : int
        How often.
    total, size : Tensor, optional
        `[..., 1, M]`: A is `attention` with row i over `total` and column j times `size`, which is never made.

    Returns
    -------
    Tensor
        `[..., M]`, of the same sum where the rows of A sum to 1.
    """
    rank = start[..., None, :]
    for _ in range(votes):
        rank = (rank / total) @ attention * size
    return rank[..., 0, :]


def head_variance(rank: Tensor, present: Tensor) -> Tensor:
    """Sample variance of `rank [B, H, M]` over its mean, among the tokens `present [B, M]` bool: `[B, H]`."""
    n, inside = present.sum(-1)[:, None], present[:, None]
    mean = (rank * inside).sum(-1) / n
    relative = rank / mean.clamp(min=torch.finfo(rank.dtype).tiny)[..., None]
    return ((relative - 1).square() * inside).sum(-1) / (n - 1).clamp(min=1)


def over_heads(rank: Tensor, present: Tensor) -> Tensor:
    """Root mean square of `rank [B, H, M]` over the heads whose variance is in range, else over all: `[B, M]`."""
    variance = head_variance(rank, present)
    heard = (variance >= VARIANCE[0]) & (variance <= VARIANCE[1])
    heard = (heard | ~heard.any(1, keepdim=True))[..., None]
    return ((rank.square() * heard).sum(1) / heard.sum(1)).sqrt()


@dataclass
class Graph:
    """The attention graph of an encoder layer; its nodes are special tokens, then patches.

    Attributes
    ----------
    queries, keys : Tensor
        `[B, H, M, d]` float32, the queries scaled.
    segment : Tensor
        `[B, M]` int64: only nodes of one segment see each other.
    size : Tensor
        `[B, M]` float32: how many patches a node stands for, as the layer weighs it; 0 for padding.
    special, stride : int
        Special nodes, of which every `stride`-th is a class token.
    unit : int
        Patches of a token.
    """

    queries: Tensor
    keys: Tensor
    segment: Tensor
    size: Tensor
    special: int
    stride: int
    unit: int

    @classmethod
    def read(cls, tokens: VisualTokens, width: int) -> Graph:
        """The graph of the last layer so far, whose heads have `width` channels."""
        valid, keys, special = tokens.valid, tokens.read(KEYS), tokens.read(SPECIAL_KEYS)
        own = tokens.read(SEGMENTS)[..., 0] if tokens.stage == "vision" else _crops(tokens, keys.shape[2])
        rows, stride = special.shape[1:3]
        of_row = torch.arange(rows, device=own.device).expand(len(own), -1)
        # a row that nobody is left in, or that pads the batch, takes no part
        used = ((of_row[:, :, None] == own[:, None, :, 0]) & valid[:, None]).any(-1)
        size = valid.float() if tokens.size is None else tokens.size
        return cls(
            _heads(tokens.read(SPECIAL_QUERIES), tokens.read(QUERIES), width).mul_(width**-0.5),
            _heads(special, keys, width),
            torch.cat([of_row.repeat_interleave(stride, 1), own.flatten(1)], 1),
            torch.cat([used.float().repeat_interleave(stride, 1), size.repeat_interleave(own.shape[2], 1)], 1),
            rows * stride,
            stride,
            own.shape[2],
        )

    def importance(self, left: Tensor, votes: int, uniform: bool) -> Tensor:
        """Importance of the tokens `left [B, N]` bool in the graph of these alone, `[B, N]` float32."""
        left = pad(left.repeat_interleave(self.unit, 1), (self.special, 0), value=True) & (self.size > 0)
        seen = (self.segment[:, :, None] == self.segment[:, None]) & left[:, None]
        start = left.float()
        if self.special and not uniform:
            start[:, : self.special : self.stride] *= seen[:, : self.special : self.stride].sum(-1).sqrt()
        start = (start / start.sum(1, keepdim=True))[:, None]
        start = start.to(self.queries.dtype)
        apart = self._apart()
        if len(apart) < 2:
            rank = self._voted(slice(None), start, seen, votes)
        else:
            rank = torch.cat([self._voted(some, start, seen, votes) for some in apart], 2)
            rank = rank[:, :, torch.cat(apart).argsort()]
        return over_heads(rank, left)[:, self.special :].unflatten(1, (-1, self.unit)).mean(2)

    def _apart(self) -> list[Tensor]:
        """Nodes that can be looked at by themselves, `[m]` int64 each: a segment's where rows have the same ones."""
        if not decides_on_host(self.segment) or bool((self.segment != self.segment[:1]).any()):
            return []
        return [(self.segment[0] == number).nonzero()[:, 0] for number in self.segment[0].unique()]

    def _voted(self, some: Tensor | slice, start: Tensor, seen: Tensor, votes: int) -> Tensor:
        """Ranks `[B, H, m]` of `some` nodes, which only see one another."""
        start, size = start[..., some], self.size[:, None, None, some].to(start.dtype)
        hidden = ~seen[:, None, some][..., some]
        step = max(1, AT_A_TIME // hidden.numel())
        queries, keys = (x[:, :, some].split(step, 1) for x in (self.queries, self.keys))
        found = []
        for q, k in zip(queries, keys, strict=True):
            seen_by = self._exponents(q, k, hidden)
            total = (seen_by @ size.mT).mT.clamp_(min=torch.finfo(start.dtype).tiny)
            found.append(page_rank(seen_by, start, votes, total, size))
            del seen_by  # before the next ones are made
        return torch.cat(found, 1)

    def _exponents(self, queries: Tensor, keys: Tensor, hidden: Tensor) -> Tensor:
        """A softmax's numerators of some heads, `[B, h, M, M]`, to nodes that aren't `hidden [B, 1, M, M]` bool."""
        x = (queries @ keys.transpose(2, 3)).masked_fill_(hidden, float("-inf"))
        x.sub_(x.amax(-1, keepdim=True).clamp_(min=torch.finfo(x.dtype).min))  # padding sees nobody
        return x.exp_()


def _crops(tokens: VisualTokens, unit: int) -> Tensor:
    """Crop or frame of each token's `unit` patches, `[B, N, U]` int64."""
    part, _ = parts_of(tokens)
    return part[..., None].expand(-1, -1, unit)


def _heads(special: Tensor, patches: Tensor, width: int) -> Tensor:
    """Heads side by side, `[B, R, P, H*d]` and `[B, N, U, H*d]`, as `[B, H, R*P + N*U, d]` float32."""
    rows = torch.cat([wide(special.detach().flatten(1, 2)), wide(patches.detach().flatten(1, 2))], 1)
    return rows.nan_to_num_(0, 0, 0).unflatten(2, (-1, width)).transpose(1, 2)


@register_pruner("zero_tprune")
@dataclass(kw_only=True)
class ZeroTPrune(Pruner):
    """Zero-TPrune (Wang et al., CVPR 2024, arXiv 2305.17328): page rank on the attention graph, without training.

    Parameters
    ----------
    keep : int or float
        Tokens kept per span after the last step, exactly.
    at : {"vision", "input"}
        Inside the encoder, or once before the language model by the layer whose output the projector reads. That is
        worse than random on the bundled model (46.7% right and 61.1% with 63 of 576 tokens; inside the encoder 71.7%).
    layer : int, optional
        Encoder layer before which to prune, once. By default there are `steps` places.
    steps : int
        Without a layer: how many, evenly through the encoder (before layers 3, 6 and 9 of 12). OURS: the paper finds
        layers and ratios for each model by a Monte Carlo search and gives none.
    similar : float
        Share of a step's tokens that go because they resemble others; 0 leaves that out. OURS.
    votes : int, optional
        How often tokens vote for those to keep; by default by the layer voted in, see below.
    uniform : bool
        Whether all votes count the same at first ("Zero-TPrune-uni"), and not a class token's more (there 57.2%).

    Notes
    -----
    Stage: vision or input. A fraction is reached in equal ratios, ``keep**(1/steps)`` a step; a number k by 4k, 2k, k
    (OURS). A step is I' - S - I, by the attention A `[H, N, N]` and the keys of the layer before:

    - Page rank: s uniform, but a class token's ``sqrt(N)`` times as much; `votes` times ``s_j <- sum_i A_ij s_i`` in
      each head. Heads whose s over its mean has a variance in [0.01, 0.7] (all, if none has) give the importance
      ``sqrt(mean_h s_hj^2)``. The paper does not say of what the variance is: of s over its mean is OURS.
    - I': one vote gives the order of importance.
    - S: of the less important half, the `r` tokens whose best cosine of keys `[N, d]` (mean over heads) with one of the
      other half is largest are dropped, not merged; ``r = similar`` of those to go, never more than the half.
    - I: the others vote, and the k most important stay. Votes: 30 in the first three layers, 1 in the last three, 5
      between; the paper's ranges are 30 to 50, 1, and 5 to 10.

    Without S many background tokens, alike, would vote for each other. The direction matters: A s instead of s A gives
    all the same importance. Among survivors A's rows are made to sum to 1 again (OURS). Special tokens (class,
    registers) vote and are never dropped; in a tower without a class token patches are among themselves, and so are
    they in a bare ViT with registers only. Crops, frames and windows (Qwen2.5-VL) are graphs of their own, ranked
    together; look-alikes are sought in all of them. Where a token is U patches (Qwen-VL, Gemma3), these vote and a
    token has the mean of their importance. Padding patches of crops are no tokens and take no part.

    O(H N^2 (d + votes)) a step, N counting patches. One head's N x N matrix is held at a time (of small pictures
    several), made from queries and keys: the model's own attention kernel stays. No official code exists.
    """

    at: str = "vision"
    layer: int | None = None
    steps: int = 3
    similar: float = 0.3
    votes: int | None = None
    uniform: bool = False

    paper: ClassVar[str] = "arXiv 2305.17328"
    ragged: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.at not in ("vision", "input"):
            raise ValueError(f"zero_tprune.at={self.at!r} is no stage of it; allowed are vision, input")
        if self.at == "input" and self.layer is not None:
            raise ValueError(f"zero_tprune.layer={self.layer} is an encoder layer and does not go with at='input'")
        for name, value in (("steps", self.steps), ("votes", self.votes)):
            if value is not None and value < 1:
                raise ValueError(f"zero_tprune.{name}={value!r} is out of range; it must be an int >= 1")
        if not 0 <= self.similar <= 1:
            raise ValueError(f"zero_tprune.similar={self.similar} is out of range: it must be in [0, 1]")

    @property
    def stage(self) -> str:  # type: ignore[override]
        """As asked for."""
        return self.at

    @property
    def signals(self) -> tuple[Signal, ...]:  # type: ignore[override]
        """The graph and what likeness is told by; behind the encoder the layouts tell which patches see each other."""
        read = QUERIES, KEYS, METRIC, SPECIAL_QUERIES, SPECIAL_KEYS
        return (*read, SEGMENTS) if self.at == "vision" else read

    @property
    def uses_attention(self) -> bool:
        """It makes the weights itself, of queries and keys."""
        return True

    @property
    def uses_cls(self) -> bool:
        """The class token votes, where there is one."""
        return True

    def tower_stops(self, stop: Stop, last: int) -> tuple[Stop, ...]:
        """Without a layer: `steps` of them (as many as fit) between the first layer and `last`."""
        if stop.layer is not None or stop.keep is None or stop.stage != "vision":
            return (stop,)
        if last < 1:
            raise ValueError("zero_tprune needs an encoder of at least two layers: it reads the layer before a step")
        share = (last + 1) / (self.steps + 1)
        places = sorted({min(last, max(1, int(share * i + 0.5))) for i in range(1, self.steps + 1)})
        return tuple(Stop("vision", layer, self._kept(stop.keep, i, len(places))) for i, layer in enumerate(places, 1))

    @staticmethod
    def _kept(keep: int | float, step: int, steps: int) -> int | float:
        """What the `step`-th of `steps` keeps."""
        return keep * 2 ** (steps - step) if isinstance(keep, int) else keep ** (step / steps)

    def select(self, tokens: VisualTokens, k: int) -> Tensor:
        """The best first."""
        left = valid = tokens.valid
        metric = wide(tokens.read(METRIC).detach()).mean(2).nan_to_num_(0, 0, 0)
        graph = Graph.read(tokens, metric.shape[-1])
        if self.similar:
            importance = graph.importance(valid, 1, self.uniform)
            counts = valid.sum(1, keepdim=True)
            half = counts // 2
            strong = best(importance, counts - half, valid)
            likeness = cosine(metric, metric).masked_fill_(~strong[:, None], -2).amax(2)
            gone = best(likeness, torch.minimum(self._similar(tokens), half), valid & ~strong)
            left = valid & ~gone
        return top_k(graph.importance(left, self._votes(tokens), self.uniform), k, left)

    def _similar(self, tokens: VisualTokens) -> Tensor:
        """How many tokens are to go as look-alikes, `[B, 1]` int64."""
        return ((tokens.valid.sum(1, keepdim=True) - budgets_of(tokens)) * self.similar + 0.5).long()

    def _votes(self, tokens: VisualTokens) -> int:
        """How often tokens vote in the layer before this stop."""
        if self.votes is not None:
            return self.votes
        if tokens.layer is None or tokens.last is None:  # behind the encoder
            return 1
        voted = tokens.layer - 1
        return 30 if voted < 3 else 1 if voted > tokens.last - 3 else 5
