"""Selection primitives: batched, deterministic, without a host sync. Ties go to the lowest index everywhere."""

from __future__ import annotations

from torch import Tensor


def top_k(score: Tensor, k: int, valid: Tensor | None = None) -> Tensor:
    """Columns of the `k` largest scores, best first.

    Parameters
    ----------
    score : Tensor
        `[B, N]`, any float dtype.
    k : int
        How many.
    valid : Tensor, optional
        `[B, N]` bool; the others come last.

    Returns
    -------
    Tensor
        `[B, k]` int64.

    Notes
    -----
    A stable sort and not ``torch.topk``, whose choice among equal scores is not defined.
    """
    score = score.float()
    if valid is not None:
        score = score.masked_fill(~valid, float("-inf"))
    return score.sort(dim=-1, descending=True, stable=True).indices[:, :k]
