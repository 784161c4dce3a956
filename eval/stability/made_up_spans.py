"""Made-up spans with everything that a method may read, of the right shapes and kinds: choices without a model.

All numbers are drawn by a seed and the name of what they stand for, so that two methods, or one method twice, see the
same; nothing is drawn that nobody reads.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from vtc.pruners.layout import Grid, Layout
from vtc.pruners.signals import (
    AttentionAhead,
    DecoderAttention,
    DecoderHidden,
    DecoderKeys,
    DecoderTransition,
    DecoderValues,
    EncoderAttention,
    EncoderKeys,
    EncoderSegments,
    EncoderSignal,
    EncoderSpecial,
    EncoderValues,
    Pixels,
    PreProjector,
    Projected,
    QuestionState,
    Signal,
    TextEmbeddings,
)
from vtc.pruners.visual_tokens import SignalSource, VisualTokens

SEGMENTS = 2  # of a span, for signals that tell segments apart


@dataclass(frozen=True)
class Sizes:
    """Heads, patches per token, channels of a patch, of the decoder and of a head, text tokens, and vocabulary."""

    heads: int = 16
    unit: int = 1
    encoder: int = 1024
    decoder: int = 1024
    head: int = 64
    text: int = 32
    vocabulary: int = 1000


def shape_of(signal: Signal, n: int, sizes: Sizes) -> tuple[int, ...]:
    """What `signal` is for `n` tokens of one span: attention `[H, n]` or `[H, R, n]`, others `[n, ...]`.

    Raises
    ------
    NotImplementedError
        For a signal that is not known here.
    """
    if isinstance(signal, EncoderAttention):
        return (1 if signal.joint_heads else sizes.heads, n)
    if isinstance(signal, (DecoderAttention, AttentionAhead)):
        heads = 1 if getattr(signal, "heads", None) == "max" else sizes.heads
        return (heads, sizes.text if signal.queries == "text" else 1, n)
    if isinstance(signal, (EncoderKeys, EncoderValues)) and signal.heads == "mean":
        return (n, sizes.unit, sizes.head)
    if isinstance(signal, PreProjector | Pixels):  # pixels are about as many
        return (n, sizes.unit, sizes.encoder)
    if isinstance(signal, EncoderSegments):
        return (n, sizes.unit, 1)
    if isinstance(signal, EncoderSpecial):  # whatever the number of tokens
        return (SEGMENTS, 2, sizes.heads * sizes.head)
    if isinstance(signal, EncoderSignal):  # queries, keys, values; features are as wide
        return (n, sizes.unit, sizes.heads * sizes.head)
    if isinstance(signal, DecoderValues):
        return (n, sizes.heads, sizes.head)
    if isinstance(signal, DecoderTransition):
        return (n, 2)
    if isinstance(signal, DecoderKeys):
        return (n, sizes.heads * sizes.head)
    if isinstance(signal, QuestionState):  # of a sample
        return (sizes.decoder,)
    if isinstance(signal, (DecoderHidden, Projected, TextEmbeddings)):
        return (n, sizes.decoder)
    raise NotImplementedError(f"vtc does not know what a made-up {signal} looks like")


def kind_of_numbers(signal: Signal, x: Tensor) -> Tensor:
    """Normal numbers `x` turned into what `signal` holds: attention sums to 1, norms and shares are not negative."""
    if isinstance(signal, DecoderTransition):
        return x.abs()
    return x.softmax(-1) if signal.is_attention and not getattr(signal, "logits", False) else x


def segments(n: int, sizes: Sizes) -> Tensor:
    """``EncoderSegments`` of `n` tokens, `[n, U, 1]` int64."""
    return (torch.arange(n) * SEGMENTS // n)[:, None, None].expand(n, sizes.unit, 1).clone()


def picture(n: int) -> Layout:
    """A square picture of `n` tokens; a thumbnail and 2 x 2 or 3 x 3 crops where `n` is 5 or 10 squares of tokens.

    LLaVA-NeXT's 2,880 are the former.
    """
    for crops in (2, 3):
        side = round((n / (1 + crops**2)) ** 0.5)
        if (1 + crops**2) * side**2 == n:
            cuts = tuple(side * i for i in range(1, crops))
            large = Grid(crops * side, crops * side, "mosaic", cuts=(cuts, cuts))
            return Layout((Grid(side, side, "base"), large))
    side = round(n**0.5)
    return Layout((Grid(side, side),)) if side**2 == n else Layout.line(n)


def video(n: int, frame: int = 12) -> Layout:
    """`n` tokens as frames of ``frame x frame``; a picture where that does not divide them."""
    count, rest = divmod(n, frame**2)
    return picture(n) if rest or not count else Layout((Grid(frame, frame, "frame"),) * count)


Vary = Callable[[Tensor, torch.Generator], Tensor]


def unchanged(x: Tensor, _: torch.Generator) -> Tensor:
    """`x` as it was drawn."""
    return x


@dataclass
class Made(SignalSource):
    """One made-up span.

    Attributes
    ----------
    layout : Layout
        Its picture or frames.
    sizes : Sizes
        Of the model that there is not.
    seed : int
        Of all draws.
    vary : callable
        What becomes of everything drawn but the weights; its generator depends on seed and name alone.
    copies : bool
        Whether many tokens are equal in everything: a third of a picture's are different, and a video stands still for
        three frames at a time.
    """

    layout: Layout
    sizes: Sizes = field(default_factory=Sizes)
    seed: int = 0
    vary: Vary = unchanged
    copies: bool = False

    @cached_property
    def same_as(self) -> Tensor:
        """`[N]` int64: the token that each one is a copy of, its own number without ``copies``."""
        n, grid = self.layout.tokens, self.layout.grids[0]
        if not self.copies:
            return torch.arange(n)
        if grid.kind != "frame":
            return torch.randint(0, 1 + n // 3, (n,), generator=self._generator("copies"))
        frame, place = torch.arange(n) // grid.tokens, torch.arange(n) % grid.tokens
        return (frame - frame % 3) * grid.tokens + place

    def draw(self, name: str, *shape: int) -> Tensor:
        """Normal numbers of a name, float32."""
        return torch.randn(*shape, generator=self._generator(name))

    def _generator(self, name: str) -> torch.Generator:
        # torch's generator on the CPU looks at the lowest 32 bits of a seed alone
        return torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {name}".encode()))

    def _varied(self, name: str, x: Tensor) -> Tensor:
        return self.vary(x, self._generator(f"{name}, varied")) if x.is_floating_point() else x

    def features(self, stage: str, layer: int | None) -> Tensor:
        """`[N, D]` at one place of the model; of the encoder's width inside it."""
        width = self.sizes.encoder if stage == "vision" else self.sizes.decoder
        name = f"features {stage} {layer}"
        return self._varied(name, self.draw(name, self.layout.tokens, width))[self.same_as]

    def read(self, signal: Signal, tokens: VisualTokens) -> Tensor:
        """`signal` at the tokens that are left."""
        n, name = self.layout.tokens, str(signal)
        if isinstance(signal, EncoderSegments):
            found = segments(n, self.sizes)
        else:
            found = kind_of_numbers(signal, self.draw(name, *shape_of(signal, n, self.sizes)))
        found = self._varied(name, found)
        if isinstance(signal, EncoderSpecial):
            return found[None]
        ids = tokens.ids[0] if isinstance(signal, EncoderSegments) else self.same_as[tokens.ids[0]]
        return found[..., ids][None] if signal.is_attention else found[ids][None]

    def text(self, signal: Signal) -> Tensor:
        """`signal` at the text, all of which stands behind the span."""
        name = f"{signal} of the text"
        return self._varied(name, self.draw(name, *shape_of(signal, self.sizes.text, self.sizes)))[None]

    def text_valid(self, tokens: VisualTokens | None) -> Tensor:
        """All of it."""
        return torch.ones(1, self.sizes.text, dtype=torch.bool)

    def final_norm(self, x: Tensor) -> Tensor:
        """An RMS norm without weights."""
        return x * x.square().mean(-1, keepdim=True).add(1e-6).rsqrt()

    def project(self, x: Tensor) -> Tensor:
        """Through ``projector``, all patches of a token side by side."""
        return self.projector.to(x.dtype)(x.flatten(-2))

    @property
    def projector(self) -> nn.Module:
        """LLaVA's: linear, activation, linear."""
        width, wide = self.sizes.unit * self.sizes.encoder, self.sizes.decoder
        layers = nn.Linear(width, wide), nn.Linear(wide, wide)
        for i, layer in enumerate(layers):
            weight = self.draw(f"projector {i}", *layer.weight.shape) * layer.in_features**-0.5
            layer.weight.data, layer.bias.data = weight, self.draw(f"bias {i}", layer.out_features) * 0.1
        return nn.Sequential(layers[0], nn.GELU(), layers[1]).requires_grad_(False)

    @property
    def embeddings(self) -> Tensor:
        """A table of normal numbers."""
        return self._varied("table", self.draw("table", self.sizes.vocabulary, self.sizes.decoder))

    @property
    def vocabulary_size(self) -> int:
        """Its rows."""
        return self.sizes.vocabulary

    def questions(self) -> list[str]:
        """One question."""
        return ["what is it?"]


@dataclass
class MadeOnce(Made):
    """A made-up span that makes everything once, as it lies there in a model: for what is timed."""

    known: dict[Any, Any] = field(default_factory=dict)

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` gave the first time."""
        if key not in self.known:
            self.known[key] = make()
        return self.known[key]

    def read(self, signal: Signal, tokens: VisualTokens) -> Tensor:
        """As ``Made.read``, the same tensor every time."""
        return self.once((signal, tokens.layer, tokens.ids.shape[1]), lambda: self.at(signal).read(signal, tokens))

    def text(self, signal: Signal) -> Tensor:
        """As ``Made.text``."""
        return self.once(("text", signal), lambda: self.at(signal).text(signal))

    def at(self, signal: Signal) -> Made:
        """The span that `signal` is read of."""
        return Made(self.layout, self.sizes, vary=self.vary)

    def features(self, stage: str, layer: int | None) -> Tensor:
        """As ``Made.features``, the same in all layers."""
        return self.once(("features", stage), lambda: Made.features(self, stage, None))

    @property
    def projector(self) -> nn.Module:
        """As ``Made.projector``."""
        return self.once("projector", lambda: super(MadeOnce, self).projector)

    @property
    def embeddings(self) -> Tensor:
        """As ``Made.embeddings``."""
        return self.once("table", lambda: super(MadeOnce, self).embeddings)
