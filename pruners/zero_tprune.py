"""Zero-TPrune: inside the vision encoder, tokens vote by attention for those to keep, and look-alikes go first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from vtc.pruners.primitives.best_per_part import best, budgets_of, parts_of
from vtc.pruners.primitives.merging import cosine
from vtc.pruners.primitives.page_rank import Attention, over_heads, page_rank
from vtc.pruners.primitives.precision import decides_on_host, wide, wide_dtype
from vtc.pruners.primitives.ranking import top_k

from .base import Pruner, Stop
from .registry import register_pruner
from .signals import EncoderKeys, EncoderQueries, EncoderSegments, EncoderSpecial, Signal
from .visual_tokens import VisualTokens

AT_A_TIME = 1 << 20, 1 << 23  # entries of a matrix made at once: in the processor's cache, on a device

QUERIES, KEYS, METRIC, SEGMENTS = EncoderQueries(), EncoderKeys(), EncoderKeys(heads="mean"), EncoderSegments()
SPECIAL_QUERIES, SPECIAL_KEYS = EncoderSpecial(of="queries"), EncoderSpecial(of="keys")


@dataclass
class Graph:
    """The attention graph of an encoder layer; its nodes are special tokens, then patches.

    Attributes
    ----------
    queries, keys : (Tensor, Tensor)
        Of special nodes and patches, heads side by side, `[B, S, H*d]` and `[B, P, H*d]`.
    width : int
        d.
    segment : Tensor
        `[B, M]` int64: only nodes of one segment see each other.
    size : Tensor
        `[B, M]` float32: how many patches a node stands for, as the layer weighs it; 0 for padding.
    stride : int
        Of special nodes every so many-th is a class token.
    unit : int
        Patches of a token.
    room : int
        Bytes that matrices may take.
    """

    queries: tuple[Tensor, Tensor]
    keys: tuple[Tensor, Tensor]
    width: int
    segment: Tensor
    size: Tensor
    stride: int
    unit: int
    room: int

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
        queries = tokens.read(SPECIAL_QUERIES), tokens.read(QUERIES)
        return cls(
            (queries[0].detach().flatten(1, 2), queries[1].detach().flatten(1, 2)),
            (special.detach().flatten(1, 2), keys.detach().flatten(1, 2)),
            width,
            torch.cat([of_row.repeat_interleave(stride, 1), own.flatten(1)], 1),
            torch.cat([used.float().repeat_interleave(stride, 1), size.repeat_interleave(own.shape[2], 1)], 1),
            stride,
            own.shape[2],
            4 * tokens.features.numel() * tokens.features.element_size() * own.shape[2],
        )

    def importance(self, left: Tensor, votes: int, uniform: bool) -> Tensor:
        """Importance of the tokens `left [B, N]` bool in the graph of these alone, `[B, N]` float32."""
        special = self.queries[0].shape[1]
        left = pad(left.repeat_interleave(self.unit, 1), (special, 0), value=True) & (self.size > 0)
        start = left.float()
        if special and not uniform:
            classes = self.segment[:, : special : self.stride, None]
            start[:, : special : self.stride] *= ((classes == self.segment[:, None]) & left[:, None]).sum(-1).sqrt()
        start = (start / start.sum(1, keepdim=True)).to(wide_dtype(self.queries[1]))
        if not decides_on_host(self.segment):

            def hidden(rows: slice) -> Tensor:
                return (self.segment[:, rows, None] != self.segment[:, None]) | ~left[:, None]

            rank = self._voted(slice(None), slice(None), hidden, start, votes)
        else:  # picture by picture and segment by segment, of those that are left
            rank = start.new_zeros(len(left), self.queries[0].shape[2] // self.width, left.shape[1])
            for row in range(len(left)):
                for number in self.segment[row, left[row]].unique():
                    some = (left[row] & (self.segment[row] == number)).nonzero()[:, 0]
                    rank[row, :, some] = self._voted(slice(row, row + 1), some, None, start, votes)[0]
        return over_heads(rank, left)[:, special:].unflatten(1, (-1, self.unit)).mean(2)

    def _voted(
        self, rows: slice, some: Tensor | slice, hidden: Callable[[slice], Tensor] | None, start: Tensor, votes: int
    ) -> Tensor:
        """Ranks `[B, H, m]` of `some` nodes of `rows`, which only see one another."""
        start, merged = start[rows, some], self.size[rows, some]
        size = None if hidden is None and bool((merged == 1).all()) else merged
        most, matrix = AT_A_TIME[hidden is not None], start.shape[0] * start.shape[1] ** 2
        most, room = min(most, self.room // (16 * start.element_size())), self.room if votes > 1 else 0
        step = self.width * max(1, most // matrix)
        found = []
        for channel in range(0, self.queries[0].shape[2], step):
            wanted = slice(channel, channel + step)
            queries, keys = (self._heads(x, rows, some, wanted) for x in (self.queries, self.keys))
            attention = Attention(queries.mul_(self.width**-0.5), keys, size, hidden, most, room)
            found.append(page_rank(attention, start[:, None].expand(-1, queries.shape[1], -1), votes))
        return torch.cat(found, 1)

    def _heads(self, x: tuple[Tensor, Tensor], rows: slice, some: Tensor | slice, channels: slice) -> Tensor:
        """Some heads of some nodes, `[B, h, m, d]` float32."""
        parts = [part[rows, :, channels] for part in x if part.shape[1]]
        nodes = (parts[0] if len(parts) == 1 else torch.cat(parts, 1))[:, some]
        return wide(nodes).nan_to_num_(0, 0, 0).unflatten(2, (-1, self.width)).transpose(1, 2).contiguous()


def _crops(tokens: VisualTokens, unit: int) -> Tensor:
    """Crop or frame of each token's `unit` patches, `[B, N, U]` int64."""
    part, _ = parts_of(tokens)
    return part[..., None].expand(-1, -1, unit)


def _likeness(metric: Tensor, strong: Tensor, room: int) -> Tensor:
    """Largest cosine of each token's `metric [B, N, d]` with one of the `strong [B, N]` bool others, `[B, N]`."""
    if decides_on_host(metric):
        found = metric.new_full(strong.shape, -2.0)
        for row, mine in enumerate(strong):
            weak, others = metric[row : row + 1, ~mine], metric[row : row + 1, mine]
            parts = weak.split(max(1, AT_A_TIME[0] // max(1, others.shape[1])), 1)
            found[row, ~mine] = torch.cat([cosine(part, others).amax(2)[0] for part in parts])
        return found
    step = max(1, room // (8 * metric.element_size() * strong.numel()))
    parts = metric.split(step, 1)
    return torch.cat([cosine(part, metric).masked_fill_(~strong[:, None], -2).amax(2) for part in parts], 1)


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

    O(H N^2 (d + votes)) a step, N counting patches. Matrices are made from queries and keys in blocks: the model's own
    attention kernel stays. Where tokens vote more than once, as much of a head's matrix is held as takes four times the
    states of all patches (a layer's MLP takes more); the rest is made again for each vote. No official code exists.
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
            likeness = _likeness(metric, strong, graph.room)
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
