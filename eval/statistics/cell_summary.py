"""What is known of one cell of a sweep: its accuracies, differences, costs and verdict."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vtc.eval.cost.interleaved_timing import PrefillTime
from vtc.eval.vlm.pruning_settings import UNPRUNED, is_downsample, is_random, is_trained

from .beside_the_mean import AgainstSmaller, Hidden, ends
from .intervals import Interval


@dataclass
class CellSummary:
    """Results of one cell; ratios are to the unpruned model on the same samples, None where they were not measured.

    Cells that differ only in their seed are pooled: ``specs`` and ``seeds`` name them all, ``spec`` the first, and a
    question's score is the mean of their scores. Accuracies are in [0, 1].

    Attributes
    ----------
    flips, flips_down, flips_up : float, optional
        Share of questions whose score differs from the unpruned model's, and of those that fell (right -> wrong) and
        rose (wrong -> right); ``p_mcnemar`` is the exact test of the two, ``p_mcnemar_holm`` the same over the table.
    against, against_random, verdict
        The random cell of the same budget in words, the paired difference to its seeds, and what follows from it;
        ``against_ratio`` are the tokens per layer as a ratio to that cell's.
    p_value, p_holm : float, optional
        Of ``exchange_test`` against random, and the same corrected over the table.
    detectable, needed
        Smallest difference to random that this sample would find (80% power), and the sample that two points need.
    rank : Interval, optional
        Among the ``ranked`` methods of the same budget; 1 is best.
    official : dict
        The metrics of each task under their official names.
    against_smaller : AgainstSmaller, optional
        What the same pictures made smaller give.
    hidden : Hidden, optional
        What the mean hides.
    """

    method: str
    keep: int | float | None
    spec: str
    n: int
    complete: bool
    accuracy: dict[str, float]
    mean: Interval
    difference: Interval | None
    flips: float | None
    tokens_total: float
    tokens_asked: float
    tokens_kept: float
    tokens_per_layer: float
    kv_ratio: float | None = None
    lm_flops: float | None = None
    lm_flops_ratio: float | None = None
    flops_ratio: float | None = None
    time: PrefillTime | None = None
    difference_by_task: dict[str, Interval] = field(default_factory=dict)
    specs: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    flips_down: float | None = None
    flips_up: float | None = None
    p_mcnemar: float | None = None
    p_mcnemar_holm: float | None = None
    against: str = ""
    against_ratio: float | None = None
    against_random: Interval | None = None
    p_value: float | None = None
    p_holm: float | None = None
    detectable: float | None = None
    needed: int | None = None
    verdict: str = ""
    rank: Interval | None = None
    ranked: int = 0
    official: dict[str, dict[str, float]] = field(default_factory=dict)
    cost: Any = None
    against_smaller: AgainstSmaller | None = None
    hidden: Hidden | None = None

    @property
    def is_smaller(self) -> bool:
        """Whether it is the stock model on smaller pictures."""
        return is_downsample(self.method)

    @property
    def is_unpruned(self) -> bool:
        """Whether it is the plain model."""
        return self.spec == UNPRUNED.spec

    @property
    def is_random(self) -> bool:
        """Whether it is a random baseline, of whatever parameters."""
        return is_random(self.method)

    @property
    def is_trained(self) -> bool:
        """Whether its method brings weights that were trained for it."""
        return not self.is_unpruned and is_trained(self.spec)

    @property
    def label(self) -> str:
        """Method, keep and seeds as people write them."""
        seeds = f" ({len(self.specs)} seeds)" if len(self.specs) > 1 else ""
        return f"{self.method} {keep_text(self.keep)}".strip() + seeds

    def flat(self) -> dict[str, Any]:
        """One row of ``summary.csv``."""
        row: dict[str, Any] = {"method": self.method, "keep": self.keep, "spec": self.spec, "seeds": len(self.seeds)}
        row |= {"trained": self.is_trained}
        row |= {"n": self.n, "complete": self.complete}
        row |= {f"accuracy_{task}": value for task, value in self.accuracy.items()}
        row |= ends("accuracy", self.mean, "accuracy_mean")
        row |= ends("difference", self.difference or (Interval(0.0, 0.0, 0.0) if self.is_unpruned else None))
        row |= {"flip_rate": self.flips, "flips_down": self.flips_down, "flips_up": self.flips_up}
        row |= {"p_mcnemar": self.p_mcnemar, "p_mcnemar_holm": self.p_mcnemar_holm}
        row |= {"against": self.against, "against_ratio": self.against_ratio}
        row |= ends("random_difference", self.against_random)
        row |= {"p_value": self.p_value, "p_holm": self.p_holm, "detectable": self.detectable, "needed": self.needed}
        row |= {"verdict": self.verdict, **ends("rank", self.rank)}
        row |= (self.against_smaller or AgainstSmaller()).flat() | (self.hidden or Hidden()).flat()
        row |= {"tokens_total": self.tokens_total, "tokens_asked": self.tokens_asked, "tokens_kept": self.tokens_kept}
        row |= {"tokens_mean_per_layer": self.tokens_per_layer, "kv_ratio": self.kv_ratio, "lm_flops": self.lm_flops}
        row |= {"lm_flops_ratio": self.lm_flops_ratio, "flops_ratio": self.flops_ratio}
        row |= {"prefill_ratio": self.time.ratio if self.time else None}
        row |= {"lm_prefill_ratio": self.time.lm_ratio if self.time else None}
        row |= {"prefill_seconds": self.time.seconds if self.time else None}
        row |= self.cost.flat() if self.cost else {}
        figures = ((task, name, value) for task, found in self.official.items() for name, value in found.items())
        row |= {f"{task}_{name}": value for task, name, value in figures if "/" not in name}  # not of each category
        return {name: ("" if value is None else value) for name, value in row.items()}


def keep_text(keep: int | float | None) -> str:
    """A keep as people write it: ``25%``, ``64``."""
    if keep is None:
        return ""
    return f"{keep:.4g}" if isinstance(keep, int) else f"{100 * keep:.4g}%"
