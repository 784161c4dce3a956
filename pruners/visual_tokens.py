"""What a method is given: the visual tokens at one place in the model, and what of the model it may read there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .layout import Layout
from .signals import Signal, as_signal

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass
class VisualTokens:
    """The visual tokens of `B` spans at one place in the model, padded on the right to a common length.

    Only image content is here: newline tokens are never candidates. All tensors live on one device.

    Attributes
    ----------
    features : Tensor
        `[B, N, D]` in the model's dtype: encoder states (vision stage, mean over the patches of a token), projected
        features (input stage) or hidden states (decoder stage).
    ids : Tensor
        `[B, N]` int64: index of each token in its full span, ascending; -1 is padding.
    counts : sequence of int
        Candidates of each row: its columns `0 .. counts[i] - 1` are real.
    budgets : sequence of int
        How many tokens each row keeps; `1 <= budgets[i] < counts[i]`.
    layouts : sequence of Layout
        Each row's full span as a picture (index it with `ids`).
    sample : Tensor
        `[B]` int64: the row of the batch (of `text()`) each span belongs to.
    order : sequence of int
        Position of each span among the spans of its sample. Seeds use it, so that a sample gives the same alone and
        in a batch.
    span : sequence of int
        Index of each span in the batch, as in ``model.vtc.report``.
    stage, layer : str, int or None
        Where we are.
    last : int or None
        Vision stage: the encoder layer whose output the projector reads.
    state : dict
        What the method wants to remember from one of its stops to the next, either inside the tower or behind it; new
        for every forward. A span that keeps all it has at a stop is left out of that call, so note things by ``span``.
        Vision: such spans are left out of the later calls as well.
    size : Tensor or None
        Vision stage, once a method has merged: `[B, N]` float32, how many tokens each one stands for.
    """

    features: Tensor
    ids: Tensor
    counts: Sequence[int]
    budgets: Sequence[int]
    layouts: Sequence[Layout]
    sample: Tensor
    order: Sequence[int]
    span: Sequence[int] = ()
    stage: str = "input"
    layer: int | None = None
    last: int | None = None
    state: dict[str, Any] = field(default_factory=dict, repr=False)
    size: Tensor | None = None
    source: SignalSource | None = field(default=None, repr=False)

    @property
    def valid(self) -> Tensor:
        """`[B, N]` bool: False is padding."""
        return self.ids >= 0

    def read(self, signal: Signal) -> Tensor:
        """A declared signal at these tokens; the signal's docstring gives the shape. Padding columns hold zeros."""
        known = as_signal(signal, "read")
        return self._source().read(known, self)

    def text(self, signal: Signal) -> Tensor:
        """A declared signal at the text tokens of each SAMPLE, `[S, T, ...]`; see ``text_valid`` for the padding."""
        known = as_signal(signal, "text")
        return self._source().text(known)

    def take(self, rows: list[int]) -> VisualTokens:
        """Some of the rows, cut to their longest; these themselves where it is all of them."""
        if len(rows) == len(self.counts):
            return self
        from torch import tensor

        width = max(self.counts[i] for i in rows)
        pick = tensor(rows, device=self.ids.device)
        return replace(
            self,
            features=self.features[pick, :width],
            ids=self.ids[pick, :width],
            counts=[self.counts[i] for i in rows],
            budgets=[self.budgets[i] for i in rows],
            layouts=[self.layouts[i] for i in rows],
            sample=self.sample[pick],
            order=[self.order[i] for i in rows],
            span=[self.span[i] for i in rows],
            size=None if self.size is None else self.size[pick, :width],
        )

    def text_valid(self, after: bool = False) -> Tensor:
        """`[S, T]` bool, the real text tokens; with ``after=True`` `[B, T]`: those behind each span's last token."""
        return self._source().text_valid(self if after else None)

    def final_norm(self, x: Tensor) -> Tensor:
        """The language model's last norm (the one before ``lm_head``) applied to hidden states `[..., D]`."""
        return self._source().final_norm(x)

    def project(self, x: Tensor) -> Tensor:
        """The model's projector on tokens as ``PreProjector`` gives them, `[..., U, D_enc]` to `[..., D]`."""
        return self._source().project(x)

    @property
    def signals(self) -> tuple[Signal, ...]:
        """What can be read here: the signals declared for this stop, their layers filled in."""
        return self._source().declared

    @property
    def projector(self) -> nn.Module:
        """The model's projector, for methods that read its weights."""
        return self._source().projector

    @property
    def embeddings(self) -> Tensor:
        """The language model's INPUT embedding table `[V, D]`, to be read only; rows up to one common factor."""
        return self._source().embeddings

    @property
    def vocabulary_size(self) -> int:
        """Rows `V` of ``embeddings``, told without touching them."""
        return self._source().vocabulary_size

    def questions(self) -> list[str]:
        """The text of each sample behind its last visual token, special tokens left out."""
        return self._source().questions()

    def count_flops(self, row: int, flops: int) -> None:
        """Have the report count so many FLOPs of the method's own network for the sample of `row`.

        For networks that compute much beside the model, and more for some inputs than for others.
        """
        if self.source is not None:
            self.source.count_flops(self, row, flops)

    def _source(self) -> SignalSource:
        if self.source is None:
            raise RuntimeError(
                "these VisualTokens were made without a model: only features, ids and layouts can be read"
            )
        return self.source


class SignalSource:
    """What the host implements to serve ``VisualTokens``' lazy reads."""

    declared: tuple[Signal, ...] = ()

    def read(self, signal: Signal, tokens: VisualTokens) -> Tensor:
        """See ``VisualTokens.read``."""
        raise NotImplementedError

    def text(self, signal: Signal) -> Tensor:
        """See ``VisualTokens.text``."""
        raise NotImplementedError

    def text_valid(self, tokens: VisualTokens | None) -> Tensor:
        """See ``VisualTokens.text_valid``."""
        raise NotImplementedError

    def final_norm(self, x: Tensor) -> Tensor:
        """See ``VisualTokens.final_norm``."""
        raise NotImplementedError

    def project(self, x: Tensor) -> Tensor:
        """See ``VisualTokens.project``."""
        raise NotImplementedError

    @property
    def projector(self) -> nn.Module:
        """See ``VisualTokens.projector``."""
        raise NotImplementedError

    @property
    def embeddings(self) -> Tensor:
        """See ``VisualTokens.embeddings``."""
        raise NotImplementedError

    @property
    def vocabulary_size(self) -> int:
        """See ``VisualTokens.vocabulary_size``."""
        raise NotImplementedError

    def count_flops(self, tokens: VisualTokens, row: int, flops: int) -> None:
        """See ``VisualTokens.count_flops``; nothing where there is no report."""

    def questions(self) -> list[str]:
        """See ``VisualTokens.questions``."""
        raise NotImplementedError
