"""The contract between a method and the host: what a method is given, and what it gives back."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from .layout import Layout
from .parameters import check_parameters, is_int
from .signals import EncoderAttention, Signal, as_signal

STAGES = ("vision", "input", "decoder")


class Stop(NamedTuple):
    """A place where a method prunes: its stage, the layer (None at the input stage) and what it keeps there.

    ``keep=0`` withdraws every visual token there, without asking the method (decoder stage only). ``reads`` are the
    signals read there where they depend on the model's depth; by default the method's own.
    """

    stage: str
    layer: int | None
    keep: int | float | None
    reads: tuple[Signal, ...] | None = None


@dataclass(frozen=True)
class Merged:
    """Result of a merging method: `index [B, k]` as for ``Pruner.select`` and the new vectors `features [B, k, D]`.

    ``size [B, k]`` float says how many tokens each one stands for. It matters inside the vision tower only, where later
    layers add its logarithm to the attention logits towards that token, and later stops find it in ``tokens.size``.
    """

    index: Tensor
    features: Tensor
    size: Tensor | None = None


def check_keep(keep: Any, name: str = "keep") -> int | float:
    """Validate a keep value.

    Parameters
    ----------
    keep : int or float
        An int >= 1 is a number of tokens per span, a float in (0, 1] the fraction of the span's tokens.
    name : str
        How the argument is called in error messages.

    Raises
    ------
    TypeError
        If `keep` is no number.
    ValueError
        If it is out of range.
    """
    allowed = "an int >= 1 (tokens per image) or a float in (0, 1] (a fraction of them)"
    if isinstance(keep, bool) or not isinstance(keep, numbers.Real):
        raise TypeError(f"{name} must be {allowed}, got {keep!r} ({type(keep).__name__})")
    if isinstance(keep, numbers.Integral):
        if keep < 1:
            raise ValueError(f"{name}={keep} is out of range: it says what is KEPT and must be {allowed}")
        return int(keep)
    if not 0.0 < float(keep) <= 1.0:
        raise ValueError(f"{name}={keep} is out of range: it says what is KEPT and must be {allowed}")
    return float(keep)


def check_layer(layer: Any, name: str) -> None:
    """Raise TypeError where the layer of a stop of the method `name` is no layer's number."""
    if layer is not None and not is_int(layer):
        raise TypeError(f"{name}: layer must be an int, got {layer!r} ({type(layer).__name__})")


def resolve_keep(keep: int | float, n: int) -> int:
    """Tokens to keep of a span of `n`: an int is capped at `n`, a fraction is ``max(1, floor(keep * n + 0.5))``."""
    if isinstance(keep, float):
        return min(n, max(1, int(keep * n + 0.5)))
    return min(n, keep)


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
        What the method wants to remember from one of its stops to the next of the same stage and forward; new for every
        forward. Decoder: a span that keeps all it has at a stop is left out of that call, so note things by ``span``.
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

    def questions(self) -> list[str]:
        """See ``VisualTokens.questions``."""
        raise NotImplementedError


@dataclass(kw_only=True)
class Pruner:
    """A visual-token pruning method: a dataclass whose fields are its parameters.

    Parameters
    ----------
    keep : int or float, optional
        What is kept of each span, see ``check_keep``. Always counted from the span's ORIGINAL number of tokens.

    Notes
    -----
    Class attributes say what a method is: ``stage`` (or override ``stops``), ``signals`` (beside the features),
    ``paper``, and the flags ``adaptive_count`` (may keep another number than asked; then ``select`` returns -1 in
    unused columns), ``merges``, ``uses_text``, ``uses_question`` (reads the words behind the picture,
    ``VisualTokens.questions``), ``projects`` (runs the projector on single tokens, ``VisualTokens.project``),
    ``reads_vocabulary`` (compares with the input embedding table, ``VisualTokens.embeddings``),
    ``order_dependent`` (the choice depends on the order of the tokens), ``ragged`` (handles rows of different
    ``counts`` and ``budgets`` in one call; otherwise the host calls it once per group of equal rows), ``joins_crops``
    (behind the tower: a picture whose crops are spans of their own comes as ONE row, laid out as thumbnail and mosaic,
    with the sum of their budgets; a crop may then keep more or less than its own, or nothing, so that a later method
    that counts span by span may find fewer than it would keep), ``cascades`` (one near tie decides much of what comes
    after it, so that features that differ by rounding end in another set; the docstring says why. All others keep at
    least 98% of the same tokens when features change by 1e-6 of themselves, see ``vtc stability``).
    """

    keep: int | float | None = None

    name: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    stage: ClassVar[str] = "input"
    signals: ClassVar[tuple[Signal, ...]] = ()
    adaptive_count: ClassVar[bool] = False
    merges: ClassVar[bool] = False
    uses_text: ClassVar[bool] = False
    uses_question: ClassVar[bool] = False
    projects: ClassVar[bool] = False
    reads_vocabulary: ClassVar[bool] = False
    order_dependent: ClassVar[bool] = False
    ragged: ClassVar[bool] = False
    joins_crops: ClassVar[bool] = False
    cascades: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_parameters(self)
        if self.keep is not None:
            self.keep = check_keep(self.keep, f"{self.name or type(self).__name__}.keep")

    @property
    def uses_attention(self) -> bool:
        """Whether it reads attention weights."""
        return any(signal.is_attention for signal in self.signals)

    @property
    def uses_cls(self) -> bool:
        """Whether it reads the class token's attention where the tower has such a token."""
        return any(isinstance(signal, EncoderAttention) and signal.reads_cls for signal in self.signals)

    def stops(self, depth: int) -> tuple[Stop, ...]:
        """Where this method prunes in a decoder of `depth` layers; ``tokens.stage`` and ``.layer`` tell them apart."""
        return (Stop(self.stage, getattr(self, "layer", None), self.keep),)

    def tower_stops(self, stop: Stop, last: int) -> tuple[Stop, ...]:
        """What the vision-stage `stop` means in a tower whose layer `last` (from 0) the projector reads: itself.

        To be overridden by a method whose encoder layers depend on the tower's depth; its ``stops`` give one stop
        without a layer.
        """
        return (stop,)

    def signals_at(self, stop: Stop) -> tuple[Signal, ...]:
        """What is read at `stop`; to be overridden by a method that reads other signals at one stop than at another."""
        return () if stop.keep == 0 else self.signals if stop.reads is None else stop.reads

    def select(self, tokens: VisualTokens, k: int) -> Tensor | Merged:
        """Choose what to keep.

        Parameters
        ----------
        tokens : VisualTokens
            The candidates.
        k : int
            ``max(tokens.budgets)``.

        Returns
        -------
        Tensor
            `[B, k]` int64 columns of `tokens`, unique in each row, in any order; the host sorts. Of row `i` only the
            first ``tokens.budgets[i]`` entries are read. With ``adaptive_count`` `[B, any]`: all entries of row `i`
            that are not -1, 1 (at the decoder stage 0) to ``tokens.counts[i]`` of them.
        """
        raise NotImplementedError

    def check_files(self) -> None:
        """Read the files that parameters name, so that a wrong one is found before a model is loaded or wrapped.

        Called by ``vtc.load`` and ``vtc.compress``; to be overridden by a method with such parameters. Keep what was
        read: it is asked again in every ``compress``.

        Raises
        ------
        OSError, ValueError
            If a file is not there, or not what it should be.
        """

    def params(self) -> dict[str, Any]:
        """The parameters that differ from their defaults, as plain values."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{k}={v}' for k, v in self.params().items())})"


@dataclass(kw_only=True)
class ScorePruner(Pruner):
    """A method that scores each token by itself; the best `k` are kept, ties go to the lowest index."""

    ragged: ClassVar[bool] = True

    def score(self, tokens: VisualTokens) -> Tensor:
        """Importance of each token, `[B, N]`, higher is better. Padding may hold anything."""
        raise NotImplementedError

    def select(self, tokens: VisualTokens, k: int) -> Tensor:
        """The `k` best-scored tokens of each row, best first."""
        from .checked import check_score
        from .selection import top_k

        return top_k(check_score(self, self.score(tokens), tokens.valid), k, tokens.valid)
