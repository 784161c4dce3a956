"""SparseVLM: visual tokens that the question's own key words look at, the rest merged into a few."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from vtc.pruners.primitives.budget_over_stops import pyramid, scaled_layer
from vtc.pruners.primitives.clustering import cluster_means, dpc_knn
from vtc.pruners.primitives.merging import take
from vtc.pruners.primitives.precision import wide
from vtc.pruners.primitives.ranking import top_k

from .base import Merged, Pruner, Stop
from .registry import register_pruner
from .signals import DecoderAttention, Projected, Signal, TextEmbeddings
from .visual_tokens import VisualTokens

PAPER = (3, 7, 16), 32  # pruned before these layers, that is after 2, 6 and 15, of LLaVA-1.5-7B
LISTS = {192: (300, 200, 110), 128: (303, 110, 36), 64: (66, 30, 17)}


class Split(NamedTuple):
    """How a row is divided.

    Of the columns ``order [B, N]`` by falling score the first ``kept [B]`` stay, the next ``recycled [B]`` are merged
    into ``clusters [B]``.
    """

    order: Tensor
    kept: Tensor
    recycled: Tensor
    clusters: Tensor


@register_pruner("sparsevlm")
@dataclass(kw_only=True)
class SparseVLM(Pruner):
    """SparseVLM (Zhang et al., ICML 2025, arXiv 2410.04417): text-guided sparsification with recycling.

    Parameters
    ----------
    keep : int or float, optional
        Tokens kept per span after the LAST stop, merged ones included, exactly. The stops before keep what
        ``budget_over_stops.pyramid`` gives. With `rank_scale` it is the least that is kept.
    budget : {192, 128, 64}, optional
        The authors' fixed lists instead, named by the layer average that they are meant to give: 300, 200 and 110; 303,
        110 and 36; 66, 30 and 17 tokens.
    counts : tuple of int, optional
        A list of your own.
    rank_scale : float, optional
        lambda of the paper's adaptive rule: at every stop ``floor(lambda (N - rank P))`` tokens go, P the raters'
        attention `[R, N]`. How many is read from the device.
    layers : tuple of int, optional
        Decoder layers to prune before. By default 3, 7 and 16 of 32, scaled to the depth.
    recycle : bool
        Whether what goes is partly merged.
    official : bool
        As the authors' code counts: the merged tokens come on top of the list.

    Notes
    -----
    Stage: decoder, several stops. Raters, once per span, from the language model's INPUT embeddings: with
    ``M = softmax_text(H_v H_t^T)`` `[N, T]` over the text behind the span, text token j is a rater if ``mean_v M[v,
    j]`` exceeds the mean. Score of visual token i at a stop: ``mean over heads and raters of A[h, j, i]``, A the
    attention of the layer before. Of the n' tokens that go, the best ``floor(0.3 n') + 1`` are recycled: density-peak
    clustering (``dpc_knn``) of their hidden states into ``floor(r / 10) + 1`` clusters, whose means take their place.
    O(H T d L) for the attention rows of all text, O(r^2 D) for the clusters.

    What the authors' code (v1.5) does differently: merged tokens come on top of the asked count (here they are part of
    it unless `official`) and stand behind the kept ones with contiguous positions (here each stands where its
    cluster's centre stood, and positions stay); densities get a noise of 1e-6 (here none). Their v2.0, which divides
    out the rotary part of the logits and picks heads, is not implemented. A span without text behind it is rated by all
    text; where no token exceeds the mean, all of it rates. Scores that are not finite come last.
    """

    budget: int | None = None
    counts: tuple[int, ...] | None = None
    rank_scale: float | None = None
    layers: tuple[int, ...] | None = None
    recycle: bool = True
    official: bool = False

    stage: ClassVar[str] = "decoder"
    paper: ClassVar[str] = "arXiv 2410.04417"
    signals: ClassVar[tuple[Signal, ...]] = (DecoderAttention(queries="text"), Projected(), TextEmbeddings())
    merges: ClassVar[bool] = True
    uses_text: ClassVar[bool] = True
    ragged: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.budget is not None and self.budget not in LISTS:
            raise ValueError(
                f"sparsevlm.budget={self.budget!r}: the authors' lists are for {', '.join(map(str, LISTS))}"
            )
        given = [n for n in ("budget", "counts", "rank_scale") if getattr(self, n) is not None]
        if len(given) > 1 or (self.keep is not None and given not in ([], ["rank_scale"])):
            both = " and ".join([*(["keep"] if self.keep is not None else []), *given])
            raise ValueError(f"sparsevlm: {both} all say what is kept; give one of them")
        if self.rank_scale is not None and not 0 < self.rank_scale <= 1:
            raise ValueError(f"sparsevlm.rank_scale={self.rank_scale} is out of range: it must be in (0, 1]")
        for name in ("layers", "counts"):
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, tuple(value))
                if not value or any(v < 1 for v in value):
                    raise ValueError(f"sparsevlm.{name}={value!r} must be ints >= 1")
        if self.layers is not None and list(self.layers) != sorted(set(self.layers)):
            raise ValueError(f"sparsevlm.layers={self.layers} must rise")
        if self.official or self.rank_scale is not None:
            self.adaptive_count = True  # type: ignore[misc]  # of this instance only

    def stops(self, depth: int) -> tuple[Stop, ...]:
        """The layers with what each keeps."""
        layers = self.layers or tuple(sorted({scaled_layer(layer, PAPER[1], depth) for layer in PAPER[0]}))
        counts = LISTS[self.budget] if self.budget is not None else self.counts
        keeps: tuple[int | float | None, ...]
        if self.rank_scale is not None:
            keeps = (1 if self.keep is None else self.keep,) * len(layers)
        elif counts is not None:
            if len(counts) < len(layers) or (self.layers is not None and len(counts) != len(layers)):
                raise ValueError(f"sparsevlm: {len(counts)} counts for the {len(layers)} layers {layers}")
            keeps = counts[-len(layers) :]
        else:
            keeps = (None,) * len(layers) if self.keep is None else pyramid(self.keep, len(layers))
        return tuple(Stop(self.stage, layer, keep) for layer, keep in zip(layers, keeps, strict=True))

    def select(self, tokens: VisualTokens, k: int) -> Tensor | Merged:
        """Kept tokens, best first, then the clusters' centres with their means."""
        split = self.split(tokens)
        n = split.order.shape[1]
        total = split.kept + split.clusters
        most = min(n, 3 * n // 10 + 1)
        clusters = most // 10 + 1
        width = k if not self.adaptive_count else min(n, k + clusters) if self.rank_scale is None else n
        rank = torch.arange(width, device=total.device).expand(len(total), -1)
        kept = split.order.gather(1, rank.clamp(max=n - 1))
        beyond = rank >= total[:, None]
        if not self.recycle:
            return kept.masked_fill(beyond, -1) if self.adaptive_count else kept
        place = torch.arange(most, device=total.device)
        columns = split.order.gather(1, (split.kept[:, None] + place).clamp(max=n - 1))
        real = place < split.recycled[:, None]
        x = wide(take(tokens.features, columns)).masked_fill_(~real[..., None], 0)
        found = dpc_knn(x, split.clusters, split.clusters, clusters, real)
        means = cluster_means(x, found.owner, found.centres.shape[1]).to(tokens.features.dtype)
        turn = (rank - split.kept[:, None]).clamp(0, found.centres.shape[1] - 1)
        is_merged = rank >= split.kept[:, None]
        index = torch.where(is_merged, columns.gather(1, found.centres.gather(1, turn)), kept)
        features = torch.where(is_merged[..., None], take(means, turn), take(tokens.features, index))
        return Merged(index.masked_fill(beyond, -1) if self.adaptive_count else index, features)

    def split(self, tokens: VisualTokens) -> Split:
        """Which tokens stay, and how many of the others are merged into how many."""
        rows = self.rows(tokens)
        n = torch.tensor(list(tokens.counts), device=rows.device)
        asked = torch.tensor(list(tokens.budgets), device=rows.device)
        if self.rank_scale is not None:
            gone = (self.rank_scale * (n - torch.linalg.matrix_rank(rows.nan_to_num(0, 0, 0)))).long()
            asked = torch.minimum(torch.maximum(asked, n - gone), n)
        kept, clusters = asked, torch.zeros_like(asked)
        if self.recycle:
            clusters = (3 * (n - asked) // 10 + 1) // 10 + 1
            clusters = torch.where(n > asked, clusters, 0)
            if not self.official:  # merged tokens are part of the count
                clusters = torch.minimum(clusters, asked - 1)
                kept = asked - clusters
        recycled = torch.where(clusters > 0, 3 * (n - kept) // 10 + 1, 0)
        order = top_k(self.score(tokens, rows), tokens.ids.shape[1], tokens.valid)
        return Split(order, kept, recycled, clusters)

    def raters(self, tokens: VisualTokens) -> Tensor:
        """`[B, T]` bool, the text tokens whose attention counts; found at a span's first stop and remembered."""
        known = tokens.state.setdefault("raters", {})
        missing = [i for i, span in enumerate(tokens.span) if span not in known]
        if missing:
            found = self._find_raters(tokens)
            known.update({tokens.span[i]: found[i] for i in missing})
        return torch.stack([known[span] for span in tokens.span])

    @staticmethod
    def _find_raters(tokens: VisualTokens) -> Tensor:
        image = wide(tokens.read(Projected()))
        text = wide(tokens.text(TextEmbeddings()))[tokens.sample]
        after = tokens.text_valid(after=True)
        after = torch.where(after.any(1, keepdim=True), after, tokens.text_valid()[tokens.sample])
        relevance = (image @ text.transpose(1, 2)).masked_fill(~after[:, None], float("-inf")).softmax(-1)
        relevance = relevance.masked_fill(~tokens.valid[..., None], 0).sum(1) / tokens.valid.sum(1, keepdim=True)
        mean = relevance.sum(1, keepdim=True) / after.sum(1, keepdim=True)
        chosen = (relevance > mean) & after
        return torch.where(chosen.any(1, keepdim=True), chosen, after)

    def rows(self, tokens: VisualTokens) -> Tensor:
        """The raters' attention to the visual tokens, mean over heads, `[B, T, N]` float32; zeros for other text."""
        attention = wide(tokens.read(self.signals[0])).mean(1)
        return attention.masked_fill(~self.raters(tokens)[..., None], 0)

    def score(self, tokens: VisualTokens, rows: Tensor) -> Tensor:
        """Mean over the raters, `[B, N]`."""
        return rows.sum(1) / self.raters(tokens).sum(1, keepdim=True)
