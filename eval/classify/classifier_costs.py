"""What a classifier costs: FLOPs of one picture, and pictures a second of a batch, the cells in shuffled turns."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vtc.eval.cost.clocks import clock
from vtc.eval.cost.flops import counting, fake_weights
from vtc.eval.cost.interleaved_timing import PrefillTime, spread
from vtc.eval.cost.prefill_cost import Cost, Spread
from vtc.eval.vlm.feature_cache import pruned
from vtc.eval.vlm.pruning_settings import UNPRUNED, Cell

from .classifier import Classifier

WARM_UP = 2  # turns that are not measured


def count_flops(classifier: Classifier, cell: Cell, image: Tensor) -> int:
    """FLOPs of one picture `[1, 3, H, W]` from pixels to logits, what the method itself multiplies included.

    A multiply-add counts as two; torch's counter sees matrix products and convolutions.
    """

    with pruned(classifier.model, cell):
        try:
            with fake_weights(classifier.model) as mode:
                return _counted(classifier, mode.from_tensor(image))
        except (RuntimeError, ValueError, TypeError, NotImplementedError):  # it looks at values: while it really runs
            return _counted(classifier, image)


def _counted(classifier: Classifier, image: Tensor) -> int:
    with counting() as counter:
        classifier.logits(image)
        return int(counter.get_total_flops())


@torch.no_grad()
def measure_throughput(
    classifier: Classifier,
    cells: Sequence[Cell],
    images: Tensor,
    repeats: int,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Spread]:
    """Seconds of one batch from pixels in memory to logits, by spec.

    Parameters
    ----------
    classifier : Classifier
        Unwrapped.
    cells : sequence of Cell
        They take turns, every turn in another order, the first ``WARM_UP`` turns unmeasured.
    images : Tensor
        `[B, 3, H, W]` on the model's device.
    repeats : int
        Measured turns.
    advance : callable
        Called after each cell's turn.
    """
    readings: dict[str, list[float]] = {cell.spec: [] for cell in cells}
    order = random.Random(0)
    for turn in range(WARM_UP + repeats):
        for cell in order.sample(cells, len(cells)):
            with pruned(classifier.model, cell):
                seconds, _ = clock(classifier.device, lambda: classifier.logits(images))
            if turn >= WARM_UP:
                readings[cell.spec].append(seconds)
            advance()
    return {spec: spread(found) for spec, found in readings.items()}


def measure_costs(
    classifier: Classifier,
    cells: Sequence[Cell],
    images: Tensor,
    repeats: int,
    advance: Callable[[], None] = lambda: None,
    begin: Callable[[], None] = lambda: None,
) -> dict[str, Cost]:
    """FLOPs of a picture, and with `repeats` the time and throughput of a batch, by spec; `begin` is called between."""
    costs = {cell.spec: Cost(vision_flops=count_flops(classifier, cell, images[:1])) for cell in cells}
    begin()
    if repeats:
        n = len(images)
        for spec, took in measure_throughput(classifier, cells, images, repeats, advance).items():
            rate = Spread(n / took.median, n / took.high, n / took.low)
            costs[spec] = replace(costs[spec], vision=took, images_per_second=rate, repeats=repeats)
    return costs


def batch_times(costs: dict[str, Cost]) -> dict[str, PrefillTime]:
    """The seconds of a batch against the unpruned model's in the same turns."""
    base = costs[UNPRUNED.spec].vision if UNPRUNED.spec in costs else None
    if base is None:
        return {}
    return {
        spec: PrefillTime(c.vision.median, base.median, None, None, c.repeats) for spec, c in costs.items() if c.vision
    }
