"""The metrics by which answers are scored, by name; see ``metric``, ``list_metrics`` and ``official``.

In: a question and an answer.
Out: a score in [0, 1], and a task's official figures.
Uses: eval.tasks.
"""

from __future__ import annotations

from . import anls, choice, exact, label, mmbench, mme, numeric, ocrbench, pope, relaxed, vqa  # noqa: F401 - they register
from .base import Metric, list_metrics, metric, official

__all__ = ["Metric", "list_metrics", "metric", "official"]
