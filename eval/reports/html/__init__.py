"""``report.html`` and ``report.md``: a sweep as one page for people, and as a paper's appendix.

In: summaries and answers.
Out: one page.
Uses: eval.files, eval.inspect, eval.reports.wording, eval.statistics, eval.tasks, eval.vlm.
"""

from __future__ import annotations

from .render import render_markdown, render_report, write_report
from .sample_pictures import kept_finder

__all__ = ["kept_finder", "render_markdown", "render_report", "write_report"]
