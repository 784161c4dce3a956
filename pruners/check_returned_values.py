"""When what a method gives back is looked at, and not only its shape.

Reading a value makes the host wait for the device, so methods on a GPU would no longer run ahead. Those of this package
are held to their promises by tests; a method of somebody else's is looked at everywhere, at the price of one small read
at each of its stops. On the CPU there is nothing to wait for, and everybody is looked at. Tensors without values
(tracing, the meta device) are nobody's to read.
"""

from __future__ import annotations

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from .base import Pruner


def readable(x: Tensor) -> bool:
    """Whether the values of `x` can be read on the host."""
    return not (isinstance(x, FakeTensor) or x.is_meta)


def ours(pruner: Pruner) -> bool:
    """Whether the method is one of this package."""
    return type(pruner).__module__.startswith(f"{__package__}.")


def looked_at(pruner: Pruner, x: Tensor) -> bool:
    """Whether the values of `x`, which `pruner` gave back, are checked."""
    return readable(x) and (x.device.type == "cpu" or not ours(pruner))


def check_score(pruner: Pruner, score: object, valid: Tensor) -> Tensor:
    """The scores `[B, N]` of a ``ScorePruner``.

    Parameters
    ----------
    pruner : Pruner
        Whose they are.
    score : object
        What it gave.
    valid : Tensor
        `[B, N]` bool: False is padding.

    Raises
    ------
    TypeError, ValueError
        If they are no real numbers, one for each token, or (of a method from outside) NaN for all tokens of a span.
    """
    name = f"{pruner.spoken_name}.score"
    rows, width = valid.shape
    if not isinstance(score, Tensor) or score.is_complex():
        kind = score.dtype if isinstance(score, Tensor) else type(score).__name__
        raise TypeError(f"{name} must return a tensor of real numbers, got {kind}")
    if score.shape != valid.shape:
        raise ValueError(
            f"{name} must return one number for each token, [{rows}, {width}] (tokens.ids.shape), got "
            f"{list(score.shape)}"
        )
    # a model that overflows gives NaN features: our methods then keep what they can, by the lowest index
    if not ours(pruner) and score.is_floating_point() and looked_at(pruner, score):
        empty = (score.isnan() | ~valid.to(score.device)).all(1)
        if bool(empty.any()):
            raise ValueError(
                f"{name} is NaN for every token of a span, so there is nothing to choose by; look for a division by "
                "zero or an overflow in half precision (tokens.features.float())"
            )
    return score
