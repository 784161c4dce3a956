"""How two results are compared, and what is said where they differ."""

from __future__ import annotations

import torch
from torch import Tensor

from .model_under_test import Subject

TOLERANCE = 2e-5  # of the largest logit: what other kernels round otherwise
SHOWS = 10  # times the tolerance: what dropping tokens changes at least, else a wrong mask would not show either


class Wrong(Exception):
    """A result that is not what it must be.

    Parameters
    ----------
    why : str
        What differs and where.
    difference : float, optional
        The largest difference of a logit.
    """

    def __init__(self, why: str, difference: float | None = None):
        super().__init__(why)
        self.difference = difference


class NothingToSee(Exception):
    """The setting drops nothing here, or nothing that shows."""


def same(got: Tensor, want: Tensor, what: str) -> float:
    """Bit for bit."""
    if not torch.equal(got, want):
        worst = float((got - want).abs().max()) if got.shape == want.shape else float("nan")
        raise Wrong(f"{what} not bit for bit those of the untouched model (largest difference {worst:.2g})", worst)
    return 0.0


def close(got: Tensor, want: Tensor, what: str, where: Tensor | None = None) -> float:
    """Up to rounding; `got` and `want` are `[B, n, V]`, `where` `[B, n]` bool are the places that count."""
    if got.shape != want.shape:
        raise Wrong(f"{what}: shape {list(got.shape)} instead of {list(want.shape)}")
    worst = (got - want).abs().nan_to_num(float("inf")).amax(-1)
    worst = worst if where is None else worst.masked_fill(~where, 0.0)
    largest, limit = float(worst.max()), TOLERANCE * float(want.abs().max())
    if largest > limit:
        row, place = divmod(int(worst.argmax()), worst.shape[1])
        raise Wrong(f"{what}: logits differ by {largest:.2g} (rounding: {limit:.1g}) at row {row}, {place}", largest)
    return largest


def chosen(subject: Subject, logits: Tensor, tokens: Tensor, what: str) -> None:
    """The tokens are those that greedy decoding takes from the reference's logits, ties within rounding aside."""
    allowed = logits.index_fill(-1, torch.tensor(subject.special), float("-inf"))
    lost = allowed.amax(-1) - allowed.gather(-1, tokens[..., None])[..., 0]
    if float(lost.max()) > 2 * TOLERANCE * float(logits.abs().max()):
        row, place = divmod(int(lost.argmax()), lost.shape[1])
        raise Wrong(f"{what}: another token at row {row}, generated token {place}", float(lost.max()))
