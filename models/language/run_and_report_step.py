"""Runs one pruning step of a forward, timed when asked for, and reports it."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from vtc.models.layout.model_parts import Parts
from vtc.models.selection.report import Report
from vtc.pruners.base import Pruner, Stop

from .forward_state import Run
from .pruning_step import keep_given, prune_step
from .thread_state import Local


class Steps:
    """Pruning steps of one wrapped model.

    Attributes
    ----------
    timing : bool
        Whether the time of each step is measured, the device synchronised around it.
    last_report : Report or None
        Of the last prefill of any thread.
    """

    def __init__(self, parts: Parts, local: Local):
        self.parts, self.local = parts, local
        self.timing = False
        self.last_report: Report | None = None

    def open_report(self, run: Run | None = None) -> None:
        """Begin the report of a prefill; without a run that of a text-only one."""
        depth = len(self.parts.layers)
        report = Report(depth) if run is None else Report(depth, run.batch, 0.0 if self.timing else None)
        self.local.report = self.last_report = report

    def prune(self, run: Run, pruner: Pruner, stop: Stop, hidden: Tensor) -> Tensor:
        """Let `pruner` choose at `stop`; `hidden` `[B, L, D]` in, `[B, L', D]` out."""
        report = self._report()
        started = _now(hidden) if self.timing else 0.0
        hidden = prune_step(run, pruner, stop, hidden, self.parts)
        if self.timing and report.selection_seconds is not None:
            report.selection_seconds += _now(hidden) - started
        report.add(stop.stage, stop.layer, run.ids, run.present)
        return hidden

    def drop_encoder_pruned(self, run: Run, hidden: Tensor) -> Tensor:
        """Drop the placeholders of the tokens that the encoder already dropped."""
        report = self._report()
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


def _now(x: Tensor) -> float:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter()
