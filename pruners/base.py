"""The contract between a method and the host: what a method says of itself, and what it gives back."""

from __future__ import annotations

import numbers
import struct
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from .check_parameter_kinds import check_parameters, is_int
from .signals import EncoderAttention, Signal
from .visual_tokens import VisualTokens

if TYPE_CHECKING:
    from torch import Tensor

    from .model_facts import ModelFacts

STAGES = ("vision", "input", "decoder")
# what a method may say of itself, see ``Pruner``
FLAGS = (
    "uses_text",
    "uses_question",
    "adaptive_count",
    "merges",
    "projects",
    "reads_vocabulary",
    "order_dependent",
    "ragged",
    "joins_crops",
    "cascades",
    "trained",
    "calibrates",
)


class Stop(NamedTuple):
    """A place where a method prunes: its stage, the layer (None at the input stage) and what it keeps there.

    ``keep=0`` withdraws every visual token there, without asking the method (decoder stage only). ``reads`` are the
    signals read there where they depend on the model's depth; by default the method's own.
    """

    stage: str
    layer: int | None
    keep: int | float | None
    reads: tuple[Signal, ...] | None = None


class Loan(Stop):
    """A stop whose tokens are back behind its layer: decoder layer `layer` is run by `ratio` of them.

    ``Pruner.select`` is given all visual tokens of a SAMPLE as one row, of all its pictures and what stands between
    their rows (newlines), as a line, with the states that enter the layer as ``features``; of the signals
    ``AttentionAhead`` alone is there to be read. It chooses ``count(n)`` of `n` and gives each of them a gate
    (``Lent``). Text goes through the layer as always. What is not chosen goes round it: its state times its gate.
    What is chosen comes out with the layer's MLP branch times its gate. Places and masks are as if the layer had
    been given the shorter sequence at the original positions, and its KV cache holds no more than that.
    """

    __slots__ = ()

    def __new__(cls, layer: int, ratio: float) -> Loan:  # noqa: D102
        return super().__new__(cls, "decoder", layer, ratio)

    def __getnewargs__(self) -> tuple[Any, ...]:
        return self.layer, self.keep

    def count(self, n: int) -> int:
        """How many of a sample's `n` tokens run the layer: the product in float32, rounded down; it may be 0."""
        return int(_single(_single(n) * _single(self.keep or 0)))


class LoanAgain(Loan):
    """A loan that goes to the same tokens as the loan before it, with the same gates; the method is not asked."""

    __slots__ = ()


def _single(x: float) -> float:
    """`x` as the nearest float32; of a product of two of them that is float32's own."""
    found: float = struct.unpack("f", struct.pack("f", x))[0]
    return found


@dataclass(frozen=True)
class Lent:
    """Result of a method at a ``Loan``: the chosen columns `index [B, k]` as for ``Pruner.select``, and `gate [B, N]`.

    Gates are of all tokens, chosen or not; gradients go through them.
    """

    index: Tensor
    gate: Tensor


@dataclass(frozen=True)
class Merged:
    """Result of a merging method: `index [B, k]` as for ``Pruner.select`` and the new vectors `features [B, k, D]`.

    ``size [B, k]`` float says how many tokens each one stands for. It matters inside the vision tower, where later
    layers add its logarithm to the attention logits towards that token, and later stops find it in ``tokens.size``,
    and to a method that ``calibrates``.
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
    ``reads_vocabulary`` (compares with the input embedding table, ``VisualTokens.embeddings``), ``order_dependent``
    (the choice depends on the order of the tokens), ``ragged`` (handles rows of different ``counts`` and
    ``budgets`` in one call; otherwise the host calls it once per group of equal rows), ``joins_crops`` (behind the
    tower: a picture whose crops are spans of their own comes as ONE row, laid out as thumbnail and mosaic, with the
    sum of their budgets; a crop may then keep more or less than its own, or nothing, so that a later method that
    counts span by span may find fewer than it would keep), ``cascades`` (one near tie decides much of what comes
    after it, so that features that differ by rounding end in another set; the docstring says why. All others keep
    at least 98% of the same tokens when features change by 1e-6 of themselves, see ``vtc stability``), ``trained``
    (works with a network of its own that was trained, ``TrainedCompressor``), ``calibrates`` (from its first stop
    on, the prompt's own queries see each token left of a span that lost some with ``log(s (2 - D))`` more, D the
    mean cosine of the angles that rotary embedding turns one of the two further than the other, and s its
    ``Merged.size``, else 1). ``files`` are the parameters that are files, with the names that these get in the
    folder of a saved model, and ``no_files`` the words there that are none.
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
    trained: ClassVar[bool] = False
    calibrates: ClassVar[bool] = False
    files: ClassVar[Mapping[str, str]] = MappingProxyType({})
    no_files: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_parameters(self)
        if self.keep is not None:
            self.keep = check_keep(self.keep, f"{self.spoken_name}.keep")

    @property
    def spoken_name(self) -> str:
        """What errors call it: the name it is registered under, else its class."""
        return self.name or type(self).__name__

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
        if stop.keep == 0 or isinstance(stop, LoanAgain):
            return ()
        return self.signals if stop.reads is None else stop.reads

    def select(self, tokens: VisualTokens, k: int) -> Tensor | Merged | Lent:
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
            that are not -1, 1 (at the decoder stage 0) to ``tokens.counts[i]`` of them. ``Merged`` where it merges, and
            ``Lent`` at a ``Loan``.
        """
        raise NotImplementedError

    @property
    def inner(self) -> Pruner | None:
        """The method that this one is around, whose parameters are its ``first_params``; None for most."""
        return None

    def check_files(self) -> None:
        """Read the files that parameters name, so that a wrong one is found before a model is loaded or wrapped.

        Called by ``vtc.load`` and ``vtc.compress``; to be overridden by a method with such parameters. Keep what was
        read: it is asked again in every ``compress``.

        Raises
        ------
        OSError, ValueError
            If a file is not there, or not what it should be.
        """

    def file_content(self, parameter: str, model: ModelFacts | None = None) -> bytes | None:
        """What the file that `parameter` names holds, to go with a saved model; None where it names none.

        Parameters
        ----------
        parameter : str
            One of ``files``.
        model : ModelFacts, optional
            The model that it goes with.
        """
        value = getattr(self, parameter)
        return None if value is None or value in self.no_files else Path(value).read_bytes()

    def check_model(self, model: ModelFacts) -> None:
        """Refuse a model that this method was not made for; to be overridden by methods trained for one.

        Raises
        ------
        ValueError
            Saying what the method was made for, what `model` is, and what to do.
        """

    def params(self) -> dict[str, Any]:
        """The parameters that differ from their defaults, as plain values."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{k}={v}' for k, v in self.params().items())})"
