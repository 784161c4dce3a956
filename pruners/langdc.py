"""LangDC: pools the frames of a video, and adds a token for each word that a small captioner says of a segment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from vtc.pruners.primitives.precision import wide
from vtc.pruners.trained.captioner import CONFIG, Captioner
from vtc.pruners.trained.captions import (
    Projector,
    caption_lengths,
    caption_states,
    pool_centres,
    pool_grid,
    pooled_shape,
)
from vtc.pruners.trained.compressor import TrainedCompressor
from vtc.pruners.trained.windows import present_grids

from .base import Merged, Stop
from .registry import register_pruner
from .signals import PreProjector, Signal
from .visual_tokens import VisualTokens

RULES = ("paper", "code")
PAPERS_STATE = 15 / 24  # of the captioner's layers
PAPERS_KEEP = 36 / 576
IGNORED = -100


class SegmentCaptions(nn.Module):
    """A captioner, what it is shown through (``look``), and what its states go through to be tokens (``post``).

    Parameters
    ----------
    sizes : mapping
        ``source`` and ``width`` of what is read and of the model; ``captioner``, a configuration; ``before`` and
        ``behind``, ids around what is shown; ``end`` and ``pad``; the ``longest`` caption; its ``state``.
    """

    def __init__(self, sizes: Mapping[str, Any]):
        super().__init__()
        self.captioner = Captioner(sizes["captioner"])
        width = sizes["captioner"]["hidden_size"]
        self.look, self.post = Projector(sizes["source"], width), Projector(width, sizes["width"])
        self.before, self.behind = list(sizes["before"]), list(sizes["behind"])
        if not self.behind:
            raise ValueError("nothing stands behind what the captioner is shown")
        self.end, self.pad, self.longest = (int(sizes[name]) for name in ("end", "pad", "longest"))
        self.taught: Tensor | None = None
        self.loss: Tensor | None = None

    def forward(self, x: Tensor, *, there: Tensor | None = None, state: str = RULES[0]) -> Any:
        """Captions of segments; without `there` what patches `[..., source]` look like, `[..., hidden]`.

        Parameters
        ----------
        x : Tensor
            `[S, P, hidden]`, what each segment's frames look like, pooled.
        there : Tensor
            `[S, P]` bool.
        state : {"paper", "code"}
            See ``LangDC``.

        Returns
        -------
        tokens : Tensor
            `[S, T, width]`, one a step; gradients reach ``post`` alone.
        ids : Tensor
            `[S, T]` of the captions. With ``taught``, captions `[S, T]` (-100 behind their ends), these and their
            states; ``loss`` then is the captioner's.
        """
        if there is None:
            return self.look(x)
        layer = 0 if state == "code" else round(PAPERS_STATE * self.captioner.depth)
        if self.taught is not None:
            return self._taught(*self._prompt(x, there), self.taught.to(x.device), layer)
        with torch.no_grad():
            states, ids = self.captioner.say(*self._prompt(x, there), self.longest, layer, self.end, self.pad)
        return self.post(states), ids

    def _prompt(self, shown: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        parts = [torch.tensor(ids, device=shown.device) for ids in (self.before, self.behind)]
        before, behind = (self.captioner.words(x.long()).expand(len(shown), -1, -1) for x in parts)
        real = [there.new_ones(len(shown), len(x)) for x in parts]
        return torch.cat([before, shown, behind], 1), torch.cat([real[0], there, real[1]], 1)

    def _taught(self, x: Tensor, there: Tensor, ids: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Tokens and ids of captions that are given, and the captioner's loss on them."""
        if len(ids) != len(x):
            raise ValueError(
                f"captions are learnt one a segment, but these {len(ids)} questions show {len(x)} segments: give each "
                "question the frames of one segment"
            )
        known = ids != IGNORED
        said = ids.where(known, self.pad)
        x = torch.cat([x, self.captioner.words(said[:, :-1])], 1)
        states = self.captioner(x, torch.cat([there, known[:, :-1]], 1))
        asked = slice(there.shape[1] - 1, None)
        self.loss = cross_entropy(self.captioner.logits(states[-1][:, asked])[known], ids[known])
        return self.post(states[layer][:, asked].detach()), said

    def flops(self, patches: int, there: Tensor, steps: Sequence[int]) -> int:
        """FLOPs of a clip: `patches` looked at, what of them each segment is shown, `steps` said, all projectors."""
        look, post = (sum(p.numel() for p in m.parameters() if p.dim() == 2) for m in (self.look, self.post))
        around = len(self.before) + len(self.behind)
        said = (self.captioner.flops(n + around, t) for n, t in zip(there.sum(1).tolist(), steps, strict=True))
        return 2 * patches * look + sum(said) + 2 * sum(steps) * post


@register_pruner("langdc")
@dataclass(kw_only=True)
class LangDC(TrainedCompressor):
    """LangDC (Wang et al., EMNLP 2025, arXiv 2509.00969): few pooled tokens, and as many more as a caption is long.

    Parameters
    ----------
    keep : int or float, optional
        POOLED tokens per span, at most: a frame gets its share of them, in the shape of its grid. 36 of 576 by default,
        the paper's. Caption tokens come on top, so that a span keeps more than this.
    weights : str, optional
        See ``TrainedCompressor``. ``"untrained"`` has a captioner of random weights that says nothing of use.
    length : {"paper", "code"}
        How many tokens a caption becomes: up to its end and with it, or as in the published code, where the longest
        caption of a clip loses its last step.
    state : {"paper", "code"}, optional
        What a token is made of: the captioner's state at 15/24 of its depth, or as in the published code the embedding
        of the word before. By default what the network was trained with.
    join : bool
        Whether the pictures of a prompt are the frames of one clip, as models without videos are shown them. False
        takes each picture for a segment by itself, as a lone picture is.

    Notes
    -----
    Stage: input; merges, and the count is the captioner's choice. With x the patches that the projector reads, segments
    of ``frames`` frames each (4), a frame pooled to ``side x side`` (half its grid's), and C a small causal language
    model that runs greedily, all segments as one batch::

        shown  = [before, pool(W2 GELU(W1 x)), behind];   u_1 .. u_T = C's words on it, up to its end
        tokens = [pool(projector(x)) of all frames,  V2 GELU(V1 h_1) .. V2 GELU(V1 h_T) of all segments]

    where h_j is the state that u_j is predicted from. C learns captions that list what is to be seen, so that a
    segment that shows more gets more tokens. Caption tokens take the last places of the clip's last span, at most as
    many as there are. O(n D), and up to ``longest`` steps of C one after the other: FLOPs are reported
    (``report.own_flops``), and the time is more than these tell.

    The parts are those of the authors' code (its vectors hold). OURS are: one tower, where they add a video encoder's
    tokens for each segment; captions that are generated in training too, not given; a frame's grid that is no square;
    crops as frames. Paper and code differ in ``length`` and ``state``.
    """

    length: str = RULES[0]
    state: str | None = None
    join: bool = True

    paper: ClassVar[str] = "arXiv 2509.00969"
    signals: ClassVar[tuple[Signal, ...]] = (PreProjector(),)
    adaptive_count: ClassVar[bool] = True
    merges: ClassVar[bool] = True
    order_dependent: ClassVar[bool] = True
    ragged: ClassVar[bool] = True
    captions: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("length", self.length), ("state", self.state)):
            if value not in (*RULES, None):
                raise ValueError(f"langdc.{name}={value!r}; allowed are {', '.join(RULES)}")

    def stops(self, depth: int) -> tuple[Stop, ...]:
        """Before the language model."""
        return (Stop(self.stage, None, PAPERS_KEEP if self.keep is None else self.keep),)

    def sizes_for(self, tokens: VisualTokens) -> dict[str, Any]:
        """Widths of what is read and of the language model, and a tiny captioner unless ``start`` has another."""
        source, width = tokens.read(self.signals[0]).flatten(2).shape[-1], tokens.features.shape[-1]
        new = {"captioner": CONFIG, "before": [1], "behind": [3], "end": 2, "pad": 0, "longest": 8, "side": 2}
        if self.start[0]:
            new = {"side": -(-max(max(g.rows, g.cols) for g in tokens.layouts[0].grids) // 2), **self.start[0]}
        return {"source": source, "width": width, "frames": 4, "state": RULES[0], **new}

    @classmethod
    def build(cls, sizes: Mapping[str, Any]) -> nn.Module:
        """A ``SegmentCaptions``."""
        return SegmentCaptions(sizes)

    @classmethod
    def learning(cls, network: nn.Module, stage: str) -> list[nn.Parameter]:
        """In the stage "caption" the captioner and what it looks through, else what its states go through."""
        assert isinstance(network, SegmentCaptions)
        modules = (network.captioner, network.look) if stage == "caption" else (network.post,)
        return [p for module in modules for p in module.parameters()]

    def select(self, tokens: VisualTokens, k: int) -> Merged:
        """Pooled tokens at their windows' centres, and behind them all captions of a clip."""
        self.network(tokens)
        clips = self._clips(tokens)
        captions = self._captions(tokens, clips)
        rows: dict[int, tuple[Tensor, Tensor]] = {}
        for clip, said in zip(clips, captions, strict=True):
            for row in clip:
                places, found = self._pooled(tokens, row)
                if row == clip[-1]:
                    n = tokens.counts[row]
                    said = said[: n - len(places)].to(found)
                    # all that is pooled comes before the captions
                    limit = n - len(said) - len(places) + torch.arange(len(places))
                    places = torch.cat([places.minimum(limit), torch.arange(n - len(said), n)])
                    found = torch.cat([found, said])
                rows[row] = places, found
        order = range(len(tokens.counts))
        index = pad_sequence([rows[i][0] for i in order], batch_first=True, padding_value=-1)
        features = pad_sequence([rows[i][1] for i in order], batch_first=True)
        return Merged(index.to(tokens.ids.device), features.to(tokens.features.dtype))

    def _clips(self, tokens: VisualTokens) -> list[list[int]]:
        """Rows that are shown as one video, in their order."""
        found: dict[tuple[int, int], list[int]] = {}
        samples = tokens.sample.tolist()
        for row in sorted(range(len(samples)), key=lambda i: (samples[i], tokens.order[i])):
            alone = not self.join or len(tokens.layouts[row].grids) > 1
            found.setdefault((samples[row], row if alone else -1), []).append(row)
        return list(found.values())

    def _captions(self, tokens: VisualTokens, clips: Sequence[Sequence[int]]) -> list[Tensor]:
        """Caption tokens of each clip, `[n, D]`."""
        sizes, side = self.sizes, self.sizes["side"]
        patches = self.run(tokens, tokens.read(self.signals[0]).flatten(2))
        segments, of_clip = [], []
        for clip in clips:
            maps = [
                pool_grid(part, grid, (side, side))[0]
                for row in clip
                for grid, part in _frames(tokens, row, patches[row])
            ]
            parts = [torch.cat(maps[i : i + sizes["frames"]]) for i in range(0, len(maps), sizes["frames"])]
            segments += parts
            of_clip.append(len(parts))
        shown = pad_sequence(segments, batch_first=True)
        there = torch.arange(shown.shape[1]) < torch.tensor([len(s) for s in segments])[:, None]
        state = self.state or sizes["state"]
        found, ids = self.run(tokens, shown, there=there.to(shown.device), state=state)
        network = self.network(tokens)
        assert isinstance(network, SegmentCaptions)
        steps = caption_lengths(ids, network.end, network.pad, official=False)
        captions, first = [], 0
        for clip, count in zip(clips, of_clip, strict=True):
            own = slice(first, first + count)
            ran = max(steps[own])  # a clip alone ends with its longest caption
            lengths = caption_lengths(ids[own, :ran], network.end, network.pad, official=self.length == "code")
            captions.append(caption_states([found[own]], lengths, 0))
            looked = sum(tokens.counts[row] for row in clip)
            tokens.count_flops(clip[0], network.flops(looked, there[own], steps[own]))
            first += count
        return captions

    def _pooled(self, tokens: VisualTokens, row: int) -> tuple[Tensor, Tensor]:
        """Places `[n]` and features `[n, D]` of a span's pooled frames."""
        frames = _frames(tokens, row, tokens.features[row])
        each, more = divmod(tokens.budgets[row], len(frames))
        places, found, start = [], [], 0
        for i, (grid, part) in enumerate(frames):
            most = each + (i < more)
            if most:
                shape = pooled_shape(grid, most)
                places.append(torch.from_numpy(pool_centres(grid, shape)) + start)
                found.append(pool_grid(wide(part), grid, shape)[0])
            start += grid[0] * grid[1]
        return torch.cat(places), torch.cat(found)


def _frames(tokens: VisualTokens, row: int, values: Tensor) -> list[tuple[tuple[int, int], Tensor]]:
    """Rows and columns of each frame of a span, and what of `values` `[N, D]` is its, `[1, rows * cols, D]`."""
    grids = [(g.rows, g.cols) for g in present_grids(tokens, row).grids]
    parts = values[: tokens.counts[row]].split([rows * cols for rows, cols in grids])
    return [(grid, part[None]) for grid, part in zip(grids, parts, strict=True)]
