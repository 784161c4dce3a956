"""Per-thread state of one wrapped model."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from vtc.models.layout.vision_call_record import VisionRecord
from vtc.models.selection.report import Report
from vtc.models.stock.call_arguments import Call
from vtc.models.stock.per_thread import ThreadState

from .forward_state import Run


class Step(Protocol):
    """A forward of the text model for which no run is opened."""

    def end(self) -> None:
        """It is over, or has failed."""


# of a forward, when it is over
_NOTHING = {
    "prompted": None,
    "fed": None,
    "called": None,
    "token_ids": None,
    "run": None,
    "untouched": None,
    "planned": None,
    "traced": False,
    "inside": False,
    "opened": False,
    "short": False,
}


class Local(ThreadState):
    """State of one thread's forward, so that threads that share a wrapped model never see each other's."""

    def __init__(self) -> None:
        self.records: dict[str, VisionRecord] = {}
        self.prompted: bool | None = None  # whether its tower had pruned pictures before the call, until that is read
        self.fed: Any = None
        self.called: Call | None = None  # how the composite model was called
        self.token_ids: Tensor | None = None
        self.run: Run | None = None
        self.untouched: Run | None = None  # instead of a run, where a method kept everything
        self.steady: Step | None = None  # instead of a run, in a step that needs none
        self.awake = False  # whether this thread's forward needs the layers' hooks
        self.planned: dict[int, Any] | None = None  # by layer what it is given, in a forward that torch.compile traces
        self.traced = False  # whether its stops are operators of the graph
        self.report: Report | None = None
        self.prompt: int | None = None  # length of what generate() was given, in columns
        self.encoded: dict[str, VisionRecord] | None = None  # of the vision calls of the generate() that runs
        self.pictured: dict[str, VisionRecord] | None = None  # the `encoded` of the generate() that last fed pictures
        self.pending = False  # whether generate() has encoded pictures that no forward has used yet
        self.inside = False  # whether this thread is in a forward of the composite model
        self.short = False  # whether this forward is one of ``short_steps``
        self.opened = False  # whether this forward's pictures reached the text model's hook

    def clear(self) -> None:
        """Forget everything but the report."""
        if self.run is not None and self.run.static is not None:  # it was interrupted
            self.run.static.open = False
        self.end_steady()
        vars(self).update(_NOTHING, records={})  # one step: this is done twice for each token

    def end_steady(self) -> bool:
        """End the step that needed no run, if there is one; whether there was."""
        steady, self.steady = self.steady, None
        if steady is not None:
            steady.end()
        return steady is not None

    def unused_features(self) -> bool:
        """Whether pictures were encoded for this forward."""
        return bool(self.records) or self.pending
