"""Runs one pruning step of a forward, timed when asked for, and reports it."""

from __future__ import annotations

from torch import Tensor

from vtc.models.layout.model_parts import Parts
from vtc.models.selection.report import Report
from vtc.models.selection.stopwatch import Timing, now
from vtc.pruners.base import Pruner, Stop

from .forward_state import Run
from .pruning_step import keep_given, prune_step
from .thread_state import Local


class Steps:
    """Pruning steps of one wrapped model.

    Attributes
    ----------
    timing : bool or callable
        Whether the time of each step is measured, the device synchronised around it, and by which clock.
    last_report : Report or None
        Of the last prefill of any thread.
    """

    def __init__(self, parts: Parts, local: Local):
        self.parts, self.local = parts, local
        self.timing: Timing = False
        self.last_report: Report | None = None

    def open_report(self, run: Run | None = None) -> None:
        """Begin the report of a prefill; without a run that of a text-only one."""
        depth = len(self.parts.layers)
        report = Report(depth) if run is None else Report(depth, run.batch, 0.0 if self.timing else None)
        self.local.report = self.last_report = report

    def prune(self, run: Run, pruner: Pruner, stop: Stop, hidden: Tensor) -> Tensor:
        """Let `pruner` choose at `stop`; `hidden` `[B, L, D]` in, `[B, L', D]` out."""
        report = self._report()
        started = now(hidden, self.timing) if self.timing else 0.0
        hidden = prune_step(run, pruner, stop, hidden, self.parts)
        if self.timing and report.selection_seconds is not None:
            report.selection_seconds += now(hidden, self.timing) - started
        report.asked_alone, report.own_flops = run.asked_alone, run.own_flops
        sizes = None if run.sizes is None else run.sizes.gather(1, run.ids.clamp(min=0))
        report.add(stop.stage, stop.layer, run.ids, run.present, sizes)
        return hidden

    def drop_encoder_pruned(self, run: Run, hidden: Tensor) -> Tensor:
        """Drop the placeholders of the tokens that the encoder already dropped."""
        report = self._report()
        if report.selection_seconds is not None:
            report.selection_seconds += sum(f.record.seconds for f in run.batch.fed.values())
        count = max(len(f.record.steps) for f in run.batch.fed.values())
        for i in range(count):
            steps = run.batch.per_span(lambda record, i=i: [(record.steps[i].layer, k) for k in record.steps[i].kept])  # type: ignore[misc]
            hidden = keep_given(run, [kept for _, kept in steps], hidden)
            report.add("vision", steps[0][0], run.ids, run.present)
        return hidden

    def _report(self) -> Report:
        report = self.local.report
        assert report is not None
        return report
