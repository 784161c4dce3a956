"""FlowCut: inside the vision encoder, step by step, what little information flows to goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from vtc.pruners.primitives.best_per_part import (
    best,
    budgets_of,
    columns_of,
    part_sizes,
    part_sums,
    per_token,
    rank_in_part,
    within_budgets,
)
from vtc.pruners.primitives.flow import (
    Flow,
    best_columns,
    flow_score,
    flow_signals,
    flows_on_host,
    kept_counts,
    kept_on_host,
    parts_or_none,
    shares,
)
from vtc.pruners.primitives.precision import wide
from vtc.pruners.primitives.ranking import top_k

from .base import Pruner, Stop
from .registry import register_pruner
from .signals import DecoderAttention, DecoderValues, Signal
from .visual_tokens import VisualTokens

DECODER: tuple[Signal, ...] = (DecoderAttention(), DecoderValues())


@register_pruner("flowcut")
@dataclass(kw_only=True)
class FlowCut(Pruner):
    """FlowCut (Tong et al., NeurIPS 2025, arXiv 2505.19536): redundancy seen through information flow.

    Parameters
    ----------
    keep : int or float
        Tokens kept per span after the last step, exactly.
    layer : int, optional
        Decoder layer before which a last step prunes from ``tower * keep`` to `keep`; None leaves it out. The paper
        uses 2 for LLaVA-NeXT and Qwen2-VL, None for LLaVA-1.5.
    tower : float
        With a `layer`: how many times `keep` the encoder keeps. The paper's is 2.
    history : float
        Weight of the importance so far; the paper's is 0.5.
    every : int
        Encoder layers between two cuts; the paper's is 2.
    semantic : bool
        Whether the similarity of values counts in the encoder. The authors' code for Qwen2-VL leaves it out there, the
        paper does not.
    official : bool
        All crops of a picture lose the same number in a step, the largest of theirs, as in the authors' code, which
        runs them as one batch; by default each loses its own.

    Notes
    -----
    Stage: vision, before layers L, L - `every`, ... of the encoder, L the layer whose output the projector reads
    (CLIP-L: 2, 4 ... 22), and decoder. Importance of token j at layer l: ``I_j = (a_j / sum a + s_j / sum s) d_j``:

    - a `[H, N]`: the class token's attention; without one the mean query's, as the authors do for Qwen2-VL;
    - s `[H, N]`: ``softmax(v_cls . v_j)`` over all tokens, unscaled (the paper divides by ``sqrt(d)``); without a class
      token the mean value's, as the paper says;
    - d: L1 norm of the value's mean over heads (the paper divides it by ``d_head``, which changes no choice).

    Over heads means are taken. Cumulative: ``C = history C + (1 - history) I`` at every layer. A cut with `left` layers
    to go drops ``round((n - T) / sqrt(left) (1 - H^2))`` tokens of n, H the relative entropy of a: much where attention
    is concentrated; the last one drops all above the target T. So counts on the way are adaptive and the final one is
    exact. Crops and frames have targets in proportion to their sizes and are normalised by themselves. O(N d) a layer.

    Decoder step: a over visual keys, s with the last token's value, scaled; no history.

    Deviations. Where a token is made of several patches (Qwen-VL, Gemma3), whole tokens go; the authors cut single
    patches of Qwen2-VL and merge what is left over. There the last cut is before the last block, theirs behind it. In
    windows (Qwen2.5-VL, untried by the authors) a and s are of the window's mean, weighted by its size. Their T for
    LLaVA-NeXT's crops is ``int(target / 2)`` each, which with five crops is 2.5 times the target and not the paper's 2.
    They renumber positions and insert no newlines; here positions stay.
    """

    layer: int | None = None
    tower: float = 2.0
    history: float = 0.5
    every: int = 2
    semantic: bool = True
    official: bool = False

    stage: ClassVar[str] = "vision"
    paper: ClassVar[str] = "arXiv 2505.19536"
    adaptive_count: ClassVar[bool] = True
    ragged: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.every < 1:
            raise ValueError(f"flowcut.every={self.every!r} is out of range; it must be an int >= 1")
        if not 0 <= self.history < 1:
            raise ValueError(f"flowcut.history={self.history} is out of range: it must be in [0, 1)")
        if not self.tower >= 1:
            raise ValueError(f"flowcut.tower={self.tower} is out of range: the encoder keeps at least `keep`, so >= 1")
        self.uses_text = self.layer is not None  # type: ignore[misc]

    @property
    def signals(self) -> tuple[Signal, ...]:  # type: ignore[override]
        """Of every encoder layer; and of the decoder layer before the last step, if there is one."""
        return flow_signals() if self.layer is None else (*flow_signals(), *DECODER)

    def stops(self, depth: int) -> tuple[Stop, ...]:
        """The encoder, whose layers ``tower_stops`` gives, and the decoder's layer if there is one."""
        if self.layer is None or self.keep is None:
            return (Stop("vision", None, self.keep),)
        scaled = self.keep * self.tower
        first = min(1.0, scaled) if isinstance(self.keep, float) else int(scaled + 0.5)
        return Stop("vision", None, first), Stop("decoder", self.layer, self.keep)

    def tower_stops(self, stop: Stop, last: int) -> tuple[Stop, ...]:
        """Every `every` layers, the last cut before layer `last`."""
        if last < 1:
            raise ValueError("flowcut needs an encoder of at least two layers, because it reads the layer before a cut")
        return tuple(Stop("vision", layer, stop.keep) for layer in reversed(range(last, 0, -self.every)))

    def signals_at(self, stop: Stop) -> tuple[Signal, ...]:
        """All layers since the last cut; of the decoder the layer before."""
        if stop.stage == "decoder":
            return DECODER
        if stop.layer is None:
            return flow_signals()
        return tuple(s for layer in self._since(stop.layer) for s in flow_signals(layer))

    def _since(self, layer: int) -> range:
        """Encoder layers whose flow the cut before `layer` takes in."""
        return range(max(0, layer - self.every), layer)

    def select(self, tokens: VisualTokens, k: int) -> Tensor:
        """In the encoder `[B, N]` with -1 behind what is kept now."""
        if tokens.stage == "decoder":
            return within_budgets(top_k(self._decoder_score(tokens), k, tokens.valid), tokens)
        assert tokens.layer is not None
        assert tokens.last is not None
        part, score, target = self._carried(tokens)
        count = target.shape[1]
        signals = [signal for layer in self._since(tokens.layer) for signal in flow_signals(layer)]
        flow = Flow.read(tokens, signals, self.semantic)
        if part is None and flow.is_plain:
            found = self._on_host(tokens, flow, score, target)
            if found is not None:
                return found
        flows, share = flow.scores(part, count)
        for now in flows:
            score = now if score is None else self.history * score + (1 - self.history) * now
        assert score is not None
        sizes = torch.full_like(target, score.shape[1]) if part is None else part_sizes(part, count).to(target)
        kept = kept_counts(share[-1], part, sizes, target, tokens.last - tokens.layer)
        if self.official:
            kept = torch.maximum(sizes - (sizes - kept).amax(1, keepdim=True), target)
        tokens.state.update(ids=tokens.ids, part=part, score=score, target=target, span=list(tokens.span), lies=False)
        if part is None:
            width = score.shape[1]
            order = top_k(score, width)
            order = order.masked_fill_(torch.arange(width, device=order.device) >= kept, width).sort(1).values
            return order.masked_fill_(order == width, -1)
        chosen = (rank_in_part(score, part, count) < per_token(kept, part)) & tokens.valid
        return columns_of(chosen, part.shape[1], exact=False)

    def _on_host(self, tokens: VisualTokens, flow: Flow, score: Tensor | None, target: Tensor) -> Tensor | None:
        """``select`` of rows without parts, on the CPU; None where something is not finite."""
        assert tokens.layer is not None
        assert tokens.last is not None
        made = flows_on_host(flow, None if score is None else score.numpy(), self.history)
        if made is None:
            return None
        left, scores, ids = tokens.last - tokens.layer, made[0], tokens.ids.numpy()
        kept = [kept_on_host(*given, left) for given in zip(made[1], target[:, 0].tolist(), strict=True)]
        rows = [best_columns(*given) for given in zip(scores, kept, strict=True)]
        lies = len(set(kept)) == 1  # what is left is what comes next time, and lies there
        if lies:
            ids = np.stack([mine[row] for mine, row in zip(ids, rows, strict=True)])
            scores = np.stack([mine[row] for mine, row in zip(scores, rows, strict=True)])
        tokens.state.update(
            part=None,
            target=target,
            span=list(tokens.span),
            lies=lies,
            ids=torch.from_numpy(ids),
            score=torch.from_numpy(scores),
        )
        most = max(kept)
        padded = [row if len(row) == most else np.pad(row, (0, most - len(row)), constant_values=-1) for row in rows]
        return torch.from_numpy(np.stack(padded))

    @staticmethod
    def _carried(tokens: VisualTokens) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """Parts as ``shares`` takes them, importance so far (None before the first cut), and each part's target."""
        state = tokens.state
        if not state:
            (part, count), budget = parts_or_none(tokens), budgets_of(tokens)
            if part is None:
                return part, None, budget.double()
            sizes = part_sizes(part, count)
            quota = budget * sizes / sizes.sum(1, keepdim=True)
            rank = rank_in_part(torch.zeros_like(part), part, count)
            shared = best(per_token(quota, part) - rank, budget, tokens.valid)
            return part, None, part_sums(shared.long(), part, count).double()
        before, score, target, part = state["ids"], state["score"], state["target"], state["part"]
        if state["span"] != list(tokens.span):
            rows = torch.tensor([state["span"].index(s) for s in tokens.span], device=before.device)
            before, score, target = before[rows], score[rows], target[rows]
            part = None if part is None else part[rows]
        if part is not None:
            before = torch.where(before < 0, torch.iinfo(before.dtype).max, before)
        now, padded = tokens.ids, min(tokens.counts) < tokens.ids.shape[1]
        if state.get("lies") and torch.equal(before, now):
            return None, score, target
        place = torch.searchsorted(before, now.clamp(min=0) if padded else now.contiguous())
        if part is not None and target.shape[1] > 1:
            part = part.gather(1, place).masked_fill_(~tokens.valid, target.shape[1])
        else:
            part = (~tokens.valid).long() if padded else None
        return part, score.gather(1, place), target

    def _decoder_score(self, tokens: VisualTokens) -> Tensor:
        """Importance at one decoder layer, `[B, N]` float32."""
        rows, values = DECODER
        valid = tokens.valid
        part = (~valid).long()
        attention = wide(tokens.read(rows))[:, :, 0].masked_fill(~valid[:, None], 0)
        attention = (attention / attention.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)).mean(1)
        value = wide(tokens.read(values))
        text = wide(tokens.text(values))
        turn = torch.arange(text.shape[1], device=text.device)
        at = torch.where(tokens.text_valid(), turn, -1).amax(1).clamp(min=0)
        last = text[torch.arange(text.shape[0], device=text.device), at][tokens.sample]
        logits = (value * last[:, None]).sum(-1) * value.shape[-1] ** -0.5
        semantic = logits.masked_fill(~valid[..., None], float("-inf")).softmax(1).mean(-1)
        both = shares(torch.stack([attention, semantic]), part, 1)
        return flow_score(both, value.mean(2).abs().sum(-1))
