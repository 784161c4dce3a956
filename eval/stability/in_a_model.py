"""How much of each method's choice inside a model is rounding: the same prompts in float32, float64 and bfloat16."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vtc.bundled_files import bundled_data
from vtc.eval.tasks.reading.load import load_tasks
from vtc.eval.vlm.encode_once import to_device
from vtc.eval.vlm.feature_cache import pruned
from vtc.eval.vlm.loading import load_model
from vtc.eval.vlm.prompts import Row, make_row
from vtc.eval.vlm.pruning_settings import make_cell

from .rounding_overlap import Stability, overlap, setting

Kept = list[list[Tensor]]  # of each step, of each span
PLAIN, OTHERS = "float32", {"in float64": "float64", "in bfloat16": "bfloat16"}
QUESTIONS = {name: f"the model {name}" for name in OTHERS}


@dataclass(frozen=True)
class Subject:
    """A model, and how many pictures it is shown.

    Attributes
    ----------
    model : str, optional
        Folder or hub id; the bundled model if left out.
    device : str
        Where it runs.
    pictures : int
        The first ones of the bundled evaluation set, one question each.
    """

    model: str | None
    device: str
    pictures: int

    def precisions(self) -> Iterator[tuple[str, nn.Module, list[Row]]]:
        """The model in float32, then in the others, one at a time, with its prompts."""
        tasks = load_tasks(bundled_data())
        firsts = [group[0] for group in tasks.groups()[: self.pictures]]
        for name, dtype in {PLAIN: PLAIN, **OTHERS}.items():
            loaded = load_model(self.model, self.device, PLAIN if dtype == "float64" else dtype)
            model = loaded.model.double() if dtype == "float64" else loaded.model
            yield name, model, [make_row(loaded.processor, model.config, tasks.visuals(q), q) for q in firsts]


@torch.no_grad()
def kept_by(spec: str, keep: int | float, model: nn.Module, rows: Sequence[Row]) -> list[Kept]:
    """What a method keeps of each prompt."""
    found: list[Kept] = []
    with pruned(model, make_cell(spec, keep)) as wrapped:
        for row in rows:
            inputs: dict[str, Any] = {k: to_device(v, model) for k, v in {**row.text, **row.vision}.items()}
            wrapped(**inputs, logits_to_keep=1)
            found.append([step.kept for step in wrapped.vtc.report.steps])
    return found


def measure_inside(
    subject: Subject, methods: Sequence[str], keep: int | float, advance: Callable[[str], None]
) -> list[Stability]:
    """Measure all methods precision by precision; `advance` is told which one comes.

    Of a prompt the least overlap of all steps and spans counts. What a method stumbles over is told in its result.
    """
    plain: dict[str, list[Kept]] = {}
    failed: dict[str, str] = {}
    overlaps: dict[str, dict[str, list[float]]] = defaultdict(dict)
    tokens = 0
    for precision, model, rows in subject.precisions():
        tokens = rows[0].visual
        for spec in methods:
            advance(spec)
            if spec in failed:
                continue
            try:
                found = kept_by(spec, keep, model, rows)
            except (NotImplementedError, TypeError, ValueError, RuntimeError, OSError) as error:
                failed[spec] = f"{type(error).__name__}: {error}"
                continue
            if precision == PLAIN:
                plain[spec] = found
            else:
                overlaps[spec][precision] = [least(a, b) for a, b in zip(plain[spec], found, strict=True)]
    return [
        Stability(spec, tokens, setting(spec, keep).cascades, overlaps[spec] if spec not in failed else {},
                  failed.get(spec, ""))
        for spec in methods
    ]  # fmt: skip


def least(a: Kept, b: Kept) -> float:
    """The least overlap of two prefills' steps and spans; 1 where there is none."""
    pairs = (pair for one, other in zip(a, b, strict=True) for pair in zip(one, other, strict=True))
    return min((overlap(*pair) for pair in pairs), default=1.0)
