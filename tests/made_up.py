"""Random spans with all that a method reads, whatever it is: what the property tests hand to methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from methods import Setting
from properties import Spans
from torch import Tensor, nn
from zoo.models import DEPTH

import vtc
from vtc.eval.stability.made_up_spans import Sizes, kind_of_numbers, segments, shape_of
from vtc.pruners.base import Pruner, Stop, resolve_keep
from vtc.pruners.layout import Grid, Layout
from vtc.pruners.signals import DecoderSignal, EncoderSegments, EncoderSpecial, QuestionState, Signal, TextEmbeddings

LAST = 4  # the tower's layer that the projector reads


SMALL = Sizes(heads=2, unit=2, encoder=6, decoder=32, head=4, text=5, vocabulary=100)


@dataclass(frozen=True)
class Place:
    """A method at one of its stops."""

    setting: Setting
    index: int
    stage: str

    def __str__(self) -> str:
        return f"{self.setting}@{self.stage}"

    def at(self, keep: int | float | None = None) -> tuple[Pruner, Stop]:
        """The method with this keep, and the stop."""
        [pruner] = vtc.parse(self.setting.pruner, keep=keep or self.setting.keep, **self.setting.params)
        return pruner, stops_of(pruner)[self.index]


def stops_of(pruner: Pruner) -> list[Stop]:
    """All stops in a model of the tests' depth."""
    return [stop for given in pruner.stops(DEPTH) for stop in pruner.tower_stops(given, LAST)]


def places_of(setting: Setting) -> list[Place]:
    """The first stop of each stage at which a method is asked."""
    [pruner] = vtc.parse(setting.pruner, keep=setting.keep, **setting.params)
    first: dict[str, int] = {}
    for i, stop in enumerate(stops_of(pruner)):
        if stop.keep != 0:
            first.setdefault(stop.stage, i)
    return [Place(setting, i, stage) for stage, i in first.items()]


def made_up(
    pruner: Pruner,
    stop: Stop,
    layouts: Sequence[Layout],
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    copies: bool = False,
    sizes: Sizes = SMALL,
    draw: Callable[..., Tensor] | None = None,
    gone: Sequence[int] = (),
) -> Spans:
    """Spans of these layouts for `pruner` at `stop`, one per sample.

    Parameters
    ----------
    copies : bool
        Whether many tokens are equal in everything.
    draw : callable, optional
        Makes a tensor of a shape; normal numbers by default.
    gone : sequence of int, optional
        Tokens that each span has lost already, which its budget counts.
    """
    g = torch.Generator().manual_seed(seed)
    make = draw or (lambda *shape: torch.randn(*shape, generator=g))
    counts = [layout.tokens for layout in layouts]
    lost_of = gone or [0] * len(counts)

    def per_token(signal: Signal, n: int) -> Tensor:
        if isinstance(signal, EncoderSegments):
            return segments(n, sizes)
        x = make(*shape_of(signal, n, sizes))
        return (kind_of_numbers(signal, x) if draw is None else x).to(dtype)

    signals = [s for s in pruner.signals_at(stop) if not isinstance(s, (QuestionState, TextEmbeddings))]
    features = [make(n, sizes.decoder).to(dtype) for n in counts]
    reads = {s: [per_token(s, n) for n in counts] for s in signals}
    if copies:
        for i, n in enumerate(counts):
            twin = torch.randint(0, 1 + n // 3, (n,), generator=g)
            features[i] = features[i][twin]
            for s, rows in reads.items():
                if isinstance(s, EncoderSpecial):
                    continue
                rows[i] = rows[i][..., twin] if s.is_attention else rows[i][twin]
    said = [s for s in pruner.signals_at(stop) if isinstance(s, (DecoderSignal, TextEmbeddings))]
    said = [s for s in said if not s.is_attention] or [TextEmbeddings()]
    said += [s for s in pruner.signals_at(stop) if isinstance(s, QuestionState)]
    width = sizes.unit * sizes.encoder
    inner, outer = nn.Linear(width, 7, dtype=dtype), nn.Linear(7, sizes.decoder, dtype=dtype)
    return Spans(
        features,
        [min(n, resolve_keep(stop.keep or 1.0, n + lost)) for n, lost in zip(counts, lost_of, strict=True)],
        reads,
        {s: [make(*shape_of(s, sizes.text, sizes)).to(dtype) for _ in counts] for s in said},
        layouts=layouts,
        stage=stop.stage,
        layer=stop.layer,
        last=LAST if stop.stage == "vision" else None,
        projector=nn.Sequential(inner, nn.GELU(), outer),
        questions=["what is it?"] * len(counts),
        table=torch.empty(sizes.vocabulary, sizes.decoder, dtype=dtype).normal_(generator=g)
        if pruner.reads_vocabulary
        else None,
    )


def moved(spans: Spans, order: Tensor) -> Spans:
    """The only span of `spans` with its tokens in another order."""
    return replace(
        spans,
        features=[spans.features[0][order]],
        reads={s: [_moved(s, rows[0], order)] for s, rows in spans.reads.items()},
    )


def _moved(signal: Signal, x: Tensor, order: Tensor) -> Tensor:
    if isinstance(signal, EncoderSpecial):
        return x
    return x[..., order] if signal.is_attention else x[order]


def layout_of(kind: str, rows: int, cols: int) -> Layout:
    """A line, a picture, frames, or a picture with crops of which padding was cut off."""
    if kind == "line":
        return Layout.line(rows * cols)
    if kind == "image":
        return Layout((Grid(rows, cols),))
    if kind == "frames":
        return Layout((Grid(rows, cols, "frame"),) * 3)
    mosaic = Grid(2 * rows - 1, 3 * cols, "mosaic", cuts=((rows - 1,), (cols, 2 * cols)))
    return Layout((Grid(rows, cols, "base"), mosaic))
