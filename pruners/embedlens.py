"""EmbedLens: drop the sink and dead tokens, which say the same in every image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.linalg import vector_norm

from vtc.pruners.primitives.greedy import farthest_point
from vtc.pruners.primitives.nearest_rows import TINY, among_nearest
from vtc.pruners.primitives.precision import wide, wide_dtype
from vtc.pruners.primitives.ranking import top_k
from vtc.pruners.primitives.vocabulary import Calibration, read_calibration, shipped

from .base import Pruner, Stop
from .registry import register_pruner
from .visual_tokens import VisualTokens

LLAVA_SHAPES = (32000, 4096), (32064, 4096)  # tables of LLaVA-1.5-7B: the authors' and transformers', padded
LLAVA_SINK, LLAVA_DEAD = (1141, 26673), (30296,)
CHUNK = 1024  # tokens widened together
ALIVE_SHARE = 0.6
RESTS = ("diversity", "norm")


@register_pruner("embedlens")
@dataclass(kw_only=True)
class EmbedLens(Pruner):
    """EmbedLens (CVPR 2026, arXiv 2603.00510): drop projected tokens that are sinks or dead, keep the alive ones.

    Parameters
    ----------
    keep : int or float, optional
        Tokens kept per span, exactly. Without it all alive tokens are kept, at least one; about 60% on LLaVA-1.5-7B.
    classes : str, optional
        A calibration of this very model, written by ``vtc embedlens --model ... --output classes.json``.
    sink, dead : sequence of int, optional
        Vocabulary ids of the classes instead. Without these and `classes`: the published ids on a model with
        LLaVA-1.5-7B's table (1141 and 26673; 30296), or a calibration that comes with vtc (the bundled model's).
    top : int
        With ids: a token is in a class if one of its `top` nearest vocabulary ids is. The authors' is 3.
    rest : {"diversity", "norm"}
        Which alive tokens stay where `keep` is less than their number: the most diverse ones (``divprune``), or those
        of largest norm. OURS.

    Notes
    -----
    Stage: input, on projected features x `[N, D]` and rows e of the INPUT embedding table `[V, D]`::

        class of ids C:       some of top-k_v cos(x_i, e_v) is in C            O(N V D), on the CPU less
        calibrated class c:   cos(x_i, m_c) >= t_c                              O(N |c| D)

    m_c is the mean unit vector of the class on the calibration images and t_c the cosine at which it agrees best with
    the ids; the calibration and its thresholds are OURS (the paper gives a recipe in words), and so is the second rule.
    Kept positions stay as they were. The ids are constants of one model's training: nothing transfers to another model,
    and only the shape of the table is compared here (LLaVA-NeXT on Vicuna has LLaVA-1.5-7B's: calibrate it).

    The authors give no budget. With `keep`, in this order: alive tokens by `rest`, dead ones by ascending cosine to
    their class (its m_c, or the nearest row of C), sinks likewise, and last what is not finite. OURS. To go on with
    another method's order instead, write a pipeline: ``embedlens() + dart(layer=2, keep=64)``. Limits: a model without
    such classes (small ones, or a projector that was trained otherwise) has only alive tokens.
    """

    classes: str | None = None
    sink: int | tuple[int, ...] | None = None
    dead: int | tuple[int, ...] | None = None
    top: int = 3
    rest: str = "diversity"

    paper: ClassVar[str] = "arXiv 2603.00510"
    ragged: ClassVar[bool] = True
    files: ClassVar[Mapping[str, str]] = {"classes": "embedlens.json"}

    def __post_init__(self) -> None:
        super().__post_init__()
        self.sink, self.dead = _ids("sink", self.sink), _ids("dead", self.dead)
        if self.classes is not None and (self.sink is not None or self.dead is not None):
            raise ValueError("embedlens.classes (a file) and embedlens.sink or .dead (ids) exclude each other")
        if self.top < 1:
            raise ValueError(f"embedlens.top={self.top!r} is out of range; it must be an int >= 1")
        if self.rest not in RESTS:
            raise ValueError(f"embedlens.rest={self.rest!r}; allowed are {', '.join(RESTS)}")
        if self.keep is None:
            self.adaptive_count = True  # type: ignore[misc]  # of this instance only

    @property
    def reads_vocabulary(self) -> bool:  # type: ignore[override]
        """Whether tokens are compared with the embedding table; a calibration file does without."""
        return self.classes is None

    def check_files(self) -> None:
        """The calibration."""
        if self.classes is not None:
            read_calibration(self.classes)

    def stops(self, depth: int) -> tuple[Stop, ...]:
        """Before the language model; without `keep` the published share of alive tokens is expected."""
        return (Stop(self.stage, None, ALIVE_SHARE if self.keep is None else self.keep),)

    def likeness(self, tokens: VisualTokens) -> tuple[Tensor, Tensor, Tensor]:
        """Which tokens are sinks and which dead (not both), `[B, N]` bool, and how much like it, `[B, N]` float32."""
        x = tokens.features
        norm = vector_norm(x, dim=-1, dtype=wide_dtype(x))
        usable = tokens.valid.to(x.device) & norm.isfinite()
        known = self._known(tokens)
        cosine, member = _by_direction(x, norm, known) if known else self._by_ids(tokens, norm)
        sink = member[0] & usable
        dead = member[1] & usable & ~sink
        return sink, dead, torch.where(sink, cosine[0], cosine[1]).nan_to_num(0.0)

    def select(self, tokens: VisualTokens, k: int) -> Tensor:
        """What is alive, or the `k` first of the order above, best first."""
        sink, dead, like = self.likeness(tokens)
        x, valid = tokens.features, tokens.valid.to(tokens.features.device)
        finite = vector_norm(x, dim=-1, dtype=wide_dtype(x)).isfinite()
        alive = valid & finite & ~sink & ~dead
        # tiers two apart: cosines stay inside theirs
        tier = torch.where(sink, -3.0 - like, torch.where(dead, -like, torch.where(finite, 3.0, -6.0)))
        order = self._order(x, alive, tier, valid, x.shape[1] if self.keep is None else k)
        if self.keep is not None:
            return order[:, :k].to(tokens.ids.device)
        columns = torch.arange(x.shape[1], device=x.device).expand_as(alive)
        kept = torch.where(alive, columns, -1)
        one = torch.where(columns == 0, order[:, :1], -1)
        return torch.where(alive.any(1, keepdim=True), kept, one).to(tokens.ids.device)

    def _order(self, x: Tensor, alive: Tensor, tier: Tensor, valid: Tensor, k: int) -> Tensor:
        """Columns from what is to be kept first on, `[B, >= k]`: by tier, alive ones by `rest`."""
        if self.rest == "norm" or self.keep is None:
            within = vector_norm(x, dim=-1, dtype=wide_dtype(x))
        else:
            first = farthest_point(x, k, alive)
            turn = torch.arange(k, 0, -1, device=x.device, dtype=torch.float32).expand_as(first)
            real = alive.gather(1, first) & (turn > k - alive.sum(1, keepdim=True))  # behind them columns repeat
            within = torch.zeros(x.shape[0], x.shape[1] + 1, device=x.device)
            within = within.scatter_(1, first.masked_fill(~real, x.shape[1]), turn)[:, :-1]
        # stable: first by what decides within the alive tier, then by tier
        inner = top_k(torch.where(alive, within, 0), x.shape[1], valid)
        outer = top_k(tier.gather(1, inner), x.shape[1], valid.gather(1, inner))
        return inner.gather(1, outer)

    def _known(self, tokens: VisualTokens) -> Calibration | None:
        """The calibration to use; None where ids say the classes."""
        shape = (tokens.vocabulary_size, tokens.features.shape[-1])
        if self.classes is not None:
            found = read_calibration(self.classes)
            if (found.vocabulary, found.hidden) != shape:
                raise ValueError(
                    f"embedlens.classes={self.classes!r} is of a model ({found.name}) with {found.vocabulary} "
                    f"embeddings of width {found.hidden}; this model has {shape[0]} of width {shape[1]}: calibrate it "
                    "with 'vtc embedlens --model ...'"
                )
            return found
        if self.sink is not None or self.dead is not None or shape in LLAVA_SHAPES:
            return None
        fits = [c for c in shipped() if (c.vocabulary, c.hidden) == shape]
        if not fits:
            raise ValueError(
                f"embedlens does not know the classes of this model ({shape[0]} embeddings of width {shape[1]}): run "
                "'vtc embedlens --model ... --output classes.json' and pass classes='classes.json', or pass sink=(...) "
                "and dead=(...) with vocabulary ids"
            )
        return fits[0]

    def _by_ids(self, tokens: VisualTokens, norm: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Of sinks and dead tokens, `[B, N]` each: the cosine to the nearest row of the class, and the membership."""
        x, table = tokens.features, tokens.embeddings
        given = _ids("sink", self.sink), _ids("dead", self.dead)
        if given == (None, None):
            given = LLAVA_SINK, LLAVA_DEAD
        cosine = []
        beyond = [i for ids in given for i in ids or () if i >= table.shape[0]]
        if beyond:
            raise ValueError(f"embedlens: the vocabulary has ids 0 to {table.shape[0] - 1}; {beyond} are none of them")
        classes = [torch.tensor(ids or (), dtype=torch.int64, device=table.device) for ids in given]
        member = among_nearest(x, table, min(self.top, table.shape[0]), classes)
        for mine in classes:
            rows = table[mine].to(x.device, wide_dtype(x))
            cosine.append(_largest(x, norm, rows / vector_norm(rows, dim=-1, keepdim=True).clamp(min=TINY))[0])
        return cosine, member


def _by_direction(x: Tensor, norm: Tensor, known: Calibration) -> tuple[list[Tensor], list[Tensor]]:
    """As ``EmbedLens._by_ids``, of calibrated classes."""
    cosine, member = [], []
    for kind in ("sink", "dead"):
        mine = [c for c in known.classes if c.kind == kind]
        rows = torch.stack([c.direction for c in mine]) if mine else torch.zeros(0, known.hidden)
        bars = torch.tensor([c.threshold for c in mine], device=x.device)
        largest, above = _largest(x, norm, rows.to(x.device), bars)
        cosine.append(largest)
        member.append(above)
    return cosine, member


def _largest(x: Tensor, norm: Tensor, rows: Tensor, bars: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Largest cosine with some unit `rows` `[C, D]` (-1 if there are none), and whether one reaches its bar."""
    rows = rows.to(wide_dtype(x))
    found = torch.cat([wide(part) @ rows.T for part in x.split(CHUNK, 1)], 1) / norm.clamp(min=TINY)[..., None]
    above = (found >= bars).any(-1) if bars is not None else torch.zeros_like(norm, dtype=torch.bool)
    return torch.nn.functional.pad(found, (0, 1), value=-1.0).amax(-1), above


def _ids(name: str, given: Any) -> tuple[int, ...] | None:
    """Vocabulary ids as a tuple."""
    if given is None:
        return None
    listed = tuple(given) if isinstance(given, (tuple, list)) else (given,)
    if any(i < 0 for i in listed):
        raise ValueError(f"embedlens.{name}={given!r}; it must be vocabulary ids, ints >= 0")
    return listed
