"""RESTORE: far tokens of what a method keeps are attended to more, and merged ones by their number."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from .base import Lent, Loan, Merged, Pruner, Stop
from .inner_method import DEPTH, Around
from .registry import register_pruner
from .signals import Signal
from .visual_tokens import VisualTokens

if TYPE_CHECKING:
    from torch import Tensor


@register_pruner("restore")
@dataclass(kw_only=True)
class Restore(Around):
    """RESTORE (Cho et al., ICML 2026, arXiv 2606.01711), its attention calibration, around any method.

    Parameters
    ----------
    keep : int or float
        What the first method keeps.
    first : str
        The method that chooses, by name, at the input or decoder stage. The paper's are DivPrune, HoloV, SparseVLM and
        VisionZip.
    first_params : dict, optional
        Parameters of the first method.

    Notes
    -----
    Stage: the first method's. From there on, for each query m of the prompt and each visual key n that is left::

        z_mn + log s_n + log(2 - D_mn),   D_mn = mean_j cos((p_m - p_n) theta_j)    over d/2 frequencies

    z are the logits of attention, p the ORIGINAL positions, theta the frequencies of rotary embedding, s_n the
    number of tokens that n stands for. D falls with distance as rotary attention does, from 1 to about 0, so that
    far tokens get back up to log 2, those beyond its zeros a little more. O(L^2) a layer for an additive mask, and
    O(L^2 d) once.

    Known from summaries of the paper, whose code (GPL-3.0) was not read: c = 2 in its ``c - D``; that it is for the
    prefill. So tokens that are generated see plain logits, however they come: step by step, as candidates of assisted
    decoding, without a cache; and so does a later turn of what an earlier one kept. OURS: keys of text, and of pictures
    that lost nothing, get nothing (the paper writes its sum over all keys), and s is what the first method says, which
    `tome` and `pool` do, else 1. Its anchors for merging methods (representative times distinctive) are not here. A
    layer that is given no rotary embedding gets no D; one that is given it and leaves it out (Cohere 2's, EXAONE 4's)
    gets D all the same.

    Masks are made for it: sdpa and eager only, without ``torch.compile``, static caches, ``positions="compact"`` and
    models whose layers keep a state or share keys. Answers about one picture don't share its prefill in ``vtc bench``.
    """

    first: str = "divprune"
    first_params: dict[str, Any] | None = None

    paper: ClassVar[str] = "arXiv 2606.01711"
    calibrates: ClassVar[bool] = True
    own_flags: ClassVar[tuple[str, ...]] = ("calibrates",)

    def __post_init__(self) -> None:
        super().__post_init__()
        stops = self._kept(0.5).stops(DEPTH)
        if not stops or any(stop.stage == "vision" or isinstance(stop, Loan) for stop in stops):
            raise ValueError(
                f"restore.first={self.first!r} must drop tokens at the input or decoder stage, neither inside the "
                "tower nor round layers"
            )

    def _kept(self, keep: int | float | None) -> Pruner:
        return self._first if keep is None else replace(self._first, keep=keep)

    def signals_at(self, stop: Stop) -> tuple[Signal, ...]:
        """The first method's."""
        return self._first.signals_at(stop)

    def stops(self, depth: int) -> tuple[Stop, ...]:
        """The first method's."""
        return self._kept(self.keep).stops(depth)

    def select(self, tokens: VisualTokens, k: int) -> Tensor | Merged | Lent:
        """What the first method chooses."""
        return self._kept(self.keep).select(tokens, k)
