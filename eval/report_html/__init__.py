"""``report.html`` and ``report.md``: a sweep as one page for people, and as a paper's appendix."""

from __future__ import annotations

from .pictures import kept_finder
from .render import render_markdown, render_report, write_report

__all__ = ["kept_finder", "render_markdown", "render_report", "write_report"]
