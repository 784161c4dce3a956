"""From what the parts do to seconds, bytes, batches and the keep at which pruning stops paying."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from vtc.eval.cost.model_work import ModelWork, TowerWork
from vtc.eval.cost.operators import Operators, flops_of

from .devices import Device
from .kept_tokens import Kept
from .selection_cost import SelectionCost

GRID = (0.9, 0.75, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03, 0.02, 0.01)
LITTLE = 0.02  # a speed-up that is none


@dataclass(frozen=True)
class Times:
    """Seconds of a batch: parts of the prefill, and of each further token.

    ``question`` is a pass of the decoder over the text alone, where a method reads that (``QuestionState``).
    """

    tower: float
    projector: float
    selection: float
    decoder: float
    head: float
    token: float
    question: float = 0.0

    @property
    def prefill(self) -> float:
        """All up to the first token."""
        return self.tower + self.projector + self.question + self.selection + self.decoder + self.head


@dataclass
class Reckoning:
    """A model, a picture and a device.

    Attributes
    ----------
    work : ModelWork
        Of the model.
    tower_work : TowerWork
        On the picture.
    text, answer : int
        Tokens of the prompt beside the picture, and of the answer.
    device : Device
        Where.
    dtype : str
        Of weights and activations.
    """

    work: ModelWork
    tower_work: TowerWork
    text: int
    answer: int
    device: Device
    dtype: str
    _known: dict[tuple[int, int], tuple[Operators, float]] = field(default_factory=dict)
    _towers: dict[tuple[tuple[float, ...], int], float] = field(default_factory=dict)

    def lengths(self, per_layer: Sequence[int]) -> list[int]:
        """Tokens that each decoder layer sees."""
        return [self.text + n for n in per_layer]

    def times(self, kept: Kept, batch: int, selection: SelectionCost | None = None) -> Times:
        """Seconds of the parts; decoding in the middle of the answer."""
        lengths = self.lengths(kept.per_layer)
        later = [n + self.answer // 2 for n in lengths]
        asked = self._asked(kept)
        head = self._seconds([self.head], batch)
        return Times(
            self._tower(kept.tower_shares, batch),
            self._seconds([self.tower_work.projector], batch),
            selection.on(self.device, batch) if selection else 0.0,
            self._seconds(self.work.prefill_parts(lengths), batch),
            head,
            self._seconds(self.work.step_parts(later), batch) + head,
            self._seconds(self.work.prefill_parts(asked), batch) if asked else 0.0,
        )

    def _asked(self, kept: Kept) -> list[int]:
        """Tokens that each decoder layer sees of the question alone; none where nothing asks for it."""
        return [self.text] * self.work.depth if kept.asks else []

    def run(self, kept: Sequence[Kept]) -> None:
        """Run the decoder on these numbers of tokens, and at the end of the longest answer: the others follow."""
        lengths = sorted({n for one in kept for n in (*self.lengths(one.per_layer), *self._asked(one))})
        self.work.run([1, *lengths, lengths[-1] + self.answer])

    @cached_property
    def head(self) -> Operators:
        """The output layer on one token."""
        return self.work.head()

    def _tower(self, shares: tuple[float, ...], batch: int) -> float:
        if (shares, batch) not in self._towers:
            self._towers[shares, batch] = self._seconds([self.tower_work.tower(shares)], batch)
        return self._towers[shares, batch]

    def _seconds(self, parts: Sequence[Operators], batch: int) -> float:
        """Of parts of which many are the same object."""
        found = 0.0
        for part in parts:
            key = id(part), batch
            if key not in self._known:  # the part is held, so that no other gets its id
                self._known[key] = part, self.device.seconds(part, self.dtype, batch)
            found += self._known[key][1]
        return found

    def flops(self, kept: Kept) -> dict[str, int]:
        """FLOPs of one prompt by part; of the question alone where a method reads it so."""
        asked = self._asked(kept)
        return {
            "tower": flops_of(self.tower_work.tower(kept.tower_shares)),
            "projector": flops_of(self.tower_work.projector),
            "decoder": flops_of(self.work.prefill(self.lengths(kept.per_layer))),
            "head": flops_of(self.head),
            **({"question": flops_of(self.work.prefill(asked))} if asked else {}),
        }

    def kv_bytes(self, kept: Kept, answer: bool = False) -> int:
        """Bytes of one request's cache behind the prefill, or at the end of the answer."""
        more = self.answer if answer else 0
        return self.work.kv_bytes([n + more for n in self.lengths(kept.per_layer)])

    @cached_property
    def weights(self) -> int:
        """Bytes of all weights."""
        return self.work.weight_bytes()

    def activation_bytes(self, kept: Kept) -> int:
        """Bytes that one request's prefill holds at most at once: the largest operator, and what goes past it."""
        lengths = self.lengths(kept.per_layer)
        tower = max((o.moved for o in self.tower_work.tower(kept.tower_shares)), default=0)
        layers = max(o.moved for o in self.work.prefill(lengths))
        width = self.work.parts.lm.config.get_text_config().hidden_size
        size = next(self.work.parts.model.parameters()).element_size()
        return round(max(tower, layers) + 2 * size * width * max(lengths))

    def largest_batch(self, kept: Kept) -> int:
        """Requests that fit into the device's memory at once, weights, caches and activations counted."""
        free = self.device.memory - self.weights
        if math.isinf(free):
            return 0
        return max(0, int(free // (self.kv_bytes(kept, answer=True) + self.activation_bytes(kept))))


@dataclass(frozen=True)
class Turning:
    """Where pruning begins and ends to pay in a batch.

    Attributes
    ----------
    pays_from : float or None
        The largest keep of the grid at which the prefill is at least 2% faster; None: nowhere.
    flat_below : float or None
        The keep from which halving it again gains less than 2%; None: it gains more down to the last.
    best : float
        The speed-up of keeping (nearly) nothing.
    """

    pays_from: float | None
    flat_below: float | None
    best: float


def turning_points(speed_up_at: Sequence[tuple[float, float]]) -> Turning:
    """Read the turning points off a curve of (keep, speed-up), keeps falling."""
    paying = [keep for keep, gain in speed_up_at if gain >= 1 + LITTLE]
    flat = None
    for keep, gain in speed_up_at:
        half = min(speed_up_at, key=lambda point: abs(point[0] - keep / 2))
        if half[0] < keep and half[1] < gain * (1 + LITTLE) and keep / 2 >= speed_up_at[-1][0]:
            flat = keep
            break
    return Turning(max(paying, default=None), flat, max((g for _, g in speed_up_at), default=1.0))
