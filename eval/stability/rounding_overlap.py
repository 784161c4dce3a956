"""How much of a method's choice depends on rounding: the same made-up span, computed in slightly other ways.

A method that keeps other tokens because sums were added in another order gives another answer on another card. So each
one chooses for the same made-up signals (``synthetic``) several times, and the kept sets are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from vtc.eval.vlm.pruning_settings import takes_keep
from vtc.models.selection.select import select_tokens
from vtc.pipeline_text import parse
from vtc.pruners import make_pruner
from vtc.pruners.base import Loan, LoanAgain, Pruner, Stop, resolve_keep
from vtc.pruners.visual_tokens import VisualTokens

from .made_up_spans import Made, Sizes, Vary, picture, video

DEPTH, LAST = 32, 22  # LLaVA-1.5's decoder layers, and the encoder layer that its projector reads
EPSILON = 1e-6  # of a relative perturbation
LEAST = 0.98  # overlap that a method promises of the first two
# what a method needs here beside a keep
PARAMS: dict[str, dict[str, Any]] = {
    # random tokens are near to any of the vocabulary's, so that about one in ten belongs to a class
    "embedlens": {"sink": tuple(range(10)), "dead": tuple(range(10, 35))},
    # four times as fast as its 64, and it finds 16 to 160 alike
    "zoo_prune": {"directions": 16},
    # no networks of such sizes are there
    "focusllava": {"weights": "untrained"},
    "langdc": {"weights": "untrained"},
    "pmod": {"weights": "untrained"},
    "quecc": {"weights": "untrained", "kernel": 8, "exact": False, "question": "ids"},
    "tokenflex": {"weights": "untrained"},
}
SIZES: dict[str, Sizes] = {
    "explainer": Sizes(heads=6, decoder=192),  # the network that comes with vtc belongs to a model of this size
}


def float64(x: Tensor, _: torch.Generator) -> Tensor:
    """The same numbers in float64, in which the method then computes."""
    return x.double()


def perturbed(x: Tensor, generator: torch.Generator) -> Tensor:
    """Every number off by a normal share of ``EPSILON``."""
    return x * (1 + EPSILON * torch.randn(x.shape, generator=generator))


def bfloat16(x: Tensor, _: torch.Generator) -> Tensor:
    """Rounded to bfloat16, as a model in half precision gives it."""
    return x.bfloat16().float()


@dataclass(frozen=True)
class Question:
    """What one comparison changes: `vary` the numbers (see ``Made``), on spans with or without equal tokens."""

    words: str
    vary: Vary
    copies: bool = False
    promised: bool = True


QUESTIONS: dict[str, Question] = {
    "float64": Question("float32 against float64", float64),
    "ties": Question("the same, many tokens equal", float64, copies=True),
    "perturbed": Question("features off by 1e-6", perturbed),
    "bfloat16": Question("features in bfloat16", bfloat16, promised=False),
}
PROMISED = [name for name, question in QUESTIONS.items() if question.promised]


@dataclass(frozen=True)
class Stability:
    """Overlaps of one method at one size.

    Attributes
    ----------
    method : str
        Its name, or name and parameters.
    tokens : int
        Tokens of the spans.
    cascades : bool
        Whether its class says that one near tie of the features decides much.
    overlaps : dict
        Per question (``QUESTIONS``, or of those of ``in_a_model``) the overlap of each draw.
    failed : str
        Why it could not be measured; empty where it could.
    """

    method: str
    tokens: int
    cascades: bool = False
    overlaps: dict[str, list[float]] = field(default_factory=dict)
    failed: str = ""

    def worst(self, question: str) -> float:
        """The least overlap of all draws."""
        return min(self.overlaps[question])

    @property
    def broken(self) -> list[str]:
        """The questions whose promise it does not keep."""
        asked = [q for q in PROMISED if q in self.overlaps and not (q == "perturbed" and self.cascades)]
        return [q for q in asked if self.worst(q) < LEAST]


def overlap(a: Tensor, b: Tensor) -> float:
    """Share of what is kept that two sets of ids have in common; 1 for two empty ones."""
    larger = max(len(a), len(b))
    return 1.0 if larger == 0 else int(torch.isin(a, b).sum()) / larger


def stops_of(pruner: Pruner) -> list[Stop]:
    """All places in forward order at which `pruner` prunes."""
    return [stop for given in pruner.stops(DEPTH) for stop in pruner.tower_stops(given, LAST)]


@torch.no_grad()
def walk(pruner: Pruner, made: Made, stops: Sequence[Stop] | None = None) -> list[Tensor]:
    """Ids that are left after each stop of `pruner`, one stop behind the other as in a model, `[k]` int64 each.

    Its `stops` are those in a model of LLaVA-1.5's depth where they are not given.
    """
    n = made.layout.tokens
    left = torch.arange(n)
    found: list[Tensor] = []
    state: dict[str, dict[str, Any]] = {}
    for stop in stops_of(pruner) if stops is None else stops:
        assert stop.keep is not None, f"{pruner.name} was given no keep"
        loan, before = isinstance(stop, Loan), left
        if isinstance(stop, LoanAgain):
            found.append(found[-1])
            continue
        budget = resolve_keep(stop.keep, n) if stop.keep != 0 else 0
        if budget == 0:
            left = left[:0]
        elif budget < len(left):
            made.declared = pruner.signals_at(stop)
            tokens = VisualTokens(
                features=made.features(stop.stage, stop.layer)[left][None],
                ids=left[None],
                counts=[len(left)],
                budgets=[budget],
                layouts=[made.layout],
                sample=torch.zeros(1, dtype=torch.int64),
                order=[0],
                span=[0],
                stage=stop.stage,
                layer=stop.layer,
                last=LAST if stop.stage == "vision" else None,
                state=state.setdefault(stop.stage, {}),
                source=made,
            )
            [columns], _, _ = select_tokens(pruner, tokens)
            left = left[columns]
        found.append(left)
        left = before if loan else left  # they are back behind the layer
    return found


def setting(spec: str, keep: int | float) -> Pruner:
    """The method `spec`, a name or a name with parameters, as it is measured.

    Raises
    ------
    ValueError
        If it is a pipeline, or can't be read.
    """
    pipeline = parse(spec)
    if len(pipeline) != 1:
        raise ValueError(f"--pruners takes methods, each by itself; {spec!r} is a pipeline of {len(pipeline)}")
    [pruner] = pipeline
    if not pruner.params():
        pruner = make_pruner(pruner.name, **PARAMS.get(pruner.name, {}))
    if not takes_keep(pruner):
        return pruner
    try:
        return replace(pruner, keep=keep)
    except ValueError:  # it takes fractions only, or counts only
        return pruner


def draw(
    spec: str, tokens: int, keep: int | float, seed: int, questions: Sequence[str] = tuple(QUESTIONS)
) -> dict[str, float]:
    """Per question the overlap in one draw, the least over the method's stops. Odd draws are videos."""
    layout, sizes = (picture, video)[seed % 2](tokens), SIZES.get(setting(spec, keep).name, Sizes())
    plain: dict[bool, list[Tensor]] = {}
    found = {}
    for name in questions:
        question = QUESTIONS[name]
        made = Made(layout, sizes, seed, copies=question.copies)
        if question.copies not in plain:
            plain[question.copies] = walk(setting(spec, keep), made)
        other = walk(setting(spec, keep), replace(made, vary=question.vary))
        found[name] = min((overlap(a, b) for a, b in zip(plain[question.copies], other, strict=True)), default=1.0)
    return found


def measure(
    spec: str, tokens: int, keep: int | float, draws: int, questions: Sequence[str] = tuple(QUESTIONS)
) -> Stability:
    """Measure one method at one size; what it stumbles over is told in the result."""
    cascades = setting(spec, keep).cascades
    try:
        found = [draw(spec, tokens, keep, seed, questions) for seed in range(draws)]
    except (NotImplementedError, TypeError, ValueError, RuntimeError, OSError) as error:
        return Stability(spec, tokens, cascades, failed=f"{type(error).__name__}: {error}")
    return Stability(spec, tokens, cascades, {q: [f[q] for f in found] for q in questions})
