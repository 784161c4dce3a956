"""What a method may ask of the model, declared before anything runs.

A pruner lists its signals in ``Pruner.signals``; the host computes those and nothing else, and never by switching the
model to eager attention. ``layer=None`` always means "the layer that matters here": for encoder signals the layer whose
output the projector reads, for decoder signals the layer right before the pruning layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Signal:
    """One thing that a method reads beside the tokens' own features."""

    part: ClassVar[str] = ""
    is_attention: ClassVar[bool] = False

    def __str__(self) -> str:
        fields = ", ".join(f"{k}={v}" for k, v in vars(self).items() if v is not None)
        return f"{type(self).__name__}({fields})"


def known_signals(of: type[Signal] = Signal) -> list[str]:
    """Names of all kinds of signals."""
    found = [name for cls in of.__subclasses__() for name in [*known_signals(cls), cls.__name__]]
    return sorted({name for name in found if name not in ("EncoderSignal", "DecoderSignal")})


def as_signal(given: object, call: str) -> Signal:
    """`given`, if it is a signal.

    Parameters
    ----------
    given : object
        What ``tokens.read`` or ``tokens.text`` got.
    call : str
        Which of the two.

    Raises
    ------
    TypeError
        Saying how the signal is written that was probably meant.
    """
    if isinstance(given, Signal):
        return given
    meant = given if isinstance(given, str) else getattr(given, "__name__", "")
    known = known_signals()
    close = [name for name in known if name.lower() == str(meant).lower().replace("_", "").partition("(")[0]]
    one = close[0] if close else "DecoderAttention"
    raise TypeError(
        f"tokens.{call} takes a signal that the method declares in `signals`, such as {one}(), not {given!r}: write "
        f"`from vtc.pruners.signals import {one}`, `signals = ({one}(),)` in the class and tokens.{call}({one}()). "
        f"There is: {', '.join(known)}"
    )


def check_signals(name: str, declared: object) -> None:
    """Refuse a ``signals`` that is no tuple of signals.

    Raises
    ------
    TypeError
        Naming the method and what it declares.
    """
    if not (isinstance(declared, (tuple, list)) and all(isinstance(signal, Signal) for signal in declared)):
        raise TypeError(
            f"{name}.signals must be a tuple of signals such as (DecoderAttention(),), got {declared!r}; "
            f"vtc.pruners.signals has: {', '.join(known_signals())}"
        )


def _check_one_of(signal: Signal, name: str, allowed: Sequence[str | None]) -> None:
    """Raise ValueError where an argument of a signal is none of those that are allowed."""
    value = getattr(signal, name)
    if value not in allowed:
        *others, last = map(repr, allowed)
        raise ValueError(f"{type(signal).__name__}.{name} must be {', '.join(others)} or {last}, got {value!r}")


@dataclass(frozen=True)
class EncoderSignal(Signal):
    """A signal of one vision-encoder layer; negative layers count from the end, -1 is the last layer.

    A float in [0, 1) is a share of the encoder's depth: 5 / 24 is layer 5 of 24, and where that is in another encoder.
    """

    part: ClassVar[str] = "encoder"
    layer: int | float | None = None


@dataclass(frozen=True)
class EncoderAttention(EncoderSignal):
    """Attention of an encoder layer towards each token, per head: `[B, H, N]`.

    ``queries="cls"`` is the class token's row (refused on towers without one), ``"received"`` the mean over queries,
    ``"auto"`` the class token's row where there is one and the mean over all queries elsewhere, ``"cls_or_none"`` that
    row or zeros, `[B, 1, N]`. ``"mean"`` is the row of the mean query (of each attention window or frame), as a
    multiple of the average key's so that windows of different sizes compare; ``"global"`` is the class token's row
    where there is one and that elsewhere.

    ``of="values"`` puts the values in the place of queries and keys, unscaled (not with ``"received"``).

    ``joint_heads=True`` leaves the heads of queries and keys side by side, ``softmax(q k^T / sqrt(H d))``: `[B, 1, N]`.

    ``logits=True`` gives the class token's row before the softmax (``queries="cls"`` or ``"cls_or_none"``).
    """

    is_attention: ClassVar[bool] = True
    queries: str = "auto"
    of: str | None = None
    joint_heads: bool = False
    logits: bool = False

    @property
    def reads_cls(self) -> bool:
        """Whether it is the class token's row where there is one."""
        return self.queries not in ("received", "mean")

    def __post_init__(self) -> None:
        _check_one_of(self, "of", (None, "values"))
        if self.of and self.queries not in ("cls", "mean", "global"):
            raise ValueError(
                f"EncoderAttention(of='values') needs queries 'cls', 'mean' or 'global', not {self.queries!r}"
            )
        if self.logits and (self.queries not in ("cls", "cls_or_none") or self.of):
            raise ValueError(
                f"EncoderAttention(logits=True) needs queries 'cls' or 'cls_or_none', not {self.queries!r}"
            )


@dataclass(frozen=True)
class EncoderQueries(EncoderSignal):
    """Queries of an encoder layer, heads side by side, not yet scaled: `[B, N, U, H*d]` (`U` patches per token)."""


@dataclass(frozen=True)
class EncoderKeys(EncoderSignal):
    """Keys of an encoder layer, heads side by side: `[B, N, U, H*d]` (`U` patches per token).

    ``heads="mean"`` is their mean over heads, `[B, N, U, d]`.
    """

    heads: str | None = None

    def __post_init__(self) -> None:
        _check_one_of(self, "heads", (None, "mean"))


@dataclass(frozen=True)
class EncoderValues(EncoderSignal):
    """Values of an encoder layer, heads side by side: `[B, N, U, H*d]` (`U` patches per token).

    ``heads="mean"`` is their mean over heads, `[B, N, U, d]`.
    """

    heads: str | None = None

    def __post_init__(self) -> None:
        _check_one_of(self, "heads", (None, "mean"))


@dataclass(frozen=True)
class EncoderSpecial(EncoderSignal):
    """What an encoder layer has of the tokens in front of the patches, heads side by side: `[B, R, P, H*d]`.

    The class token comes first, then registers and the like (P = 0 in a tower without a class token), once for each of
    the `R` rows (crops) that the tower runs a span as; rows that a span does not have hold zeros. ``of`` is ``"keys"``
    or ``"queries"``.
    """

    of: str = "keys"

    def __post_init__(self) -> None:
        _check_one_of(self, "of", ("keys", "queries"))


@dataclass(frozen=True)
class EncoderSegments(EncoderSignal):
    """Which patches see each other in an encoder layer, those of equal numbers: `[B, N, U, 1]` int64.

    A segment is a crop, a frame or a window, whatever the layer's attention is cut into. In a tower with a class token
    it is the row of ``EncoderSpecial`` that belongs to the patch. For the vision stage only: behind it, layouts tell.
    """


@dataclass(frozen=True)
class EncoderFeatures(EncoderSignal):
    """Output of an encoder layer: `[B, N, U, D_enc]` (`U` patches per token)."""


@dataclass(frozen=True)
class PreProjector(Signal):
    """What the projector reads: `[B, N, U, D_enc]` (`U` patches per token; 1 where the projector maps one to one)."""

    part: ClassVar[str] = "encoder"


@dataclass(frozen=True)
class Pixels(Signal):
    """Pixels of each patch, normalised as the tower is given them: `[B, N, U, C]` (`U` patches per token).

    Channels and, in towers of videos, frames lie side by side. For the vision stage only, which prunes at its first
    layer before any block of the tower has run.
    """

    part: ClassVar[str] = "encoder"


@dataclass(frozen=True)
class Projected(Signal):
    """Projected features, as they enter the language model, at any stage behind it: `[B, N, D]`."""

    part: ClassVar[str] = "input"


@dataclass(frozen=True)
class TextEmbeddings(Signal):
    """Input embeddings of the text: `tokens.text(TextEmbeddings())` is `[S, T, D]`."""

    part: ClassVar[str] = "input"


@dataclass(frozen=True)
class QuestionState(Signal):
    """What the language model makes of each sample's question ALONE: `tokens.text(QuestionState())` is `[S, D]`.

    Its last layer, behind the final norm, at the last token of: the tokenizer's BOS token if it has one, and the
    question. No template, no picture, no gradient; one pass over the questions of a batch, at the input stage only. A
    sample without pictures has zeros.

    ``of="words"`` takes the text behind the sample's last picture, up to ``ASSISTANT`` or the tokenizer's end token,
    and ``"image"`` where there is none; it needs the tokenizer. ``of="ids"`` takes the prompt's own ids behind that
    picture as they are, the template's among them, and needs none.
    """

    part: ClassVar[str] = "question"
    of: str = "words"

    def __post_init__(self) -> None:
        _check_one_of(self, "of", ("words", "ids"))


@dataclass(frozen=True)
class DecoderSignal(Signal):
    """A signal of one decoder layer before the pruning layer."""

    part: ClassVar[str] = "decoder"
    layer: int | None = None


@dataclass(frozen=True)
class DecoderAttention(DecoderSignal):
    """Attention rows of a decoder layer: `[B, H, R, N]` for `R` asked queries.

    ``queries="last"`` is the last prompt token (`R` = 1), ``"text"`` every text token (padding as in
    ``VisualTokens.text_valid``), ``"all"`` every column that the layer has, and ``"visual"`` the sum over all visual
    tokens of the sample (`R` = 1).

    ``heads="max"`` is the largest over heads, `[B, 1, R, N]`, of each query before any sum.
    """

    is_attention: ClassVar[bool] = True
    queries: str = "last"
    heads: str | None = None

    def __post_init__(self) -> None:
        _check_one_of(self, "queries", ("last", "text", "visual", "all"))
        _check_one_of(self, "heads", (None, "max"))


@dataclass(frozen=True)
class AttentionAhead(DecoderSignal):
    """Attention rows that the pruning layer itself would give on all present columns: `[B, H, R, N]`.

    ``queries`` as for ``DecoderAttention``. One extra attention of layer K on the states that enter it; ``layer`` stays
    None.

    ``content=True`` gives what queries and keys say of each other wherever they stand: their scaled products before
    rotary embedding, softmax and masks.
    """

    is_attention: ClassVar[bool] = True
    queries: str = "last"
    content: bool = False

    def __post_init__(self) -> None:
        _check_one_of(self, "queries", ("last", "text", "all"))

    @property
    def logits(self) -> bool:
        """Whether these are no shares of attention."""
        return self.content


@dataclass(frozen=True)
class DecoderKeys(DecoderSignal):
    """Keys of a decoder layer after rotary embedding, heads side by side and not repeated for GQA: `[B, N, H_kv*d]`."""


@dataclass(frozen=True)
class DecoderValues(DecoderSignal):
    """Values of a decoder layer, not repeated for GQA: `[B, N, H_kv, d]`."""


@dataclass(frozen=True)
class DecoderHidden(DecoderSignal):
    """Output of a decoder layer (residual stream): `[B, N, D]`."""


@dataclass(frozen=True)
class DecoderTransition(DecoderSignal):
    """How a sublayer of a decoder layer changes each token, norm and direction: `[B, N, 2]` float32.

    With x what enters the sublayer, behind the norm before it, and y what it returns, before anything else is done to
    it: ``||y|| / ||x||``, and the softmax of ``1 - cos(x, y)``.

    ``block`` is ``"attention"`` or ``"mlp"``. ``over`` says which tokens of the layer share the softmax: ``"sequence"``
    are all of the sample, text as well, ``"span"`` those of the span, newlines as long as they are there as well.
    ``absolute=True`` takes ``|cos|``.
    """

    block: str = "attention"
    over: str = "sequence"
    absolute: bool = False

    def __post_init__(self) -> None:
        _check_one_of(self, "block", ("attention", "mlp"))
        _check_one_of(self, "over", ("sequence", "span"))
