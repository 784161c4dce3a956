"""What choosing tokens costs: the method chooses once among made-up tokens of the model's own shapes, on this CPU.

Where the whole would take long, it chooses among fewer, twice, and time and operators are extrapolated by the power of
N between the two. On another device than this CPU its operators are reckoned at that device's rates, so that many
small ones cost their launches; a method may take another way there.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from vtc.eval.cost.operators import MATMUL, Operator, flops_of, recording
from vtc.eval.stability.made_up_spans import MadeOnce, Sizes, picture
from vtc.eval.stability.rounding_overlap import PARAMS, walk
from vtc.models.layout.model_parts import Parts
from vtc.models.stock.layer_sizes import layer_size
from vtc.pruners import make_pruner
from vtc.pruners.base import LoanAgain, Pruner, Stop

from .devices import FLOAT32, Device
from .kept_tokens import Kept
from .measured_cpu import cpu_clock

SHARES = (0.125, 0.25)  # of the tokens, tried first
LONGEST = 0.3  # seconds that choosing among all may take
VOCABULARY = 16384  # rows of the largest table that is made up; what is read of more is in proportion
FAILURES = (NotImplementedError, TypeError, ValueError, RuntimeError, OSError, AttributeError, AssertionError)


@dataclass(frozen=True)
class SelectionCost:
    """What one prompt's choice costs.

    Attributes
    ----------
    seconds : float
        On this CPU; where operators are written down, with what that takes.
    flops, moved : float
        Of its products, and bytes that it reads and writes; nothing where seconds are measured.
    operators : float
        How many there are.
    extrapolated : bool
        Whether it was tried on fewer tokens only.
    """

    seconds: float = 0.0
    flops: float = 0.0
    moved: float = 0.0
    operators: float = 0.0
    extrapolated: bool = False

    def on(self, device: Device, batch: int) -> float:
        """Seconds for the prompts of a batch."""
        if not self.operators:
            return 0.0
        if device.measured:
            return self.seconds * batch
        whole = Operator(MATMUL, self.flops * batch, 0, self.moved * batch)
        return max(device.seconds([whole], FLOAT32), self.operators * device.launch)


def selection_cost(parts: Parts, kept: Kept, text: int, measured: bool = False) -> SelectionCost | None:
    """What choosing costs, in seconds of this CPU (`measured`) or in operators.

    None where it can't be known, as of methods that need what no made-up token has.
    """
    whole = SelectionCost()
    sizes = _sizes(parts, text)
    for pruner, stop, before, after in kept.stops:
        if stop.keep == 0 or after == before or isinstance(stop, LoanAgain):
            continue
        for (n, k), count in Counter(zip(before, after, strict=True)).items():
            one = _one(pruner, stop, n, k, sizes, parts, measured)
            if one is None:
                return None
            whole = _sum(whole, one, count)
    return whole


def _sum(a: SelectionCost, b: SelectionCost, times: int) -> SelectionCost:
    return SelectionCost(
        a.seconds + times * b.seconds,
        a.flops + times * b.flops,
        a.moved + times * b.moved,
        a.operators + b.operators,  # spans are chosen from together
        a.extrapolated or b.extrapolated,
    )


def _one(
    pruner: Pruner, stop: Stop, n: int, k: int, sizes: Sizes, parts: Parts, measured: bool
) -> SelectionCost | None:
    if not any(pruner.params().keys() - {"keep"}) and pruner.name in PARAMS and pruner.reads_vocabulary:
        pruner = make_pruner(pruner.name, keep=pruner.keep, **PARAMS[pruner.name])
    table = max(1.0, parts.lm.config.get_text_config().vocab_size / VOCABULARY) if pruner.reads_vocabulary else 1.0
    try:
        tried = [_tried(pruner, stop, max(4, round(n * s)), k / n, sizes, measured) for s in SHARES if n * s >= 16]
        if not tried or _power(tried, n).seconds < LONGEST:
            found = _tried(pruner, stop, n, k / n, sizes, measured)[1]
        else:
            found = _power(tried, n)
    except FAILURES:
        return None
    return SelectionCost(
        found.seconds * table, found.flops * table, found.moved * table, found.operators, found.extrapolated
    )


def _power(tried: Sequence[tuple[int, SelectionCost]], n: int) -> SelectionCost:
    """What two sizes tell of `n` tokens; it does not grow by more than the square."""
    (few, a), (more, b) = tried[0], tried[-1]

    def grown(small: float, large: float) -> float:
        power = math.log(large / small) / math.log(more / few) if small > 0 and large > small and more > few else 0.0
        return large * (n / more) ** min(power, 2.0)

    return SelectionCost(
        grown(a.seconds, b.seconds),
        grown(a.flops, b.flops),
        grown(a.moved, b.moved),
        grown(a.operators, b.operators),
        extrapolated=True,
    )


@torch.no_grad()
def _tried(pruner: Pruner, stop: Stop, n: int, share: float, sizes: Sizes, measured: bool) -> tuple[int, SelectionCost]:
    made = MadeOnce(picture(n), sizes)
    here = stop._replace(keep=max(1, min(n - 1, round(n * share))))
    walk(pruner, made, [here])  # makes what is read
    clock = cpu_clock()
    if measured:
        return n, SelectionCost(clock.measure(lambda: walk(pruner, made, [here]))[0], operators=1)
    with recording(nn.Identity()) as found:
        seconds, _ = clock.measure(lambda: walk(pruner, made, [here]))
    moved = sum(o.moved for o in found.found)
    return n, SelectionCost(seconds, flops_of(found.found), moved, len(found.found))


def _sizes(parts: Parts, text: int) -> Sizes:
    config, tower = parts.lm.config.get_text_config(), getattr(parts.config, "vision_config", None)
    encoder = next((v for n in ("embed_dim", "hidden_size") if isinstance(v := getattr(tower, n, None), int)), 1024)
    heads = layer_size(config, "num_attention_heads")
    head = layer_size(config, "head_dim") or config.hidden_size // heads
    rows = min(config.vocab_size, VOCABULARY)
    return Sizes(heads, parts.family.unit(parts.config), encoder, config.hidden_size, head, max(1, min(text, 64)), rows)
